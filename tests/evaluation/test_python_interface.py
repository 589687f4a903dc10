"""From Python as from the command: the same work, the same text, and for a mistake the same line."""

import json

import numpy as np
import pytest

import dopr_robot as dopr
from dopr_robot.cli import main
from dopr_robot.datasets import Attributes, Store
from dopr_robot.experiment import configuration
from dopr_robot.training import compose_config


@pytest.fixture
def here(tmp_path, monkeypatch, make_run, point_tasks):
    """Two runs, a store of the task, and one of a task that nobody knows."""
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "a", evaluation={"episodes": 4, "video": 0})
    make_run(tmp_path / "b", seed=1, scale=0.2, evaluation={"episodes": 4, "video": 0}, optimizer={"name": "adamw"})
    for name, task in (("point.zarr", point_tasks[0]), ("other.zarr", None)):
        with Store.create(name, Attributes(task=task, control_hz=10, observations=("position",))) as store:
            ones = np.ones((20, 2))
            store.append({"position": ones, "action": ones}, seed=0, success=True)
    return tmp_path


def test_every_public_name_is_found_and_documented():
    for name in dopr.__all__:
        found = getattr(dopr, name)
        assert name == "__version__" or (found.__doc__ or "").strip(), name
    assert set(dopr.__all__) == {*dopr._LAZY, "__version__"}


MISTAKES = {
    "collect: unknown task": (lambda: dopr.collect("PickPlce", 1, "new.zarr"), "collect PickPlce --episodes 1 --out new.zarr"),
    "collect: no expert": (lambda: dopr.collect("point/Reach-v0", 1, "new.zarr"), "collect point/Reach-v0 --episodes 1 --out new.zarr"),
    "collect: none asked for": (lambda: dopr.collect("PickPlace", 0, "new.zarr"), "collect PickPlace --episodes 0 --out new.zarr"),
    "collect: no such option": (
        lambda: dopr.collect("PickPlace", 1, "new.zarr", options={"cubes": 2}),
        "collect PickPlace --episodes 1 --out new.zarr --option cubes=2",
    ),
    "collect: another task's store": (
        lambda: dopr.collect("PickPlace", 2, "other.zarr"), "collect PickPlace --episodes 2 --out other.zarr",
    ),
    "collect: seeds": (
        lambda: dopr.collect("PickPlace", 1, "new.zarr", seed=10**9), "collect PickPlace --episodes 1 --out new.zarr --seed 1000000000",
    ),
    "convert: nothing there": (lambda: dopr.convert("nowhere.hdf5", "new.zarr"), "convert nowhere.hdf5 new.zarr"),
    "convert: rate": (lambda: dopr.convert("point.zarr", "new.zarr", hz=0), "convert point.zarr new.zarr --hz 0"),
    "convert: format": (lambda: dopr.convert("point.zarr", "x", write_as="lerobt"), "convert point.zarr x --to lerobt"),
    "edit: nothing left": (lambda: dopr.edit("point.zarr", "new.zarr", length=(50, None)), "edit point.zarr new.zarr --length 50:"),
    "edit: key": (lambda: dopr.edit("point.zarr", "new.zarr", drop=["positoin"]), "edit point.zarr new.zarr --drop positoin"),
    "train: no store": (lambda: dopr.train(), "train"),
    "train: experiment": (lambda: dopr.train("pik_place"), "train pik_place"),
    "train: key": (lambda: dopr.train("pick_place", **{"training.stepz": 5}), "train pick_place training.stepz=5"),
    "train: type": (lambda: dopr.train("pick_place", steps="many"), "train pick_place training.steps=many"),
    "train: range": (lambda: dopr.train("pick_place", batch_size=0), "train pick_place training.batch_size=0"),
    "train: policy": (lambda: dopr.train("pick_place", policy="flow_unt"), "train pick_place policy=flow_unt"),
    "train: no run": (lambda: dopr.train(resume="nowhere"), "train --resume nowhere"),
    "train: words": (lambda: dopr.train("pick_place", "training.steps=1.5"), "train pick_place training.steps=1.5"),
    "eval: nothing there": (lambda: dopr.evaluate("nowhere"), "eval nowhere"),
    "eval: no run": (lambda: dopr.evaluate("."), "eval ."),
    "eval: task": (lambda: dopr.evaluate("a", task="point/Reech-v0"), "eval a --task point/Reech-v0"),
    "eval: horizon": (lambda: dopr.evaluate("a", horizons=[999]), "eval a --horizons 999"),
    "eval: episodes": (lambda: dopr.evaluate("a", episodes=0), "eval a --episodes 0"),
    "eval: copies": (lambda: dopr.evaluate("a", num_envs=0), "eval a --num-envs 0"),
    "eval: seed": (lambda: dopr.evaluate("a", seed=99999), "eval a --seed 99999"),
    "eval: length": (lambda: dopr.evaluate("a", lengths=[0]), "eval a --lengths 0"),
    "eval: acting": (lambda: dopr.evaluate("a", acting={"ensembl": True}), "eval a --acting ensembl=true"),
    "feedback: no store": (lambda: dopr.feedback("a"), "eval a --feedback"),
    "compare: one run": (lambda: dopr.compare(["a"]), "compare a"),
    "compare: nothing there": (lambda: dopr.compare(["a", "nowhere"]), "compare a nowhere"),
    "compare: labels": (lambda: dopr.compare(["a", "b"], labels=["x", "y", "z"]), "compare a b --labels x,y,z"),
    "compare: block": (lambda: dopr.compare(["a", "b"], sequential=True, block=0), "compare a b --sequential --block 0"),
    "study: nothing there": (lambda: dopr.run_study("nowhere.yaml"), "compare nowhere.yaml"),
    "study: workers": (lambda: dopr.run_study("nowhere.yaml", workers=0), "compare nowhere.yaml --workers 0"),
    "render: nothing there": (lambda: dopr.render("nowhere", "x.mp4"), "render nowhere --out x.mp4"),
    "render: no film": (lambda: dopr.render("a", "x.gif"), "render a --out x.gif"),
    "render: camera": (lambda: dopr.render("a", "x.mp4", camera="wrist"), "render a --out x.mp4 --camera wrist"),
    "render: no seed": (lambda: dopr.render("other.zarr", "x.mp4"), "render other.zarr --out x.mp4"),
    "info: nothing there": (lambda: dopr.info("nowhere"), "info nowhere"),
    "check: no store": (lambda: dopr.check_store("a"), "info a --check"),
    "repair: nothing there": (lambda: dopr.repair("nowhere"), "repair nowhere"),
    "tasks: unknown": (lambda: dopr.describe_task("PickPlce"), "tasks PickPlce"),
    "policies: unknown": (lambda: dopr.list_policies("unt"), "policies unt"),
    "runs: nothing there": (lambda: dopr.list_runs("nowhere"), "runs nowhere"),
    "config: unknown": (lambda: dopr.explain("training.stepz"), "config training.stepz"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_raises_the_line_that_the_command_prints(case, here, capsys):
    call, words = MISTAKES[case]
    before = sorted(path.name for path in here.rglob("*"))
    with pytest.raises(dopr.UserError) as raised:
        call()
    assert main(words.split()) == 2
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1] == "dopr: " + " ".join(str(raised.value).split())
    assert captured.out == ""
    assert sorted(path.name for path in here.rglob("*")) == before


def test_what_is_printed_is_what_the_command_prints(here, capsys):
    def said(*words) -> str:
        capsys.readouterr()
        assert main(list(words)) == 0
        return capsys.readouterr().out

    results = dopr.evaluate("a")
    command = said("eval", "a").splitlines()
    assert str(results).splitlines() == command[:-1] and command[-1].endswith("a/eval/20-seed0-2")
    assert json.loads(said("compare", "a", "b", "--episodes", "4", "--json")).keys() > {"folder", "pairs"}
    comparison = dopr.compare(["a", "b"], episodes=4)
    assert f"{comparison}\n{comparison.folder}\n" == said("compare", "a", "b", "--episodes", "4")
    for thing in (results, results.curve, comparison, dopr.Run("a"), dopr.info("a"), dopr.info("point.zarr")):
        assert "<table>" in thing._repr_html_() and "<script" not in thing._repr_html_()
    assert f"{dopr.info('a')}\n" == said("info", "a")
    assert f"{dopr.info('point.zarr')}\n" == said("info", "point.zarr")
    assert f"{dopr.check_store('point.zarr')}\n" == said("info", "point.zarr", "--check")
    assert f"{dopr.list_runs('.')}\n" == said("runs", ".")
    assert f"{dopr.list_optimizers()}\n" == said("optimizers")
    assert f"{dopr.list_policies('flow')}\n" == said("policies", "flow")
    assert f"{dopr.describe_task('PickPlace')}\n" == said("tasks", "PickPlace")
    assert f"{dopr.explain('training.ema_power')}\n" == said("config", "training.ema_power")


def test_a_section_is_explained_by_its_last_part_and_hinted_at_where_it_is_misspelt():
    assert str(dopr.explain("network")) == str(dopr.explain("policy.network"))
    with pytest.raises(dopr.UserError, match=r"'trainig': did you mean 'training'\?"):
        dopr.explain("trainig")


def test_a_curve_is_arrays_and_a_frame(here):
    pandas = pytest.importorskip("pandas")
    results = dopr.evaluate("a", episodes=6, horizons=[8, 16, 24])
    curve, points = results.curve, results.content["curve"]
    assert curve.horizon.tolist() == [8, 16, 24] and curve.seconds.tolist() == [0.8, 1.6, 2.4]
    assert curve.success_rate.tolist() == [point["success_rate"] for point in points]
    assert np.column_stack([curve.low, curve.high]).tolist() == [point["ci95"] for point in points]
    assert curve.successes.dtype.kind == "i" and curve.episodes.tolist() == [6] * 3
    assert list(curve) == points and curve[-1] == points[-1] and curve[1:].horizon.tolist() == [16, 24]
    frame = curve.to_pandas()
    assert frame.set_index("horizon").loc[24, "success_rate"] == results.success_rate == curve.success_rate[-1]
    assert len(pandas.DataFrame(results.episodes)) == 6
    pairs = dopr.compare([results, dopr.evaluate("b", episodes=6)], horizons=[24]).to_pandas()
    assert len(pairs) == 1 and -1 <= pairs.low[0] <= pairs.difference[0] <= pairs.high[0] <= 1


SPELLINGS = {
    "last part": {"steps": 50, "lr": 1e-3, "dim": None},
    "whole key": {"training.steps": 50, "optimizer.lr": 1e-3},
    "nested": {"training": {"steps": 50}, "optimizer": {"lr": 1e-3}},
    "mixed": {"training": {"steps": 50}, "lr": 1e-3},
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_settings_by_name_are_those_of_the_command(spelling):
    from dopr_robot.training import whole_keys

    settings = {key: value for key, value in SPELLINGS[spelling].items() if value is not None}
    assert configuration("pick_place", whole_keys(settings)) == compose_config(
        "pick_place", ["training.steps=50", "optimizer.lr=1e-3"]
    )


def test_settings_of_a_policy_may_be_nested():
    from dopr_robot.training import whole_keys

    nested = whole_keys({"policy": {"name": "flow_unet", "network": {"time_dim": 64}}, "horizon": 8})
    assert configuration("pick_place", nested) == compose_config(
        "pick_place", ["policy=flow_unet", "policy.network.time_dim=64", "policy.horizon=8"]
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stepz": 5}, "unknown config key 'stepz': did you mean 'training.steps'"),
        ({"optimizr": "adamw"}, "did you mean 'optimizer"),
        ({"training": {"stepz": 5}}, "did you mean 'training.steps'"),
        ({"policy": {"netwrk": {"dim": 4}}}, "netwrk"),
    ],
)
def test_a_setting_that_nobody_knows_is_answered_with_the_closest(settings, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(dopr.UserError, match=message):
        dopr.train("pick_place", **settings)
    assert not any(tmp_path.iterdir())


def test_every_subcommand_has_its_function():
    from dopr_robot.cli import COMMANDS

    functions = {
        "eval": "evaluate", "tasks": "list_tasks", "policies": "list_policies", "optimizers": "list_optimizers",
        "runs": "list_runs", "config": "explain", "demo": "train",
    }  # fmt: skip
    for command in COMMANDS.keys() - {"completion"}:  # a shell's alone
        assert callable(getattr(dopr, functions.get(command, command))), command
