"""What happens between the steps: pieces of a batch, rollouts, the best checkpoints, reasons to stop, where figures go."""

import json
import subprocess
import sys
import time

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional as F

from dopr_robot.errors import MissingExtraError, UserError
from dopr_robot.training import compose_config, read_metrics, train
from dopr_robot.training.course import Course
from dopr_robot.training.noise import PartOfBatch
from dopr_robot.training.processes import bf16_takes


def distance(a, b) -> float:
    return max(float((a[key] - b[key]).abs().max()) for key in a)


@pytest.mark.parametrize("optimizer", ["adamw", "dopr_muon"])
def test_a_batch_in_four_pieces_is_the_batch(store, config, weights, tmp_path, optimizer):
    options = [f"optimizer={optimizer}", "policy.network.dropout=0.2"]
    whole = weights(train(config(store, *options), tmp_path / "whole"))
    pieces = weights(train(config(store, *options, "training.accumulate=4"), tmp_path / "pieces"))
    other = weights(train(config(store, *options, "training.seed=1"), tmp_path / "other"))
    assert distance(whole, pieces) < 1e-5 < 1e-2 < distance(whole, other)
    losses = [
        [line["loss"] for line in read_metrics(tmp_path / name) if "loss" in line] for name in ("whole", "pieces")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    "draw",
    [
        lambda x: torch.randn_like(x),
        lambda x: torch.rand(len(x), device=x.device),
        lambda x: torch.randint(0, 100, (len(x), 3)),
        lambda x: F.dropout(x, 0.5),
        lambda x: torch.bernoulli(x.sigmoid()),
        lambda x: torch.empty_like(x).uniform_(-1, 1),
        lambda x: torch.distributions.Normal(x, 1.0).sample(),
        lambda x: torch.multinomial(x.sigmoid(), 1),
        lambda x: torch.randn(3 * len(x), 2).view(len(x), 6),  # a row for each token of a window
    ],
)
def test_parts_draw_what_the_whole_batch_would(draw):
    x = torch.linspace(-1, 1, 12 * 5).view(12, 5)
    torch.manual_seed(0)
    whole = draw(x)
    for part in range(4):
        torch.manual_seed(0)
        with PartOfBatch(part, 4, 3):
            mine = draw(x[part::4])
        assert torch.equal(mine, whole[part::4])


def test_the_best_checkpoints_by_success_are_kept_beside_the_newest(store, config, tmp_path):
    rates = iter([0.2, 0.8, 0.9, 0.1, 0.8, 0.3])
    options = ["training.rollout_every=2", "training.keep_best=2", "training.checkpoint_every=100"]
    train(config(store, *options), tmp_path, rollout=lambda policy: {"success_rate": next(rates), "coverage": 0.5})
    kept = sorted(int(each.name) for each in (tmp_path / "checkpoints").iterdir() if not each.is_symlink())
    assert kept == [6, 10, 12]  # 10 is as good as 4 and later; 12 is the last
    assert (tmp_path / "checkpoints" / "best").readlink().name == "6"
    assert [line["coverage"] for line in read_metrics(tmp_path) if "success_rate" in line] == [0.5] * 6


def test_where_success_can_not_tell_the_mean_return_does(store, config, tmp_path):
    """As on HalfCheetah, which can not fail: of equal success the larger return is the best, and what early stopping waits for."""
    earned = iter([10.0, 40.0, 90.0, 20.0, 90.0, 30.0, 20.0, 10.0])
    rates = iter([1.0, 1.0, 1.0, 1.0, 0.5, 1.0, 1.0, 1.0])
    options = ["training.rollout_every=2", "training.keep_best=2", "training.checkpoint_every=100", "training.steps=16"]
    options += ["training.early_stop=success_rate", "training.patience=4"]
    train(
        config(store, *options),
        tmp_path,
        rollout=lambda policy: {"success_rate": next(rates), "return": next(earned)},
    )
    kept = sorted(int(each.name) for each in (tmp_path / "checkpoints").iterdir() if not each.is_symlink())
    assert kept == [4, 6, 14]  # 10 earned as much as 6 with less success; four looks after 6 without a better one
    assert (tmp_path / "checkpoints" / "best").readlink().name == "6"


def test_a_course_from_before_there_were_returns_goes_on():
    state = Course(success={2: 1.0, 4: 1.0}, best=-1.0, looks=1).to_state()
    del state["returns"]
    course = Course.from_state(state)
    assert course.best_steps(2) == [4, 2] and course.rollouts_since_best == 1
    course.success[6], course.returns[6] = 1.0, -5.0
    assert course.best_steps(1) == [6] and course.rollouts_since_best == 0
    with pytest.raises(ValueError, match="its course is"):
        Course.from_state({**state, "returns": {2: "much"}})


def test_training_stops_where_success_does_not_improve_and_does_not_go_on_when_asked_again(
    store, config, tmp_path, caplog
):
    calls = []
    options = [
        "training.steps=100",
        "training.rollout_every=2",
        "training.early_stop=success_rate",
        "training.patience=2",
    ]

    def rollout(policy):
        calls.append(1)
        return {"success_rate": [0.5, 0.6, 0.6, 0.4][len(calls) - 1]}

    last = train(config(store, *options), tmp_path, rollout)
    assert last.name == "8" and "has not improved" in caplog.text
    assert train(config(store, *options), tmp_path, rollout) == last and len(calls) == 4


def test_bf16_on_a_processor_without_it_is_trained_and_a_line_says_what_it_costs(
    store, config, tmp_path, caplog, monkeypatch
):
    assert bf16_takes(size=16) > 0
    for slower in (40.0, 0.6):
        monkeypatch.setattr("dopr_robot.training.loop.bf16_takes", lambda slower=slower: slower)
        train(config(store, "training.precision=bf16", "training.steps=2"), tmp_path / f"{slower:g}")
    (line,) = [text for text in caplog.messages if "precision" in text]
    assert "takes this processor 40 times as long" in line


def test_the_time_limit_saves_and_the_next_call_goes_on_to_the_same_end(store, config, weights, tmp_path, caplog):
    whole = weights(train(config(store), tmp_path / "whole"))
    first = train(config(store, "training.max_hours=1e-9"), tmp_path / "cut")
    assert first.name == "1" and "training.max_hours" in caplog.text
    assert distance(weights(train(config(store), tmp_path / "cut")), whole) == 0


def test_the_log_has_both_validation_losses_and_tensorboard_the_spectrum(store, config, tmp_path):
    train(config(store, "optimizer=dopr_adamw", "training.spectrum_every=6"), tmp_path)
    held_out = [line for line in read_metrics(tmp_path) if "validation_loss" in line]
    assert [line["step"] for line in held_out] == [6, 12]
    assert all(line["validation_loss"] != line["validation_loss_without_ema"] for line in held_out)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    tags = board.Tags()["scalars"]
    assert {"loss", "validation_loss", "validation_loss_without_ema", "gradient_norm"} <= set(tags)
    assert any(tag.startswith("dopr/condition_number/") for tag in tags)


def test_wandb_gets_the_figures(store, config, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train(config(store, "training.tracker=wandb", "training.steps=3"), tmp_path / "named")
    (log,) = (tmp_path / "named" / "wandb").glob("offline-run-*-named/*.wandb")
    while b"validation_loss_without_ema" not in log.read_bytes():  # its service writes on its own time
        time.sleep(0.1)


def test_a_tracker_that_is_not_installed_is_named_with_its_extra(store, config, tmp_path):
    with pytest.raises(MissingExtraError, match=r"dopr-robot\[trackio\]"):
        train(config(store, "training.tracker=trackio"), tmp_path / "run")


def test_a_compiled_network_learns_the_same(store, config, weights, tmp_path):
    options = ["policy=regression_mlp", "policy.n_action_steps=4", "training.steps=4", "training.warmup_steps=0"]
    options = [*options, "policy.network.dim=16", "policy.network.blocks=1"]
    eager, compiled = (
        weights(train(compose_for(store, *options, f"training.compile={flag}"), tmp_path / flag))
        for flag in ("false", "true")
    )
    assert distance(eager, compiled) < 1e-6


def test_torchs_compiler_and_sharding_are_loaded_by_nobody_who_does_not_ask(store, tmp_path):
    code = (
        "import sys; from pathlib import Path; from dopr_robot.training import compose_config, train\n"
        "config = compose_config(None, sys.argv[2:])\n"
        "train(config, Path(sys.argv[1]))\n"
        "print([name for name in ('torch._dynamo', 'torch.distributed.tensor', 'sympy') if name in sys.modules])"
    )
    options = [f"data.store={store}", "training.batch_size=8", "training.steps=3", "training.warmup_steps=0"]
    call = [
        sys.executable,
        "-P",
        "-c",
        code,
        str(tmp_path / "run"),
        *options,
        "policy=flow_mlp",
        "policy.network.dim=16",
    ]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def compose_for(store, *overrides):
    return compose_config(None, [f"data.store={store}", "training.batch_size=32", "policy.horizon=8", *overrides])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.accumulate=5", "a multiple of 5"),
        ("training.rollout_every=5", "needs a task to roll out in"),
        ("training.precision=fp16", "fp16 needs a CUDA device"),
    ],
)
def test_what_the_machine_or_the_call_can_not_do_is_refused(store, config, tmp_path, override, message):
    with pytest.raises(UserError, match=message):
        train(config(store, override), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.early_stop=success_rate", "set training.rollout_every"),
        ("training.early_stop=loss", "none of validation_loss, success_rate"),
        ("training.max_hours=0", "above 0"),
        ("training.schedule=cosin", "none of linear, cosine"),
        ("training.tracker=mlflow", "none of wandb, trackio"),
        ("data.max_episodes=0", "at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(override, message):
    with pytest.raises(UserError, match=message):
        compose_config(None, [override])


def test_figures_that_json_has_no_word_for(tmp_path):
    from dopr_robot.training.metrics import MetricsLog

    with MetricsLog(tmp_path, 0) as log:
        log.write(1, {"loss": float("nan"), "lr": 0.1}, 2.0)
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "step": 1, "loss": None, "lr": 0.1, "seconds": 2.0,
    }  # fmt: skip
