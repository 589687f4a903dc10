"""Tests that stay valid however often one looks, on successes and on bounded figures."""

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad

from dopr_robot.envs import get_task
from dopr_robot.errors import UserError
from dopr_robot.evaluation import EpisodeRecord
from dopr_robot.evaluation.sequential import figure
from dopr_robot.evaluation.statistics import decided_after, evidence, mean_interval


@pytest.mark.parametrize(("won", "lost"), [(9, 3), (0, 5), (60, 45)])
def test_of_successes_it_is_robbins_mixture(won, lost):
    def ratio(p):
        return np.exp(won * np.log(2 * p) + lost * np.log(2 * (1 - p))) * stats.beta.pdf(p, 0.5, 0.5)

    differences = np.random.default_rng(0).permutation([1.0] * won + [-1.0] * lost + [0.0] * 7)
    assert evidence(differences)[-1] == pytest.approx(quad(ratio, 0, 1, limit=200)[0], rel=1e-4)


def test_it_is_a_fair_bet_at_any_mean_of_zero():
    """The expectation over all sequences of three differences with mean 0 is exactly 1."""
    values, chances = np.array([-1.0, 0.25, 0.5]), np.array([0.25, 0.5, 0.25])
    assert values @ chances == 0
    grid = np.stack(np.meshgrid(values, values, values, indexing="ij"), axis=-1).reshape(-1, 3)
    weights = np.prod(np.stack(np.meshgrid(chances, chances, chances, indexing="ij"), axis=-1).reshape(-1, 3), axis=1)
    assert evidence(grid)[:, -1] @ weights == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["coverage", "time", "stages", "order"])
def test_under_no_difference_false_alarms_are_rare_at_all_looks_together(kind):
    rng = np.random.default_rng(3)
    difficulty = rng.uniform(0.1, 0.9, (2000, 150))
    if kind == "coverage":
        first, second = (rng.beta(4 * difficulty, 4 * (1 - difficulty)) for _ in range(2))
    elif kind == "time":
        first, second = (np.minimum(rng.exponential(difficulty), 1) for _ in range(2))
    else:
        first, second = (rng.binomial(3, difficulty) / 3 for _ in range(2))
    differences = np.sign(first - second) if kind == "order" else first - second
    assert (evidence(differences) >= 20).any(axis=1).mean() <= 0.05


def test_the_interval_holds_the_mean_and_says_when_no_difference_matters():
    rng = np.random.default_rng(4)
    missed = 0
    for _ in range(60):
        low, high = mean_interval(rng.choice([-1.0, 0.0, 1.0], p=[0.1, 0.6, 0.3], size=120))
        missed += not low <= 0.2 <= high
    assert missed <= 6  # nominal: 3
    low, high = mean_interval(rng.normal(0.0, 0.02, 400).clip(-1, 1))
    assert -0.05 < low < 0 < high < 0.05
    assert mean_interval([]) == (-1.0, 1.0) and mean_interval([1.0] * 400)[0] > 0.95


def test_a_large_difference_is_decided_early_and_what_is_not_bounded_is_refused():
    rng = np.random.default_rng(9)
    differences = (rng.random(500) < 0.9).astype(float) - (rng.random(500) < 0.5)
    assert decided_after(differences) < 100 and decided_after(np.zeros(50)) is None
    with pytest.raises(ValueError, match=r"\[-1, 1\]"):
        evidence([0.0, 1.5])


def record(**changes):
    common = {"episode": 0, "seed": 0, "initial_state_sha256": None, "outcome": "timeout", "first_success_step": None}
    rest = {"first_failure_step": None, "length": 100, "return_": -3.0, "error": None}
    return EpisodeRecord(**(common | rest | changes))


def test_every_figure_is_the_larger_the_better():
    early = record(outcome="success", first_success_step=25, stages={"reached": 10, "grasped": 20})
    never, broken = record(stages={"reached": 90}), record(outcome="exception", stages={"reached": 5})
    drawer = get_task("Drawer")
    assert figure([early, never, broken], "success", drawer, 100).tolist() == [1, 0, 0]
    assert figure([early, never, broken], "time", drawer, 100).tolist() == [0.75, 0, 0]
    parts = figure([record(stages=dict.fromkeys(drawer.stages, 9)), record(), broken], "stages", drawer, 100)
    assert parts.tolist() == [1, 0, 0]
    track = get_task("QuadrotorTrack")
    assert figure([record(first_failure_step=40, outcome="failure"), record()], "time", track, 100).tolist() == [0.4, 1]
    covered = [record(metrics={"coverage": 0.4, "distance": 7.0}), record()]
    assert figure(covered, "coverage", drawer, 100).tolist() == [0.4, 0]
    assert figure(covered, "order:return", drawer, 100).tolist() == [-3, -3]
    with pytest.raises(UserError, match="order:distance compares which is larger"):
        figure(covered, "distance", drawer, 100)
    with pytest.raises(
        UserError, match="has no such figure; it has success, time, stages, coverage, distance, order:return"
    ):
        figure(covered, "stage", drawer, 100)
