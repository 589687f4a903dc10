"""The training loop on a small store: what it writes, that it resumes exactly, what it refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import dopr_robot as dopr
from dopr_robot.datasets import Attributes, Store
from dopr_robot.errors import DamagedError, UnknownNameError, UserError
from dopr_robot.policies import load_policy
from dopr_robot.training import Checkpoints, compose_config, find_damage, load_config, load_data, train
from dopr_robot.training.state import load_state, save_state


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def run(store, config, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(config(store), folder)
    return folder


def test_a_run_folder_holds_what_the_design_says(run):
    assert sorted(each.name for each in (run / "checkpoints").iterdir()) == ["10", "12", "last"]
    assert (run / "checkpoints" / "last").readlink() == Path("12")
    assert list((run / "tensorboard").iterdir())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [3, 6, 9, 12]
    assert [line["step"] for line in lines if "validation_loss" in line] == [6, 12]
    assert load_policy(run).task == "somewhere/Point-v0"


def test_no_file_of_a_checkpoint_is_a_pickle(run):
    for file in (run / "checkpoints" / "12").rglob("*"):
        assert file.is_dir() or file.suffix in (".json", ".safetensors")


def test_the_checkpoint_acts_with_the_average_and_trains_on_with_the_last_weights(run):
    acting = {key: value for key, value in load_policy(run).state_dict().items() if "normalizer" not in key}
    state = load_state(run / "checkpoints" / "12" / "training_state" / "state")
    assert not same(acting, {key: state["policy"][key] for key in acting})
    for parameter, shadow in zip(load_policy(run).parameters(), state["average"]["shadow"], strict=True):
        assert torch.equal(parameter, shadow)


@pytest.mark.parametrize("optimizer", ["adamw", "dopr_adamw", "dopr_muon", "soap", "dopr_schedulefree_adamw"])
def test_a_resumed_run_ends_as_an_uninterrupted_one(store, tmp_path, optimizer, config, weights):
    whole = config(store, f"optimizer={optimizer}")
    train(whole, tmp_path / "whole")
    train(whole, tmp_path / "cut")
    shutil.rmtree(
        tmp_path / "cut" / "checkpoints" / "12"
    )  # what a kill after step 10 leaves, and a log that is further
    train(whole, tmp_path / "cut")
    a, b = (tmp_path / name / "checkpoints" / "12" for name in ("whole", "cut"))
    assert same(weights(a), weights(b))
    assert (a / "policy.safetensors").read_bytes() == (b / "policy.safetensors").read_bytes()
    steps = [json.loads(line)["step"] for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [3, 6, 6, 9, 12, 12]


def test_a_schedule_free_run_acts_with_its_own_average_and_is_not_changed_by_looks_at_it(
    store, tmp_path, config, weights
):
    """Validated at every step or once: the same weights to the bit; what is saved to act is not what is trained on."""
    rates = {}
    for every in (1, 12):
        folder = tmp_path / str(every)
        train(config(store, "optimizer=schedulefree_adamw", f"training.validate_every={every}"), folder)
        rates[every] = [json.loads(line).get("lr") for line in (folder / "metrics.jsonl").read_text().splitlines()]
    a, b = (tmp_path / name / "checkpoints" / "12" for name in ("1", "12"))
    assert same(weights(a), weights(b))
    assert (a / "policy.safetensors").read_bytes() == (b / "policy.safetensors").read_bytes()
    state = load_state(a / "training_state" / "state")
    acting = load_policy(a).state_dict()
    trained = [key for key in acting if "normalizer" not in key]
    assert not same({key: acting[key] for key in trained}, {key: state["policy"][key] for key in trained})
    assert state["average"] == {} and all(group["train_mode"] for group in state["optimizer"]["param_groups"])
    assert rates[12][-2] == pytest.approx(1e-3)  # after its warm-up the rate stays, whatever training.schedule says


def test_an_optimizer_whose_package_is_not_there_is_refused_before_anything_is_read(monkeypatch):
    monkeypatch.setattr("dopr_robot.optim.packaged.find_spec", lambda package: None)
    with pytest.raises(UserError, match=r"^optimizer=soap needs a package .*pip install 'dopr-robot\[optimizers\]'$"):
        compose_config("pick_place", ["optimizer=soap"])


def test_a_damaged_checkpoint_is_noticed_and_the_one_before_is_used(store, tmp_path, caplog, config):
    train(config(store), tmp_path)
    newest = tmp_path / "checkpoints" / "12" / "training_state" / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-8])
    assert "state.safetensors differs" in (find_damage(tmp_path / "checkpoints" / "12") or "")
    found = Checkpoints(tmp_path / "checkpoints").load_last()
    assert found is not None and found[0] == 10
    assert "going back" in caplog.text
    (tmp_path / "checkpoints" / "10" / "checksums.json").unlink()
    with pytest.raises(DamagedError):
        Checkpoints(tmp_path / "checkpoints").load_last()


def test_sigterm_saves_the_state_and_says_how_to_go_on(store, tmp_path):
    command = [
        sys.executable, "-P", "-m", "dopr_robot.cli", "train", f"data.store={store}", "training.steps=100000", "training.batch_size=32",
        "policy.network.dim=16", "policy.network.layers=1", "policy.network.heads=2", "training.log_every=1", "name=cut",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    log = tmp_path / "runs" / "cut" / "metrics.jsonl"
    while not (log.exists() and log.stat().st_size) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 143, errors
    assert "--resume runs/cut" in errors.splitlines()[-1]
    saved = Checkpoints(tmp_path / "runs" / "cut" / "checkpoints").steps()
    assert saved and find_damage(tmp_path / "runs" / "cut" / "checkpoints" / str(saved[-1])) is None


def test_arms_that_differ_in_the_optimizer_share_weights_data_and_noise(store, tmp_path, config):
    """At a learning rate of zero nothing is learned, so the losses of two optimizers have to agree to the bit."""
    losses = []
    for name in ("adamw", "dopr_muon"):
        train(config(store, f"optimizer={name}", "optimizer.lr=0.0"), tmp_path / name)
        losses.append(
            [json.loads(line).get("loss") for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        )
    assert losses[0] == losses[1]


def test_statistics_come_from_the_training_split_alone(store, config):
    data = load_data(config(store))
    assert data.validation is not None
    assert not set(data.train.episodes) & set(data.validation.episodes)
    opened = Store.open(store)
    own = np.concatenate([opened.episode(int(index))["state"] for index in data.train.episodes])
    np.testing.assert_allclose(data.statistics["state"]["max"], own.max(0))


def test_state_comes_back_with_its_types(tmp_path):
    state = {"a": [1, 2.5, None, True], 3: (torch.arange(3), "x"), "deep": {"t": torch.zeros((), dtype=torch.bfloat16)}}
    save_state(state, tmp_path / "state")
    back = load_state(tmp_path / "state")
    assert back["a"] == state["a"] and torch.equal(back[3][0], state[3][0]) and isinstance(back[3], tuple)
    assert back["deep"]["t"].dtype == torch.bfloat16
    with pytest.raises(TypeError, match="object at state/x"):
        save_state({"x": object()}, tmp_path / "other")


def test_the_configuration_reproduces_itself(tmp_path):
    made = compose_config("pusht_state", ["optimizer.lr=1e-3", "policy=diffusion_unet"])
    assert (
        made.optimizer["lr"] == 1e-3
        and made.policy["objective"]["name"] == "diffusion"
        and made.data.observations == ["keypoint", "state"]
    )
    path = tmp_path / "config.yaml"
    path.write_text(made.to_yaml())
    assert load_config(path) == made == compose_config(str(path))


@pytest.mark.parametrize(
    ("experiment", "override", "message"),
    [
        ("pick_plaec", "name=a", "did you mean 'pick_place'"),
        (None, "policy=flow_unett", "unknown policy 'flow_unett': did you mean 'flow_unet'"),
        (None, "optimizer=dopr_adam_w", "did you mean 'dopr_adamw'"),
        (None, "training.stepz=3", "did you mean 'training.steps'"),
        (None, "policy.network.dimm=3", "did you mean 'policy.network.dim'"),
        (None, "training.steps=many", "training.steps=many: a whole number is expected"),
        (None, "training.steps=0", "at least 1"),
        (None, "training.precision=half", "none of no, bf16, fp16"),
        (None, "+training.x=1", "not of the form key=value"),
        (None, "training.steps=1,2", "training.steps=1,2: a whole number is expected"),
        (None, "optimizer.lr=1,2", "optimizer.lr=1,2: a number is expected"),
        (None, "training.compile=yes", "training.compile=yes: true or false is expected"),
        (None, "policy.normalization={state:meanstd}", "wants a space after the colon"),
        (None, "steps=3", "known: training.steps"),
        ("nowhere.yaml", "name=a", "nowhere.yaml does not exist"),
    ],
)
def test_a_wrong_setting_is_refused_with_the_right_one(experiment, override, message):
    with pytest.raises(UserError) as caught:
        compose_config(experiment, [override])
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.observations=[pose]", "no key 'pose': it has action, state"),
        ("task=other/Task-v0", "holds demonstrations of somewhere/Point-v0"),
        ("training.batch_size=5000", "lower it or collect more"),
        ("policy.horizon=64", "10 of 10 episodes have fewer than 60 steps, which policy.horizon=64 asks for"),
        ("data.store=/nowhere.zarr", "nowhere.zarr"),
        ("policy.n_action_steps=8", "at most horizon"),
    ],
)
def test_a_configuration_that_does_not_fit_the_store_is_refused(store, override, message, tmp_path, config):
    with pytest.raises(UserError) as caught:
        train(config(store, override), tmp_path / "run")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("hz", "state", "action", "message"),
    [
        (10, 29, 8, "was recorded at 10 Hz, dopr_robot/PickPlace-v0 runs at 20 Hz: dopr edit"),
        (20, 30, 8, "'state' of shape [30], dopr_robot/PickPlace-v0 has [29]"),
        (20, 29, 7, "'action' of shape [7], dopr_robot/PickPlace-v0 has [8]"),
    ],
)
def test_a_store_of_another_rate_or_shape_than_its_task_is_refused(tmp_path, config, hz, state, action, message):
    about = Attributes(task="dopr_robot/PickPlace-v0", control_hz=hz, observations=("state",))
    with Store.create(tmp_path / "store.zarr", about) as made:
        made.append({"state": np.zeros((20, state), np.float32), "action": np.zeros((20, action), np.float32)}, seed=0)
    with pytest.raises(UserError) as caught:
        load_data(config(tmp_path / "store.zarr", "training.batch_size=2"))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_names_are_unknown_name_errors():
    with pytest.raises(UnknownNameError):
        compose_config("nothing")


def test_every_key_of_a_store_is_read_once_on_the_way_to_the_first_step(store, config, tmp_path, monkeypatch):
    """Statistics, windows, and what is said beforehand share what was read; a large store would be read three times otherwise."""
    read, real = [], Store._read

    def counted(self, array, name, rows):
        read.append(name)
        return real(self, array, name, rows)

    monkeypatch.setattr(Store, "_read", counted)
    dopr.train(config(store, "training.steps=1"), out=tmp_path / "run")
    assert sorted(name for name in read if name in ("state", "action")) == ["action", "state"]


def test_a_profile_says_what_a_step_spends(store, config, tmp_path, caplog):
    plain, profiled = (
        dopr.train(config(store, "training.steps=6"), out=tmp_path / name, profile=name == "b") for name in ("a", "b")
    )
    said = (profiled.folder / "profile" / "table.txt").read_text()
    assert all(f"\n{part} " in said for part in ("batch", "loss", "backward", "optimizer", "average"))
    events = json.loads((profiled.folder / "profile" / "trace.json").read_text())["traceEvents"]
    assert sum(each["name"] == "step: backward" and each["ph"] == "X" for each in events) == 3  # after three to warm up
    assert not (plain.folder / "profile").exists()
    weights = [load_state(run.folder / "checkpoints" / "6" / "training_state" / "state") for run in (plain, profiled)]
    assert same(weights[0]["policy"], weights[1]["policy"])
