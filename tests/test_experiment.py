"""A store that is not there is made before it is trained on, where the experiment says how."""

import os
import shlex
import signal
from pathlib import Path

import numpy as np
import pytest

import dopr_robot as dopr
from dopr_robot.cli import main
from dopr_robot.datasets import Store
from dopr_robot.envs import get_task
from dopr_robot.training import compose_config, experiment_names
from dopr_robot.training.demonstrations import collect_command

EXPERIMENT = """
task: {name: CartPoleSwingUp, options: {observation_noise: 0.01}}
data: {store: data/swing.zarr}
collect: {demonstrations: 2, noise: 0.5}
policy: {name: regression_mlp, horizon: 16, network: {dim: 16, blocks: 1}}
training: {steps: 2, batch_size: 16}
"""
COMMAND = "dopr collect CartPoleSwingUp --episodes 2 --out data/swing.zarr --noise 0.5 --option observation_noise=0.01"


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("swing.yaml").write_text(EXPERIMENT)
    return tmp_path


def names(folder: str) -> list[str]:
    return sorted(each.name for each in Path(folder).iterdir())


def actions(store: Path | str) -> np.ndarray:
    opened = Store.open(store)
    return np.concatenate([opened.episode(index)["action"] for index in range(opened.num_episodes)])


def test_a_missing_store_is_collected_as_the_command_that_is_told_does(here, capsys):
    assert main(["train", "swing.yaml", "--print"]) == 0
    assert names(".") == ["swing.yaml"]
    capsys.readouterr()
    assert main(["train", "swing.yaml"]) == 0
    out, err = capsys.readouterr()
    assert out == "runs/run\n"
    assert (
        f"data/swing.zarr is not there: first 2 demonstrations of dopr_robot/CartPoleSwingUp-v0, as by `{COMMAND}`"
        in err
    )
    assert names("data") == ["swing.zarr"]
    Path("data/swing.zarr").rename("by_train.zarr")
    assert main(shlex.split(COMMAND)[1:]) == 0
    assert np.array_equal(actions("by_train.zarr"), actions("data/swing.zarr"))


def test_ctrl_c_half_way_and_the_next_call_goes_on(here, capsys, monkeypatch):
    append = Store.append

    def and_stop(store, *args, **more):
        append(store, *args, **more)
        if store.num_episodes == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "append", and_stop)
        with pytest.raises(KeyboardInterrupt):
            dopr.train("swing.yaml")
    # Half of the demonstrations are nothing to train on, whoever comes next.
    assert names("data") == ["swing.unfinished.zarr"] and not Path("runs").exists()
    first = actions("data/swing.unfinished.zarr")
    run = dopr.train("swing.yaml")
    assert "going on with 2 demonstrations" in capsys.readouterr().err
    assert names("data") == ["swing.zarr"] and run.checkpoints.steps() == [2]
    whole = actions("data/swing.zarr")
    assert Store.open("data/swing.zarr").num_episodes == 2 and np.array_equal(whole[: len(first)], first)


def test_a_store_that_is_there_is_used_as_it_is(here, capsys):
    dopr.collect("CartPoleSwingUp", 1, "data/swing.zarr", noise=0)
    with pytest.raises(dopr.UserError, match="was collected with none"):  # and held against the configuration as ever
        dopr.train("swing.yaml")
    dopr.train("swing.yaml", "task=CartPoleSwingUp")
    assert Store.open("data/swing.zarr").num_episodes == 1
    assert "is not there" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pusht_state"], "gym_pusht/PushT-v0 has no expert: `dopr convert SOURCE data/pusht_cchi_v7_replay.zarr.zip`"),
        (["pick_place", "data.store=my.zarr"], "`dopr collect PickPlace --episodes 100 --out my.zarr` makes it"),
        (["pick_place", "task=Stack", "task.options={cubes: 3}"],
         "`dopr collect Stack --episodes 100 --out data/pick_place.zarr --option cubes=3` makes it"),
        (["task=metaworld/assembly-v3", "data.store=a.zarr"], "`dopr collect metaworld/assembly-v3 --episodes 100 --out a.zarr`"),
        (["data.store=a.zarr"], "no task is named whose expert could make it: `dopr convert SOURCE a.zarr`"),
        (["lift_image"], "data/lift_human.zarr: no such file or folder: `dopr convert SOURCE data/lift_human.zarr`"),
        (["pick_place", "collect.demonstrations=0"], "collect.demonstrations=0 has to be at least 1"),
    ],
)  # fmt: skip
def test_what_is_not_collected_is_a_line_with_the_command_that_brings_it(words, said, here, capsys):
    assert main(["train", *words]) == 2
    error = capsys.readouterr().err.splitlines()
    assert said in error[-1] and error[-1].startswith("dopr: ")
    assert names(".") == ["swing.yaml"]


def test_a_run_is_not_gone_on_with_on_other_demonstrations(here):
    run = dopr.train("swing.yaml")
    Path("data/swing.zarr").rename("elsewhere.zarr")
    with pytest.raises(dopr.UserError, match=f"`{COMMAND}` makes it"):
        dopr.train(resume=run.folder, steps=4, force=True)
    assert not any(Path("data").iterdir())


@pytest.mark.parametrize("name", experiment_names())
def test_every_experiment_whose_task_has_an_expert_says_how_many(name):
    config = compose_config(name)
    known = get_task(config.task.name or "").has_expert
    assert (config.collect.demonstrations is not None) >= known
    if config.collect.demonstrations:
        assert collect_command(config, config.collect.demonstrations)
