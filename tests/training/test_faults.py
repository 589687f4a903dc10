"""Bad numbers, full disks, no memory, kills: what is left afterwards."""

import json
import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from filelock import SoftFileLock

from dopr_robot.cli import main
from dopr_robot.datasets import Store
from dopr_robot.errors import DoprError, UserError
from dopr_robot.locks import held
from dopr_robot.policies import checkpoint_steps, find_checkpoint, load_policy
from dopr_robot.training import Checkpoints, find_damage, load_data, train
from dopr_robot.training.course import WINDOW, Course
from dopr_robot.training.processes import explained_memory


@pytest.fixture(scope="module")
def huge(store, tmp_path_factory):
    """The store, with one episode of actions whose square is beyond float32."""
    path = tmp_path_factory.mktemp("huge") / "huge.zarr"
    source = Store.open(store)
    with Store.create(path, source.attributes) as made:
        for index in range(source.num_episodes):
            episode = {key: source.episode(index)[key] for key in ("state", "action")}
            made.append({**episode, "action": np.full_like(episode["action"], 1e30)} if index == 4 else episode)
    return path


def test_a_batch_that_gives_no_finite_loss_is_left_out_and_its_episodes_are_named(
    huge, config, weights, tmp_path, caplog
):
    options = ["training.batch_size=4", "training.steps=40", "policy.normalization=none", "data.validation_fraction=0"]
    checkpoint = train(config(huge, *options, "optimizer=dopr_adamw"), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    skipped = [line for line in lines if "skipped" in line]
    assert 3 < len(skipped) < 30
    assert all(4 in line["episodes"] and "the loss is" in line["skipped"] for line in skipped)
    assert f"step {skipped[0]['step']} is left out" in caplog.text
    assert all(value.isfinite().all() for name, value in weights(checkpoint).items() if "normalizer" not in name)
    assert all(np.isfinite(line["loss"]) for line in lines if "loss" in line)


def test_too_many_bad_steps_in_a_row_end_the_run_and_leave_the_last_good_checkpoint(store, config, weights, tmp_path):
    bad = config(
        store, "optimizer=sgd", "optimizer.lr=1e8", "training.warmup_steps=0", "training.steps=200",
        "training.checkpoint_every=1", "training.max_bad_steps=4", "training.gradient_clip=null",
    )  # fmt: skip
    with pytest.raises(DoprError, match=r"4 steps in a row .* lower optimizer.lr") as caught:
        train(bad, tmp_path)
    last = max(Checkpoints(tmp_path / "checkpoints").steps())
    assert f"checkpoint {last} is good" in str(caught.value)
    assert find_damage(tmp_path / "checkpoints" / str(last)) is None
    assert all(value.isfinite().all() for value in weights(tmp_path / "checkpoints" / str(last)).values())


def test_what_counts_as_a_spike():
    course = Course()
    for step in range(WINDOW):
        assert course.fault(1 / (1 + step), 100.0) is None
        course.accept(1 / (1 + step), 0.0)
    assert course.fault(1.5, 100.0) is None
    assert "usual" in (course.fault(3.0, 100.0) or "")
    assert course.fault(1e30, None) is None
    assert course.fault(float("nan"), None) == "the loss is nan"
    growing = Course()
    for step in range(60):
        growing.accept(2.0**step, 0.0)
    assert growing.fault(2.0**60, 100.0)  # losses that double at every step do not lift the bar as they go
    likelihood = Course()
    for step in range(WINDOW):  # a loss that passes through zero
        assert likelihood.fault(1 - step / 50, 100.0) is None
        likelihood.accept(1 - step / 50, 0.0)


def test_a_store_with_nan_is_refused_before_anything_is_made(store, config, tmp_path):
    source = Store.open(store)
    with Store.create(tmp_path / "nan.zarr", source.attributes) as made:
        for index in range(3):
            episode = {key: source.episode(index)[key] for key in ("state", "action")}
            made.append({**episode, "state": np.full_like(episode["state"], np.nan)} if index == 1 else episode)
    with pytest.raises(UserError, match=r"NaN or inf in 'state'.*--check"):
        load_data(config(tmp_path / "nan.zarr", "data.validation_fraction=0", "training.batch_size=4"))


def test_a_full_disk_leaves_the_checkpoint_before_and_the_run_goes_on_when_there_is_room(
    store, config, weights, tmp_path
):
    chosen = config(store, "training.keep_checkpoints=3")
    whole = weights(train(chosen, tmp_path))
    for step in ("10", "12"):
        shutil.rmtree(tmp_path / "checkpoints" / step)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))  # a checkpoint is larger, the logs are not
    try:
        with pytest.raises(DoprError, match=r"step 10 can not be written .*checkpoint 5 is untouched"):
            train(chosen, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [each.name for each in (tmp_path / "checkpoints").iterdir() if each.is_dir() and not each.is_symlink()] == [
        "5"
    ]
    assert find_damage(tmp_path / "checkpoints" / "5") is None
    again = weights(train(chosen, tmp_path))
    assert all(torch.equal(again[key], whole[key]) for key in whole)


def test_an_out_of_memory_says_what_to_lower():
    with (
        pytest.raises(DoprError, match=r"training.batch_size=256 .* raise training.accumulate \(say to 4"),
        explained_memory(256, 2),
    ):
        torch.empty(1 << 50)
    with pytest.raises(RuntimeError, match="size"), explained_memory(256, 2):
        torch.ones(2) @ torch.ones(3)


KILLED = """
import os, random, signal, sys, time, traceback
from pathlib import Path
import hydra, torch, torch._dynamo  # the last is loaded with the first optimizer: by each child anew, were it not here
from dopr_robot.training import load_config, train
torch.set_num_threads(1)
config, folder, draw = load_config(Path(sys.argv[1])), Path(sys.argv[2]), random.Random(0)
log, kills = folder / "metrics.jsonl", 0
while True:
    size = log.stat().st_size if log.exists() else 0
    child = os.fork()
    if child == 0:
        try:
            train(config, folder)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    ended, status = 0, 0
    if kills < 7:
        # It has begun when the log has changed; from there on the moment is random: in a step, or while a checkpoint is written.
        while not ended and (not log.exists() or log.stat().st_size == size):
            ended, status = os.waitpid(child, os.WNOHANG)
            time.sleep(0.001)
        if not ended:
            time.sleep(draw.uniform(0, 0.1))
            os.kill(child, signal.SIGKILL)
    if not ended:
        _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        # On a machine with much else to do the run may come to its end while this process waits for its turn.
        sys.exit(os.WEXITSTATUS(status) or kills < 3)
    kills += 1
"""


def test_a_run_that_is_killed_again_and_again_ends_as_one_that_was_not(store, config, weights, tmp_path):
    options = ["training.steps=40", "training.checkpoint_every=2", "training.log_every=1", "optimizer=dopr_adamw"]
    chosen = config(store, *options, "optimizer.update_every=3")
    whole = weights(train(chosen, tmp_path / "whole"))
    (tmp_path / "config.yaml").write_text(chosen.to_yaml())
    command = [sys.executable, "-P", "-c", KILLED, str(tmp_path / "config.yaml"), str(tmp_path / "killed")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    killed = weights(tmp_path / "killed" / "checkpoints" / "40")
    assert all(torch.equal(killed[key], whole[key]) for key in whole)
    assert not list((tmp_path / "killed" / "checkpoints").glob(".*"))
    for step in Checkpoints(tmp_path / "killed" / "checkpoints").steps():
        assert find_damage(tmp_path / "killed" / "checkpoints" / str(step)) is None


def refuse(*_args, **_kwargs):
    raise OSError(95, "Operation not supported")


def test_without_symbolic_links_a_run_trains_resumes_and_is_found(store, config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("os.symlink", refuse)
    monkeypatch.setattr("pathlib.Path.symlink_to", refuse)
    rates = iter([0.5, 0.9, 0.1, 0.2])
    run, options = tmp_path / "run", ["training.rollout_every=3", "training.steps=9"]
    train(config(store, *options), run, lambda policy: {"success_rate": next(rates)})
    train(config(store, "training.rollout_every=3"), run, lambda policy: {"success_rate": next(rates)})
    assert (run / "checkpoints" / "last").read_text() == "12\n" and (run / "checkpoints" / "best").read_text() == "6\n"
    assert find_checkpoint(run) == run / "checkpoints" / "12" == find_checkpoint(run / "checkpoints" / "last")
    assert find_checkpoint(run / "checkpoints" / "best") == run / "checkpoints" / "6"
    assert main(["info", str(run)]) == 0 and "run, step 12" in capsys.readouterr().out


def test_the_newest_whole_checkpoint_is_found_without_last_and_best(store, config, tmp_path):
    train(config(store), tmp_path)
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "last").unlink()
    (checkpoints / "013").mkdir()
    shutil.copytree(checkpoints / "12", checkpoints / "99")
    (checkpoints / "99" / "training_state" / "state.json").unlink()  # a copy that was cut short
    assert checkpoint_steps(checkpoints) == [10, 12] == Checkpoints(checkpoints).steps()
    assert find_checkpoint(tmp_path) == checkpoints / "12" and load_policy(tmp_path).n_obs_steps == 2
    for step in ("10", "12", "99"):
        (checkpoints / step / "policy.json").unlink()
    with pytest.raises(UserError, match="has no checkpoint yet: dopr train --resume"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize("native", [True, False])
def test_a_run_that_is_being_trained_is_left_alone(store, config, tmp_path, monkeypatch, native, capsys):
    if not native:  # a file system without locks of its own
        monkeypatch.setattr("dopr_robot.locks.FileLock.acquire", lambda *_, **__: refuse())
    run = tmp_path / "run"
    train(config(store), run)
    with held(run), pytest.raises(UserError, match=rf"{run} is being worked on by process {os.getpid()} on "):
        train(config(store, "training.steps=20"), run)
    capsys.readouterr()
    with held(run):
        assert main(["train", "--resume", str(run), "training.steps=20", "--force"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert train(config(store, "training.steps=14"), run).name == "14"  # the lock has gone with its holder


HOLDER = """
import sys, time
from pathlib import Path
import dopr_robot.locks as locks
if sys.argv[2] == "soft":
    locks.FileLock = locks.SoftFileLock
with locks.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["native", "soft"])
def test_a_lock_ends_with_its_holder(tmp_path, kind, monkeypatch):
    if kind == "soft":
        monkeypatch.setattr("dopr_robot.locks.FileLock", SoftFileLock)
    command = [sys.executable, "-P", "-c", HOLDER, str(tmp_path), kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {process.pid} on "), held(tmp_path):
            pass
        process.kill()
    with held(tmp_path):
        pass
