import math

import numpy as np
import pytest
from scipy import stats

from dopr_robot.errors import UserError
from dopr_robot.evaluation import statistics
from dopr_robot.evaluation.rollouts.horizons import check_horizons
from dopr_robot.evaluation.rollouts.records import EpisodeRecord


def record(episode=0, outcome="success", step=None, kind="attain", length=10, **kwargs):
    return EpisodeRecord(
        episode=episode,
        seed=3 * 2**29 + episode,
        initial_state_sha256="0",
        outcome=outcome,
        first_success_step=step if outcome == "success" and kind == "attain" else None,
        first_failure_step=step if outcome == "failure" else None,
        length=length,
        return_=0.0,
        **kwargs,
    )


ATTAIN = [
    record(0, step=3),
    record(1, step=7),
    record(2, "timeout"),
    record(3, "failure", 5),
    record(4, "exception", error="E: x"),
]
SUSTAIN = [
    record(0, kind="sustain"),
    record(1, "failure", 4),
    record(2, "failure", 9),
    record(3, "exception", error="E: x"),
]


def test_success_at_a_horizon():
    assert statistics.success_matrix(ATTAIN, "attain", [2, 3, 7]).T.tolist() == [
        [False] * 5,
        [True, False, False, False, False],
        [True, True, False, False, False],
    ]
    assert statistics.success_matrix(SUSTAIN, "sustain", [1, 3, 4, 9]).T.tolist() == [
        [True, True, True, False],
        [True, True, True, False],
        [True, False, True, False],
        [True, False, False, False],
    ]


@pytest.mark.parametrize(("successes", "episodes"), [(0, 1), (0, 20), (13, 20), (20, 20), (87, 100)])
def test_wilson_is_the_formula(successes, episodes):
    z = 1.959963984540054
    p = successes / episodes
    centre = (p + z**2 / (2 * episodes)) / (1 + z**2 / episodes)
    half = z / (1 + z**2 / episodes) * math.sqrt(p * (1 - p) / episodes + z**2 / (4 * episodes**2))
    assert statistics.wilson(successes, episodes) == pytest.approx(
        (max(0, centre - half), min(1, centre + half)), abs=1e-12
    )


def test_the_simultaneous_band_covers_the_whole_curve():
    """In simulation: P(band misses the true curve anywhere) is at most 5 %, and not by being absurdly wide."""
    rng = np.random.default_rng(0)
    n, trials = 100, 2000
    horizons = np.arange(1, 61)
    truth = stats.geom(0.05).cdf(horizons)
    steps = rng.geometric(0.05, size=(trials, n))
    rates = (steps[:, :, None] <= horizons).mean(axis=1)
    missed = (np.abs(rates - truth) > statistics.dkw_half_width(n)).any(axis=1).mean()
    assert 0.01 < missed <= 0.05
    pointwise = (np.abs(rates - truth) > 1.96 * np.sqrt(truth * (1 - truth) / n)).any(axis=1).mean()
    assert pointwise > 0.2  # what the band is for


def test_curve_of_records():
    (point,) = statistics.curve(ATTAIN, "attain", [7])
    assert point == {
        "horizon": 7,
        "episodes": 5,
        "successes": 2,
        "success_rate": 0.4,
        "ci95": list(statistics.wilson(2, 5)),
        "band95": [0.0, 1.0],
    }
    (point,) = statistics.curve(ATTAIN * 20, "attain", [7])
    margin = math.sqrt(math.log(40) / 200)
    assert point["band95"] == pytest.approx([0.4 - margin, 0.4 + margin])
    assert statistics.curve([], "attain", [7]) == []


def test_median_and_its_interval():
    steps = [int(step) for step in np.random.default_rng(1).geometric(0.03, 80)]
    records = [record(i, step=step) if step <= 40 else record(i, "timeout") for i, step in enumerate(steps)]
    found = statistics.median_steps(records, "attain")
    ordered = sorted(steps)
    assert found["median"] == ordered[39]
    low = int(stats.binom.ppf(0.025, 80, 0.5)) - 1
    assert found["ci95"][0] == ordered[low]
    assert found["ci95"][1] is None or found["ci95"][1] == ordered[80 - low - 1]


def test_median_of_a_policy_that_never_succeeds():
    assert statistics.median_steps([record(i, "timeout") for i in range(30)], "attain") == {
        "median": None,
        "ci95": [None, None],
    }


def test_restricted_mean_is_the_area_beside_the_curve():
    horizon = 12
    rates = statistics.success_matrix(ATTAIN, "attain", range(horizon)).mean(axis=0)
    assert statistics.restricted_mean(ATTAIN, "attain", horizon)["mean"] == pytest.approx(horizon - rates.sum())
    rates = statistics.success_matrix(SUSTAIN, "sustain", range(horizon)).mean(axis=0)
    assert statistics.restricted_mean(SUSTAIN, "sustain", horizon)["mean"] == pytest.approx(rates.sum())


def test_mean_with_interval_is_scipys():
    values = np.random.default_rng(0).normal(size=30)
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert statistics.mean_with_interval(values)["ci95"] == pytest.approx(list(interval))
    assert statistics.mean_with_interval(values[:1]) == {"mean": values[0], "ci95": None}


def test_outcomes_causes_metrics_and_stages():
    records = [
        record(0, step=9, metrics={"coverage": 1.0}, stages={"lift": 2, "place": 9}),
        record(1, "failure", 5, cause="dropped", metrics={"coverage": 0.5}, stages={"lift": 4}),
        record(2, "exception", error="RuntimeError: lost", stages={"lift": 1}),
        record(3, "timeout", metrics={"coverage": 0.0}),
    ]
    summary = statistics.summary(records, "attain", [5, 10], ["lift", "place"])
    assert summary["outcomes"] == {"success": 1, "timeout": 1, "failure": 1, "exception": 1}
    assert summary["causes"] == {"dropped": 1, "RuntimeError": 1}
    assert summary["metrics"]["coverage"]["mean"] == 0.5
    assert summary["metrics"]["coverage"]["ci95"][0] == 0 and summary["metrics"]["coverage"]["ci95"][1] > 1
    bounded = statistics.summary(records, "attain", [5, 10], shares=["coverage"])
    assert bounded["metrics"]["coverage"]["ci95"] == [0, 1]
    assert [stage["successes"] for stage in summary["stages"]] == [2, 1]


@pytest.mark.parametrize("asked", [[0], [5, 101], [-3]])
def test_horizons_beyond_the_task_are_refused(asked):
    with pytest.raises(UserError, match=r"outside 1\.\.100"):
        check_horizons(asked, 100)


def test_horizons_beyond_a_task_that_can_be_longer():
    assert check_horizons([300, 5], 100, extensible=True) == [5, 300]
    with pytest.raises(UserError, match="horizon 0 "):
        check_horizons([0], 100, extensible=True)


def test_horizons_by_default():
    assert check_horizons(None, 160) == [20, 40, 60, 80, 100, 120, 140, 160]
    assert check_horizons(None, 3) == [1, 2, 3]
    assert check_horizons([9, 3, 9], 10) == [3, 9]
