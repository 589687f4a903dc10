"""Return versus horizon: noted in the records, computed from them alone."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from dopr_robot.envs import TASKS
from dopr_robot.evaluation import Evaluation, read_records, run_evaluation
from dopr_robot.evaluation.compare import Comparison
from dopr_robot.evaluation.comparison import compare_evaluated, load_evaluated, write_comparison
from dopr_robot.evaluation.perturbed import evaluate_perturbed
from dopr_robot.evaluation.results import Results
from dopr_robot.evaluation.rollouts.records import EpisodeRecord
from dopr_robot.evaluation.statistics import (
    by_length,
    difference_curve,
    known_horizons,
    perturbed,
    return_curve,
    return_matrix,
)

HORIZONS = [10, 20, 40]


@pytest.fixture
def earning(point_tasks, monkeypatch):
    """The task of staying, whose reward is reported."""
    spec = replace(TASKS[point_tasks[1]], reward="nearness", options={"observation_noise": "on the position"})
    monkeypatch.setitem(TASKS._entries, spec.id, spec)
    return spec.id


def record(episode, returns, length, total):
    return EpisodeRecord(episode, episode, "0", "failure", None, length, length, total, returns=returns)


def evaluated(policy, task, folder, **kwargs):
    return run_evaluation(Evaluation(policy, task, episodes=12, **kwargs), folder, num_envs=4, video=0)


def without_returns(folder):
    """As an earlier version wrote it."""
    path = folder / "episodes.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "returns"}) + "\n" for line in lines))
    results = json.loads((folder / "results.json").read_text())
    del results["returns"]
    (folder / "results.json").write_text(json.dumps(results))


def test_a_record_says_its_return_at_a_horizon():
    fell = record(0, {"10": 4.0}, 15, 5.5)
    assert [fell.return_at(h) for h in (5, 10, 15, 20)] == [None, 4.0, 5.5, 5.5]
    assert EpisodeRecord.from_dict(json.loads(fell.to_json())) == fell
    old = EpisodeRecord.from_dict({key: value for key, value in json.loads(fell.to_json()).items() if key != "returns"})
    assert [old.return_at(h) for h in (10, 15)] == [None, 5.5]
    assert known_horizons([fell, old], [5, 10, 20]) == [20]
    assert return_curve([fell, old], [10, 20])[0]["horizon"] == 20 and return_curve([], [10]) == []


@pytest.mark.drawn
def test_an_evaluation_reports_it(policy, earning, tmp_path):
    """What was earned by a horizon is what an evaluation to that horizon says was earned."""
    whole = evaluated(policy, earning, tmp_path / "whole", horizons=HORIZONS)
    assert [point["horizon"] for point in whole["returns"]] == HORIZONS
    for point in whole["returns"]:
        short = evaluated(policy, earning, tmp_path / str(point["horizon"]), horizons=[point["horizon"]])
        values = np.array([each.return_ for each in read_records(tmp_path / str(point["horizon"]) / "episodes.jsonl")])
        assert short["returns"] == [short["returns"][-1]] and short["returns"][0]["mean"] == point["mean"]
        margin = stats.t.ppf(0.975, 11) * values.std(ddof=1) / np.sqrt(12)
        assert point["ci95"] == pytest.approx([values.mean() - margin, values.mean() + margin])
        assert point["band95"][0] <= point["ci95"][0] < point["ci95"][1] <= point["band95"][1]
    assert (tmp_path / "whole" / "returns.png").stat().st_size > 5000
    page = (tmp_path / "whole" / "report.html").read_text()
    assert "Return versus horizon" in page and "the reward pays nearness" in page
    told = str(Results(tmp_path / "whole"))
    assert "mean return" in told and f"{whole['returns'][-1]['mean']:.1f}" in told


def test_other_tasks_do_not(policy, point_tasks, tmp_path):
    found = evaluated(policy, point_tasks[0], tmp_path / "e")
    assert found["returns"] == [] and not (tmp_path / "e" / "returns.png").exists()
    assert all(not each.returns for each in read_records(tmp_path / "e" / "episodes.jsonl"))


def test_an_evaluation_of_before_goes_on(policy, earning, tmp_path):
    evaluated(policy, earning, tmp_path / "e", horizons=HORIZONS)
    without_returns(tmp_path / "e")
    assert "mean return" not in str(Results(tmp_path / "e"))
    more = Evaluation(policy, earning, episodes=14, horizons=HORIZONS)
    results = run_evaluation(more, tmp_path / "e", num_envs=2, video=0, resume=True)
    assert 40 in [point["horizon"] for point in results["returns"]]


@pytest.mark.drawn
def test_what_a_perturbation_costs_in_return(policy, earning, tmp_path):
    """Paired by seed, as success is, though nothing fails under it."""
    asked = Evaluation(policy, earning, episodes=12, horizons=HORIZONS)
    found = evaluate_perturbed(asked, tmp_path / "e", {"observation_noise": [0.3]}, video=0)
    (arm,) = found["perturbed"]
    under, plain = (
        return_matrix(read_records(tmp_path / "e" / place / "episodes.jsonl"), HORIZONS)
        for place in ("perturbed/observation_noise=0.3", "")
    )
    assert [point["mean"] for point in arm["returns"]] == pytest.approx(under.mean(0).tolist())
    difference = difference_curve(under[None], plain[None], rates=False)
    assert [point["mean"] for point in arm["return_differences"]] == pytest.approx((under - plain).mean(0).tolist())
    assert [point["ci95"] for point in arm["return_differences"]] == np.stack(
        [difference.low, difference.high], 1
    ).tolist()
    assert arm["return_differences"][-1]["mean"] != 0
    assert "more than unperturbed" in (tmp_path / "e" / "report.html").read_text()
    assert f"{arm['return_differences'][-1]['mean']:+.1f}" in str(Results(tmp_path / "e"))


def test_return_by_length_and_under_perturbations_only_where_it_is_reported_and_known():
    short = [record(i, {"10": float(i)}, 40, 2.0 * i) for i in range(3)]
    assert [point["return"]["mean"] for point in by_length({1: short}, "sustain", 10, returned=True)] == [1.0]
    assert by_length({1: short}, "sustain", 10)[0]["return"] is None
    old = [replace(each, returns={}) for each in short]
    assert by_length({1: old}, "sustain", 10, returned=True)[0]["return"] is None
    (arm,) = perturbed(old, [({"noise": 1.0}, short)], "sustain", [10, 40], returned=True)
    assert [point["horizon"] for point in arm["return_differences"]] == [40] and len(arm["differences"]) == 2
    (arm,) = perturbed(short, [({"noise": 1.0}, short)], "sustain", [10, 40])
    assert arm["returns"] == arm["return_differences"] == []


def test_the_band_holds_the_whole_curve():
    """200 evaluations of 40 episodes whose returns grow by steps of their own: about 95 % of the bands hold the truth everywhere."""
    rng = np.random.default_rng(0)
    held = held_at_each = 0
    for _ in range(200):
        values = rng.normal(1.0, 1.0, (40, 8)).cumsum(axis=1)
        records = [
            record(i, {str(h): v for h, v in enumerate(row, start=1)}, 9, row[-1]) for i, row in enumerate(values)
        ]
        points = return_curve(records, range(1, 9))
        held += all(point["band95"][0] <= point["horizon"] <= point["band95"][1] for point in points)
        held_at_each += all(point["ci95"][0] <= point["horizon"] <= point["ci95"][1] for point in points)
    assert 0.9 < held / 200 < 0.99
    assert held_at_each < held


def test_differences_of_returns_have_no_bounds():
    rng = np.random.default_rng(1)
    first, second = rng.normal(1000, 50, (1, 60, 2)), rng.normal(900, 50, (1, 60, 2))
    found = difference_curve(first, second, resamples=20_000, rates=False)
    pairs = (first - second)[0, :, 0]
    expected = stats.bootstrap((pairs,), np.mean, n_resamples=20_000, method="percentile", rng=3).confidence_interval
    assert found.difference[0] == pytest.approx(pairs.mean())
    assert [found.low[0], found.high[0]] == pytest.approx(list(expected), abs=1.0)
    same = difference_curve(first, first, rates=False)
    assert not same.low.any() and not same.high.any()


def test_a_difference_is_the_same_in_single_precision():
    first, second = np.random.default_rng(0).normal(5, 2, (2, 3, 40, 2)).astype(np.float32)
    found = difference_curve(first, second, rates=False)
    exact = difference_curve(first.astype(np.float64), second.astype(np.float64), rates=False)
    np.testing.assert_allclose([found.low, found.band_high], [exact.low, exact.band_high], rtol=1e-4)


@pytest.mark.parametrize("old", [False, True])
def test_a_comparison_tells_the_paired_difference(point_policy, earning, tmp_path, old):
    places = [tmp_path / "calm", tmp_path / "shaky"]
    for noise, place in zip((0.02, 0.3), places, strict=True):
        evaluated(point_policy(noise), earning, place, horizons=HORIZONS)
    if old:
        without_returns(places[1])
    runs = [load_evaluated(place, place.name, None) for place in places]
    result = compare_evaluated(runs)
    told = [point["horizon"] for point in result["methods"][0]["returns"]]
    assert told[-1] == 40 and (told == HORIZONS) is not old
    cell = result["pairs"][0]["returns"][-1]
    values = [return_matrix(run.records, [40])[:, 0] for run in runs]
    assert cell["difference"] == pytest.approx((values[0] - values[1]).mean())
    assert cell["band95"][0] <= cell["difference"] <= cell["band95"][1] and cell["ci95"][0] < cell["ci95"][1]
    result["sequential"] = None
    write_comparison(result, runs, tmp_path / "out")
    comparison = Comparison(tmp_path / "out", result, runs)
    assert f"{cell['difference']:+.1f}" in str(comparison) and (tmp_path / "out" / "returns.png").exists()
    assert "difference of return" in (tmp_path / "out" / "report.html").read_text()


def test_training_seeds_are_the_outer_level(point_policy, earning, tmp_path):
    runs = []
    for seed, noise in enumerate((0.02, 0.05, 0.2, 0.3)):
        evaluated(point_policy(noise), earning, tmp_path / str(seed), horizons=HORIZONS)
        runs.append(load_evaluated(tmp_path / str(seed), "calm" if seed < 2 else "shaky", seed))
    result = compare_evaluated(runs)
    assert [len(method["training_seeds"]) for method in result["methods"]] == [2, 2]
    means = [method["returns"][-1]["mean"] for method in result["methods"]]
    assert result["pairs"][0]["returns"][-1]["difference"] == pytest.approx(means[0] - means[1])
