"""Trainers that make their optimizer from parameters alone: LeRobot, Hugging Face's Trainer, Lightning, timm's factory."""

import copy
import dataclasses
import logging
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dopr_robot.optim import DoPr, DoPrAdamW, make_optimizer
from dopr_robot.policies.torchvision import make_importable


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))


def test_hugging_face_trainer_by_class_and_options(tmp_path):
    """As its ``optimizer_cls_and_kwargs``: parameter groups come from the Trainer, the schedule too; and it resumes."""
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    tokens = torch.randint(0, 50, (48, 16), generator=torch.Generator().manual_seed(0))
    dataset = [{"input_ids": row, "labels": row} for row in tokens]

    def run(steps: int, resume: bool) -> tuple[nn.Module, DoPr]:
        torch.manual_seed(0)
        size = {"n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
        model = GPT2LMHeadModel(GPT2Config(vocab_size=50, **size, bos_token_id=0, eos_token_id=0))
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=6,
            save_steps=3,
            per_device_train_batch_size=8,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        chosen = (DoPrAdamW, {"lr": 1e-3, "damping": 0.3})
        trainer = Trainer(model=model, args=arguments, train_dataset=dataset, optimizer_cls_and_kwargs=chosen)
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3") if resume else None)
        optimizer = trainer.optimizer.optimizer
        assert isinstance(optimizer, DoPr)
        return model, optimizer

    model, optimizer = run(6, resume=False)
    assert optimizer.coverage().matrix_share == 1
    assert optimizer.param_groups[0]["damping"] == 0.3
    again, other = run(6, resume=True)
    assert other.preconditioner.step == 6
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.sim
def test_timms_factory():
    make_importable()
    from timm import optim

    import dopr_robot.optim.timm  # noqa: F401

    model = net()
    optimizer = optim.create_optimizer_v2(model, "dopradamw", lr=1e-2, weight_decay=0.1, damping=0.3, betas=(0.8, 0.9))
    assert isinstance(optimizer, DoPr)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.1]
    assert {(group["lr"], group["damping"], group["betas"]) for group in optimizer.param_groups} == {
        (1e-2, 0.3, (0.8, 0.9))
    }
    for _ in range(2):
        model(torch.randn(9, 6)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert optimizer.coverage().matrix_share == 1
    assert "dopradamw" in optim.list_optimizers()


@pytest.mark.parametrize("bare", [False, True])
def test_lightning_and_its_resume(bare, tmp_path):
    """Lightning runs forward and backward in a closure, and empties the gradients between the two."""
    pl = pytest.importorskip("pytorch_lightning")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return make_optimizer(
                "dopr_adamw", self.parameters() if bare else self, lr=1e-2, form="average", update_every=2
            )

    x = torch.randn(48, 6, generator=torch.Generator().manual_seed(1))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=8)

    def fit(steps: int, checkpoint: Path | None) -> tuple[nn.Module, pl.Trainer]:
        module = Module()
        trainer = pl.Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(module, loader, ckpt_path=checkpoint)
        return module, trainer

    whole, trainer = fit(6, None)
    optimizer = trainer.optimizers[0]
    assert isinstance(optimizer, DoPr)
    assert optimizer.preconditioner.step == 6
    assert optimizer.coverage().never_fired == []
    known = net()
    other = make_optimizer("dopr_adamw", known, lr=1e-2, form="average", update_every=2)
    for part in x.split(8):
        known(part).square().mean().backward()
        other.step()
        other.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(whole.net.parameters(), known.parameters(), strict=True))
    _, trainer = fit(4, None)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    _, trainer = fit(6, tmp_path / "half.ckpt")
    assert trainer.optimizers[0].preconditioner.step == 6


def test_lerobots_config_makes_it_and_its_files_keep_it(tmp_path):
    lerobot = pytest.importorskip("lerobot.optim.optimizers")
    draccus = pytest.importorskip("draccus")
    import dopr_robot.optim.lerobot  # noqa: F401

    @dataclasses.dataclass
    class Training:
        optimizer: lerobot.OptimizerConfig

    given = [
        "--type=dopr_adamw",
        "--lr=0.01",
        "--damping=0.3",
        "--form=average",
        "--update_every=2",
        "--include=['*.weight']",
    ]
    given = [each.replace("--", "--optimizer.") for each in given]
    config = draccus.parse(Training, args=given).optimizer
    assert draccus.decode(lerobot.OptimizerConfig, draccus.encode(config, lerobot.OptimizerConfig)) == config
    assert config.type == "dopr_adamw"
    assert config.grad_clip_norm == 10.0
    model = net()
    optimizer = config.build(dict(model.named_parameters()))
    assert isinstance(optimizer, DoPr)
    assert optimizer.preconditioner.form == "average"

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            model(torch.randn(9, 6, generator=torch.Generator().manual_seed(step))).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    train(model, optimizer, range(3))
    lerobot.save_optimizer_state(optimizer, tmp_path)
    again = copy.deepcopy(model)
    other = lerobot.load_optimizer_state(config.build(dict(again.named_parameters())), tmp_path)
    train(model, optimizer, range(3, 6))
    train(again, other, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_lerobots_command_finds_it(monkeypatch, tmp_path):
    """``lerobot-train`` as typed, up to the optimizer that its own factory makes for a policy of its own."""
    pytest.importorskip("lerobot")
    train = pytest.importorskip("lerobot.scripts.lerobot_train")
    from lerobot.configs import parser
    from lerobot.configs.train import TrainPipelineConfig
    from lerobot.optim.factory import make_optimizer_and_scheduler

    assert train.make_optimizer_and_scheduler is make_optimizer_and_scheduler
    arguments = [
        "--optimizer.discover_packages_path=dopr_robot.optim.lerobot",
        "--optimizer.type=dopr_adamw",
        "--optimizer.lr=0.001",
        "--optimizer.damping=0.3",
        "--use_policy_training_preset=false",
        "--scheduler.type=diffuser",
        "--scheduler.num_warmup_steps=1",
        "--policy.type=act",
        "--policy.push_to_hub=false",
        "--policy.device=cpu",
        "--dataset.repo_id=none",
        f"--output_dir={tmp_path / 'out'}",
    ]
    monkeypatch.setattr(sys, "argv", ["lerobot-train", *arguments])

    @parser.wrap()
    def main(cfg: TrainPipelineConfig) -> TrainPipelineConfig:
        cfg.validate()
        return cfg

    config = main()
    policy = net()
    optimizer, schedule = make_optimizer_and_scheduler(config, policy)
    assert isinstance(optimizer, DoPr)
    assert optimizer.param_groups[0]["damping"] == 0.3
    policy(torch.randn(9, 6)).square().mean().backward()
    optimizer.step()
    schedule.step()
    assert optimizer.coverage().matrix_share == 1
