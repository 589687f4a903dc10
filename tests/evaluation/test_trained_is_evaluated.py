"""What was trained is evaluated: options and cameras travel from the store to the records, by the command."""

import json

import pytest

from dopr_robot import Run, Store, evaluate
from dopr_robot.cli import main
from dopr_robot.envs import Task
from dopr_robot.envs.rendering import choose_backend
from dopr_robot.errors import UserError
from dopr_robot.evaluation import Evaluation
from dopr_robot.training import RunConfig

SMALL = [
    "policy=regression_mlp", "policy.network.dim=32", "training.steps=3", "training.batch_size=8", "training.warmup_steps=0",
    "training.checkpoint_every=3", "data.validation_fraction=0", "training.device=cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A store of Stack with three cubes, one of PickPlace with two cameras, and runs on both."""
    place = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main(["collect", "Stack", "--episodes", "2", "--out", "stack.zarr", "--option", "cubes=3"]) == 0
        cameras = ["--cameras", "wrist,overview", "--size", "32"]
        assert main(["collect", "PickPlace", "--episodes", "2", "--out", "seen.zarr", *cameras]) == 0
        assert main(["train", "name=stack", "data.store=stack.zarr", *SMALL]) == 0
        pixels = [*SMALL, "data.store=seen.zarr", "policy.encoder.backbone=impala", "policy.encoder.channels=4"]
        assert main(["train", "name=seen", *pixels]) == 0
        rolled = ["optimizer.lr=1e-4", "training.rollout_every=3", "training.rollout_episodes=1"]
        assert main(["train", "name=rolled", *pixels, *rolled]) == 0
    return place


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


def said(capsys, *words):
    """The one line on stderr of a call that is refused."""
    capsys.readouterr()
    assert main([*words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_three_cubes_are_stacked_without_being_told(here, monkeypatch):
    assert Store.open("stack.zarr").attributes.options == {"cubes": 3}
    run = Run("runs/stack")
    assert run.config.task.name == "dopr_robot/Stack-v0" and run.config.task.options == {"cubes": 3}
    assert run.policy().task_options == {"cubes": 3}
    made = []
    make = Evaluation.make_env
    monkeypatch.setattr(Evaluation, "make_env", lambda *args, **kw: made.append(make(*args, **kw)) or made[-1])
    results = evaluate(run, episodes=2, horizons=[4], video=0, out="three")
    assert results.content["env_options"] == {"cubes": 3} and {env.cubes for env in made} == {3}
    made.clear()
    results = evaluate(run, episodes=2, horizons=[4], video=0, out="two", options={"cubes": 2})
    assert results.content["env_options"] == {"cubes": 2} and {env.cubes for env in made} == {2}


def test_records_of_different_options_are_not_compared(here, capsys):
    for cubes in (2, 3):
        words = ["eval", "runs/stack", "--episodes", "2", "--horizons", "4", "--video", "0", "--out", f"cubes{cubes}"]
        assert main([*words, "--option", f"cubes={cubes}"]) == 0
    line = said(capsys, "compare", "cubes2", "cubes3", "--labels", "two,three")
    assert "{'cubes': 3}" in line and "--option" in line


def test_a_policy_that_reads_pictures_gets_its_cameras(here, capsys):
    store = Store.open("seen.zarr")
    assert store.attributes.options == {"cameras": ["wrist", "overview"], "camera_size": 32}
    assert store.keys["wrist"].shape == (32, 32, 3) and store.keys["wrist"].dtype == "uint8"
    assert Run("runs/seen").config.task.options == {}
    assert any("success_rate" in line for line in Run("runs/rolled").metrics)
    ways = ["--episodes", "2", "--horizons", "3", "--num-envs", "2"]
    assert main(["eval", "runs/seen", *ways, "--video", "0"]) == 0
    results = json.loads(next((here / "runs/seen/eval").glob("*/results.json")).read_text())
    assert results["env_options"] == {} and results["episodes"] == 2
    assert main(["compare", "runs/seen", "runs/rolled", *ways, "--out", "pixels"]) == 0
    assert main(["render", "runs/seen", "--out", "seen.mp4", "--episodes", "1", "--size", "64"]) == 0
    assert (here / "seen.mp4").stat().st_size > 0
    line = said(capsys, "eval", "runs/seen", *ways, "--option", "camera_size=48")
    assert "camera_size=48 and the policy reads pictures of 32 x 32" in line


def test_without_an_opengl_nothing_is_loaded(here, capsys, monkeypatch):
    """Neither a policy nor a simulator: it is told at once, and nothing is left behind."""

    def load_policy(*args, **kwargs):
        raise AssertionError("the policy was loaded")

    for module in ("evaluate", "feedback"):
        monkeypatch.setattr(f"dopr_robot.evaluation.{module}.load_policy", load_policy)
    monkeypatch.setattr("dopr_robot.policies.load_policy", load_policy)
    monkeypatch.setenv("MUJOCO_GL", "disable")
    choose_backend.cache_clear()
    before = sorted(here.rglob("*"))
    for words in (
        ["eval", "runs/seen", "--video", "0"],
        ["eval", "runs/seen", "--feedback"],
        ["eval", "runs/seen", "--perturb", "brightness=0.1"],
        ["compare", "runs/seen", "runs/rolled"],
        ["render", "runs/seen", "--out", "unseen.mp4"],
        ["render", "runs/stack", "--out", "unseen.mp4"],
        ["train", "data.store=seen.zarr", *SMALL, "training.rollout_every=3"],
        ["collect", "PickPlace", "--episodes", "1", "--out", "unseen.zarr", "--cameras", "wrist"],
    ):
        assert "nothing can be drawn with MUJOCO_GL=disable" in said(capsys, *words), words
    choose_backend.cache_clear()
    assert sorted(here.rglob("*")) == before


def test_options_that_contradict_the_store_are_refused(here, capsys):
    line = said(capsys, "train", "data.store=stack.zarr", *SMALL, "task.options={cubs: 3}")
    assert "option of dopr_robot/Stack-v0: 'cubs': did you mean 'cubes'?" in line
    line = said(capsys, "train", "data.store=stack.zarr", *SMALL, "task=Stack", "task.options.cubes=2")
    assert "task.options={'cubes': 2}" in line and "{'cubes': 3}" in line
    assert "did you mean 'cubes'" in said(capsys, "eval", "runs/stack", "--option", "cubs=3")
    assert "cubes=9" in said(capsys, "eval", "runs/stack", "--option", "cubes=9")
    assert "cubes='many'" in said(capsys, "render", "runs/stack", "--out", "a.mp4", "--option", "cubes=many")
    collect = ["collect", "PickPlace", "--episodes", "3", "--out", "seen.zarr", "--size", "32", "--cameras"]
    assert "choose another --out" in said(capsys, *collect, "overview")
    assert "did you mean 'overview'" in said(capsys, *collect, "overveiw")


def test_a_replay_knows_the_options(here, capsys):
    assert main(["info", "stack.zarr", "--check"]) == 0
    assert "good" in capsys.readouterr().out


def test_a_configuration_of_before_says_its_task_in_a_word(tmp_path):
    from dopr_robot.training.config import load_config

    (tmp_path / "config.yaml").write_text("name: old\ntask: dopr_robot/Stack-v0\n")
    assert load_config(tmp_path / "config.yaml").task.name == "dopr_robot/Stack-v0"
    assert RunConfig(task="Stack").task.options is None


def test_a_task_is_checked_when_it_is_made():
    assert Task("Stack", {"cubes": 3}) == Task("dopr_robot/Stack-v0", {"cubes": 3})
    assert json.loads(json.dumps(Task("PickPlace", {"camera_size": (24, 32)}).options)) == {"camera_size": [24, 32]}
    for options, message in (
        ({"cubse": 3}, "did you mean 'cubes'"),
        ({"cubes": {3}}, "cubes=.* has to be a number"),
        ({"camera_size": "84"}, "camera_size='84'"),
        ({"cameras": ["wirst"]}, "did you mean 'wrist'"),
    ):
        with pytest.raises(UserError, match=message):
            Task("Stack", options)
    seen = {"state": (78,), "wrist": (24, 32, 3)}
    assert Task("Stack", {"cubes": 3}).seen_by(seen).options == {
        "cubes": 3,
        "cameras": ["wrist"],
        "camera_size": [24, 32],
    }
    with pytest.raises(UserError, match="several sizes"):
        Task("Stack").seen_by({"wrist": (24, 24, 3), "overview": (32, 32, 3)})
