"""The examples of docs/optimizer.md, run as they stand."""

import re
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dopr_robot.optim import DoPr
from dopr_robot.policies.torchvision import make_importable

PAGES = Path(__file__).parents[2] / "docs"
PAGE = (PAGES / "optimizer.md").read_text() + (PAGES / "multi-node.md").read_text()
EXAMPLES = dict(re.findall(r"<!-- example: (\w+) -->\n```python\n(.*?)```", PAGE, re.DOTALL))


def run(name: str, **given: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    namespace = dict(given)
    exec(compile(EXAMPLES[name], f"docs/optimizer.md: {name}", "exec"), namespace)
    return namespace


def test_every_example_is_run_here():
    tested = set(re.findall(r'run\("(\w+)"', Path(__file__).read_text()))
    assert tested == set(EXAMPLES)


def test_plain_loop(capsys):
    names = run("plain")
    assert names["optimizer"].preconditioner.step == 100
    assert "100.0% of the entries of weight matrices are preconditioned" in capsys.readouterr().out
    assert names["base"].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_attached():
    names = run("attach")
    assert names["preconditioner"].step == 1
    assert not names["optimizer"]._optimizer_step_pre_hooks


def test_groups():
    optimizer = run("groups")["optimizer"]
    assert optimizer.param_groups[0]["damping"] == pytest.approx(0.1, abs=0.01)
    assert "precondition=False" in str(optimizer.coverage())


def test_muon(capsys):
    names = run("muon")
    assert (
        "transformer.h.0.attn.c_attn.weight                 16x48  Muon: hidden matrix, 3 in one"
        in capsys.readouterr().out
    )
    taken = [sum(len(g["params"]) for g in names[k].param_groups if g["use_muon"]) for k in ("by_role", "by_name")]
    assert taken == [8, 6]


class LeRobotPolicy(nn.Module):
    """What LeRobot's loop asks of a policy."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 2)

    def get_optim_params(self) -> Any:
        return self.parameters()

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        loss = (self.net(batch["observation.state"]) - batch["action"]).square().mean()
        return loss, {"l2_loss": loss.item()}


def test_lerobot():
    target = torch.randn(4, 2)
    states = torch.randn(40, 16, 4) * torch.tensor([1.0, 1.0, 0.1, 0.1])
    batches = [{"observation.state": state, "action": state @ target} for state in states]
    config = SimpleNamespace(build=lambda params: torch.optim.AdamW(params, lr=5e-2))
    policy = LeRobotPolicy()
    optimizer = run("lerobot")["train"](policy, batches, config)
    assert optimizer.preconditioner.step == 40
    assert policy.forward(batches[0])[1]["l2_loss"] < 0.2 * batches[0]["action"].square().mean()


def test_hugging_face_trainer_and_its_resume(tmp_path, monkeypatch):
    for name in ("whole", "resumed"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    whole = run("trainer")
    assert whole["optimizer"].preconditioner.step == 6
    assert whole["optimizer"].coverage().never_fired == []
    saved = torch.load("gpt2/checkpoint-3/optimizer.pt", weights_only=True)
    assert {int(part["activation"]["step"]) for part in saved["state"].values() if "activation" in part} == {3}
    shutil.copytree("gpt2/checkpoint-3", tmp_path / "resumed" / "gpt2" / "checkpoint-3")
    monkeypatch.chdir(tmp_path / "resumed")
    resumed = run("trainer")
    assert resumed["optimizer"].preconditioner.step == 6
    for first, second in zip(whole["model"].parameters(), resumed["model"].parameters(), strict=True):
        assert torch.equal(first, second)


def test_peft(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run("peft")
    rows = {row.name for row in names["optimizer"].coverage() if row.preconditioned}
    assert rows == {name for name, p in names["model"].named_parameters() if p.requires_grad and p.dim() > 1}
    assert (tmp_path / "adapters" / "adapter_model.safetensors").exists()


def test_sharded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": 0, "WORLD_SIZE": 1}.items():
        monkeypatch.setenv(name, str(value))
    names = run("sharded")
    assert names["optimizer"].coverage().matrix_share == 1
    assert (tmp_path / "checkpoint" / ".metadata").exists()


@pytest.mark.sim
def test_robomimic():
    make_importable()
    algo = run("robomimic")["algo"]
    algo.set_train()
    batch = {
        "obs": {"object": torch.randn(16, 1, 10), "robot0_eef_pos": torch.randn(16, 1, 3)},
        "actions": torch.rand(16, 1, 7),
    }
    losses = []
    for _ in range(8):
        info = algo.train_on_batch(algo.process_batch_for_training(batch), epoch=0)
        losses.append(float(algo.log_info(info)["Loss"]))
    optimizer = algo.optimizers["policy"]
    assert isinstance(optimizer, DoPr)
    assert optimizer.preconditioner.step == 8
    assert optimizer.coverage().matrix_share == 1
    assert losses[-1] < losses[0]
