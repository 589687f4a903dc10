"""Tasks whose figure is a return: alone, over budgets, and over tasks beside those whose figure is success."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dopr_robot.datasets import Attributes, Store
from dopr_robot.envs import get_task
from dopr_robot.envs.registration import TASKS
from dopr_robot.errors import UserError
from dopr_robot.evaluation import read_records
from dopr_robot.evaluation.statistics import aggregate, at_equal_loss, compare_over_tasks, seeds_test
from dopr_robot.study import load_study, run_study
from dopr_robot.study.choice import choose
from dopr_robot.study.returns import return_ranges
from dopr_robot.study.summary import read_table

CHEETAH, HOPPER = "HalfCheetah-v5", "Hopper-v5"


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """The real simulators, without a new interpreter for each rollout."""
    for name in (CHEETAH, HOPPER):
        monkeypatch.setitem(TASKS._entries, name, replace(get_task(name), in_process=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Stores whose demonstrations earn 2 and 5 a step."""
    made = tmp_path_factory.mktemp("stores")
    for name, reward in ((CHEETAH, 2.0), (HOPPER, 5.0)):
        spec, rng = get_task(name), np.random.default_rng(0)
        with Store.create(made / f"{spec.name}.zarr", Attributes(task=name, observations=("state",))) as store:
            for seed in range(3):
                arrays = {
                    "state": rng.normal(size=(40, *spec.observations["state"])),
                    "action": rng.uniform(-1, 1, (40, len(spec.action.low))),
                }
                store.append({**arrays, "rewards": np.full(40, reward)}, seed=seed, success=True)
    return made


@pytest.fixture(scope="module")
def path(make_study, folder) -> Path:
    return make_study("""
seeds: [0, 1]
training: {steps: 8, batch_size: 32, warmup_steps: 2, checkpoint_every: 8, rollout_every: 4}
evaluation: {selection_episodes: 2, test_episodes: 3}
""")


def task(folder: Path, name: str, more: str = "") -> str:
    return f"{{task: {name}, store: {folder / get_task(name).name}.zarr, horizons: [10, 30]{more}}}"


def records(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "arms.jsonl").read_text().splitlines()]


@pytest.mark.drawn
def test_return_is_told_where_the_reward_says_more(path, folder, tmp_path):
    """HalfCheetah can not fail: return tells the arms apart, chooses their rate and their best checkpoint, and is what is tested."""
    study = load_study(path, [f"tasks=[{task(folder, CHEETAH)}]"])
    result = run_study(study, out=tmp_path / "out", workers=1)
    out, rows = result.folder, read_table(result.folder)
    chosen = {row["optimizer"]: float(row["learning_rate"]) for row in rows}
    for optimizer in chosen:
        tried = {}
        for arm in records(out):
            if arm["optimizer"] == optimizer:
                tried.setdefault(arm["learning_rate"], []).append(arm["selection_return"])
                looks = [(point["return"], point["step"]) for point in arm["curve"] if "return" in point]
                assert len(looks) == 2 and arm["best_step"] == max(looks)[1]
                assert arm["curve"][-1]["success_rate"] == 1.0
        assert chosen[optimizer] == max(tried, key=lambda rate: sum(tried[rate]))
    returns = {
        (row["optimizer"], row["horizon"]): np.array(
            [
                [record.return_at(int(row["horizon"])) for record in read_records(folder / "episodes.jsonl")]
                for folder in sorted((out / "test").glob(f"*-{row['optimizer']}-*"))
            ]
        )
        for row in rows
    }
    for row in rows:
        own = returns[row["optimizer"], row["horizon"]]
        assert own.shape == (2, 3) and float(row["return"]) == pytest.approx(own.mean())
        assert float(row["return_low"]) < float(row["return"]) < float(row["return_high"])
        assert (row["return_zero"], row["return_one"]) == ("0.0", "60.0")  # 30 steps of 2
        if row["reference"]:
            other = returns[row["reference"], row["horizon"]]
            assert float(row["return_difference"]) == pytest.approx(own.mean() - other.mean())
            assert float(row["p"]) == pytest.approx(seeds_test(own.mean(axis=1), other.mean(axis=1)))
    assert "return" in str(result).splitlines()[0]
    page = (out / "report.html").read_text()
    assert "earns a larger return" in page and "is ahead of" not in page and list(out.glob("returns-*.png"))
    assert "return at 30 steps" in page and "success at 30 steps" not in page
    (panel,) = [axes for axes in result.plot().axes if axes.has_data()]
    assert panel.get_ylabel() == "return"


def test_tasks_of_success_and_of_return_are_summed_up_as_shares_of_what_the_demonstrations_earn(path, folder, tmp_path):
    (own,) = load_study(path).tasks
    entries = [task(folder, CHEETAH), task(folder, HOPPER, ", return_range: [-50, 150]")]
    entries.append(f"{{task: QuadrotorTrack, store: {own.store}, horizons: [10, 30]}}")
    words = [f"tasks=[{', '.join(entries)}]", "seeds=[0]", "learning_rates=[3e-3]", "budgets=[0.5, 1]"]
    words += ["training.rollout_every=8", "training.validate_every=8"]
    out = run_study(load_study(path, words), out=tmp_path / "out", workers=1).folder
    rows = {(row["task"], row["optimizer"], row["budget"]): row for row in read_table(out) if row["horizon"] == "30"}

    def score(name: str, optimizer: str) -> float:
        row = rows[name, optimizer, "1.0"]
        zero, one = {CHEETAH: (0, 60), HOPPER: (-50, 150)}.get(name, (None, None))
        return float(row["success"]) if one is None else (float(row["return"]) - zero) / (one - zero)

    names = (CHEETAH, HOPPER, "QuadrotorTrack")
    adamw, dopr = [each for each in json.loads((out / "over_tasks.json").read_text()) if each["budget"] == 1]
    assert adamw["return_ranges"] == {CHEETAH: [0, 60], HOPPER: [-50, 150]}
    for row in (adamw, dopr):
        assert row["mean"] == pytest.approx(np.mean([score(name, row["optimizer"]) for name in names]))
    differences = [score(name, "dopr_adamw") - score(name, "adamw") for name in names]
    assert dopr["difference"] == pytest.approx(np.mean(differences))
    assert (dopr["wins"], dopr["losses"]) == (sum(d > 0 for d in differences), sum(d < 0 for d in differences))
    page = (out / "report.html").read_text()
    assert "mean score" in page and "success or return at the longest horizon" in page
    assert f"{CHEETAH} the return by the longest horizon, of which 0 counts as 0 and 60 as 1; of {HOPPER}" in page
    assert "hundredths of the return that counts as 1" in page
    half = np.mean([
        (float(rows[name, "dopr_adamw", "0.5"][key]) - float(rows[name, "adamw", "0.5"][key])) / unit
        for name, key, unit in ((CHEETAH, "return", 60), (HOPPER, "return", 200), ("QuadrotorTrack", "success", 1))
    ])  # fmt: skip
    assert f"points on average over settings: {100 * half:+.1f} after 0.5 of the training" in page
    assert {each.name for each in out.glob("budgets-*.png")} == {
        f"budgets-{name}-regression_mlp.png" for name in ("HalfCheetah", "Hopper", "QuadrotorTrack")
    }


def test_what_counts_as_1_is_said_by_the_demonstrations_or_the_file_before_anything_is_trained(path, folder, tmp_path):
    def ranges(entry: str, horizon: int = 30) -> dict:
        study = load_study(path, [f"tasks=[{entry}]"])
        return return_ranges(study, {each.label: [5, horizon] for each in study.tasks})

    assert ranges(task(folder, CHEETAH)) == {CHEETAH: (0.0, 60.0)}
    assert ranges(task(folder, HOPPER), 1000) == {HOPPER: (0.0, 200.0)}  # what has ended earns nothing more
    assert ranges(task(folder, HOPPER, ", return_range: [-1, 7]")) == {HOPPER: (-1.0, 7.0)}
    (own,) = load_study(path).tasks
    assert ranges(f"{{task: QuadrotorTrack, store: {own.store}}}") == {}
    for name, reward in (("none", None), ("loss", -1.0)):
        with Store.create(tmp_path / f"{name}.zarr", Attributes(task=CHEETAH, observations=("state",))) as store:
            more = {} if reward is None else {"rewards": np.full(40, reward)}
            store.append({"state": np.zeros((40, 17)), "action": np.zeros((40, 6)), **more}, seed=0)
    for entry, message in (
        (f"{{task: {CHEETAH}, store: {tmp_path / 'none.zarr'}}}", "tells no rewards"),
        (f"{{task: {CHEETAH}, store: {tmp_path / 'loss.zarr'}}}", "earn -30 by step 30, which is no scale"),
        (task(folder, CHEETAH, ", return_range: [3, 1]"), r"and is \[3.0, 1.0\]"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            ranges(entry)
        assert "return_range: [LOW, HIGH] of HalfCheetah-v5" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="tells no rewards"):
        words = [
            f"tasks=[{{task: {CHEETAH}, store: {tmp_path / 'none.zarr'}, horizons: [3]}}]",
            "training.batch_size=8",
        ]
        run_study(load_study(path, words), out=tmp_path / "out", workers=1)
    assert not (tmp_path / "out" / "runs").exists()


def test_hyperparameters_of_several_tasks_are_chosen_by_shares_and_not_by_the_task_that_pays_most(path, folder):
    study = load_study(
        path,
        [
            f"tune={{tasks: [{task(folder, CHEETAH)}, {task(folder, HOPPER)}], seeds: [0]}}",
            "optimizers=[adamw]",
        ],
    )
    returns = {(CHEETAH, 1e-3): 10.0, (CHEETAH, 3e-3): 50.0, (HOPPER, 1e-3): 1500.0, (HOPPER, 3e-3): 1400.0}
    done = {
        arm.name: {
            **arm.key, "selection_successes": {"30": 2}, "selection_episodes": 2, "validation_loss": 0.1,
            "selection_return": returns[arm.entry.task, arm.learning_rate],
        }
        for arm in study.arms()
    }  # fmt: skip
    ranges = {CHEETAH: (0.0, 100.0), HOPPER: (0.0, 3000.0)}
    assert [each["lr"] for each in choose(study, done, ranges).values()] == [3e-3]
    for record in done.values():  # one that diverged is what counts as 0
        if record["task"] == CHEETAH and record["learning_rate"] == 3e-3:
            record["selection_return"] = None
    assert [each["lr"] for each in choose(study, done, ranges).values()] == [1e-3]


def test_shares_have_no_bounds_and_what_is_compared_within_a_task_no_scale():
    rng = np.random.default_rng(0)
    first, second = rng.uniform(1.5, 2.5, (4, 3)), rng.uniform(-1.5, 0.5, (4, 3))
    assert aggregate(first, rates=False).mean_tasks_ci95[1] > first.mean() > 1
    low, high = compare_over_tasks(first, second, rates=False).ci95
    assert low < (first - second).mean() < high and high > 1
    scaled = np.array([1.0, 10.0, 100.0, 1000.0])[:, None]
    plain, other = (
        compare_over_tasks(a * s, b * s, rates=False) for a, b, s in ((first, second, 1), (first, second, scaled))
    )
    for name in ("improvement", "wins", "ties", "losses"):
        assert getattr(plain, name) == getattr(other, name)
    assert other.difference > 100 * plain.difference  # and a mean has one
    path = [(loss, 3 / loss) for loss in (1.0, 0.5, 0.2)]
    found = at_equal_loss([path, path], [[(loss, 1 / loss) for loss, _ in path]] * 2, rates=False)
    assert found.difference > 1 and found.ci95[1] > 1
