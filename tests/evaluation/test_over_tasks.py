"""Figures over several tasks, against their definitions."""

import itertools

import numpy as np
import pytest
from scipy import stats

from dopr_robot.evaluation.statistics import (
    aggregate,
    at_equal_loss,
    compare_over_tasks,
    interquartile_mean,
    letters,
    performance_profile,
    probability_of_improvement,
    sign_flip_p_value,
    success_at_loss,
)

RNG = np.random.default_rng(0)
FIRST, SECOND = (np.round(RNG.uniform(0, 1, (7, 3)), 2) for _ in range(2))


def test_the_interquartile_mean_leaves_out_a_quarter_at_either_end():
    values = np.sort(FIRST.ravel())  # 21 runs: 5 at either end
    assert interquartile_mean(FIRST) == pytest.approx(values[5:-5].mean())


def test_the_probability_of_improvement_is_mann_and_whitneys_u_over_the_pairs():
    expected = [
        stats.mannwhitneyu(one, other).statistic / (len(one) * len(other))
        for one, other in zip(FIRST, SECOND, strict=True)
    ]
    assert probability_of_improvement(FIRST, SECOND) == pytest.approx(np.mean(expected))
    assert probability_of_improvement(FIRST, FIRST) == 0.5


@pytest.mark.parametrize("tasks", [1, 3, 7])
def test_the_permutation_test_counts_every_sign_flip(tasks):
    differences = np.round(RNG.uniform(-1, 1, tasks), 2)
    flips = np.array([differences @ signs for signs in itertools.product((-1, 1), repeat=tasks)])
    expected = (np.abs(flips) >= abs(differences.sum()) - 1e-9).mean()
    assert sign_flip_p_value(differences) == pytest.approx(expected)


def test_the_permutation_test_of_45_tasks_is_exact_too():
    assert sign_flip_p_value(np.full(45, 0.02)) == pytest.approx(2 / 2**45)
    assert sign_flip_p_value(np.zeros(45)) == 1.0
    assert sign_flip_p_value(np.array([0.02, -0.02] * 20)) == 1.0


def test_under_no_difference_few_comparisons_are_significant():
    rng, found = np.random.default_rng(1), 0
    for _ in range(400):
        rates = rng.uniform(0.2, 0.8, (12, 1))
        first, second = (rng.binomial(20, rates, (12, 2)) / 20 for _ in range(2))
        found += sign_flip_p_value((first - second).mean(axis=1)) <= 0.05
    assert found <= 400 * 0.05 + 3 * (400 * 0.05 * 0.95) ** 0.5


def test_two_methods_over_tasks():
    better = np.clip(FIRST + 0.2, 0, 1)
    found = compare_over_tasks(better, FIRST)
    assert found.wins == 7 and found.losses == found.ties == 0 and found.permutation_p == pytest.approx(2 / 2**7)
    assert found.ci95[0] < found.difference < found.ci95[1] and found.difference == pytest.approx(
        (better - FIRST).mean()
    )
    assert found.improvement_ci95[0] <= found.improvement <= found.improvement_ci95[1]
    level = compare_over_tasks(FIRST, FIRST[:, ::-1])
    assert (level.ties, level.permutation_p, level.wilcoxon_p, level.difference) == (7, 1.0, 1.0, 0.0)


def test_an_interval_over_seeds_needs_several_and_one_over_tasks_too():
    one_seed = aggregate(FIRST[:, :1])
    assert one_seed.mean_ci95 is None and one_seed.iqm_ci95 is None and one_seed.mean_tasks_ci95 is not None
    one_task = aggregate(FIRST[:1])
    assert one_task.mean_tasks_ci95 is None and one_task.mean_ci95[0] < one_task.mean < one_task.mean_ci95[1]
    alike = aggregate(np.repeat(FIRST[:, :1], 3, axis=1))
    assert alike.mean_ci95 == pytest.approx(
        (alike.mean, alike.mean)
    )  # other seeds would give the same; other tasks would not


def test_a_performance_profile_is_the_share_of_runs_above_each_threshold():
    assert performance_profile(np.array([[0.0, 0.5], [1.0, 0.5]]), np.array([0.0, 0.25, 0.5, 1.0])).tolist() == [
        0.75,
        0.75,
        0.25,
        0,
    ]


@pytest.mark.parametrize("trial", range(20))
def test_methods_share_a_letter_if_and_only_if_they_are_not_told_apart(trial):
    rng = np.random.default_rng(trial)
    names = [f"m{i}" for i in range(6)]
    means = dict(zip(names, rng.uniform(0, 1, 6), strict=True))
    apart = {frozenset(pair) for pair in itertools.combinations(names, 2) if rng.random() < 0.5}
    found = letters(names, means, lambda a, b: frozenset((a, b)) in apart)
    for first, second in itertools.combinations(names, 2):
        assert bool(set(found[first]) & set(found[second])) == (frozenset((first, second)) not in apart)
    assert "a" in found[max(names, key=means.__getitem__)]


def test_success_at_a_loss_is_of_the_first_time_that_it_was_reached():
    curve = [(1.0, 0.0), (0.1, 0.4), (0.2, 0.9), (0.01, 0.8)]  # the third point is a way back
    assert success_at_loss(curve, np.array([1.0, 10**-0.5, 0.1, 10**-1.5, 0.01])) == pytest.approx(
        [0, 0.2, 0.4, 0.6, 0.8]
    )
    assert (
        np.isnan(success_at_loss(curve, np.array([2.0, 0.001]))).all()
        and np.isnan(success_at_loss([], np.ones(1))).all()
    )


def test_a_faster_optimizer_is_not_ahead_at_equal_loss():
    """One goes through the same losses and successes in half the steps."""
    path = [(loss, 1 - loss) for loss in np.geomspace(1, 0.1, 9)]
    found = at_equal_loss([path[::2]] * 3, [path] * 3)
    assert abs(found.difference) < 0.02 and (found.pairs, found.of) == (3, 3)


def test_one_that_succeeds_more_at_each_loss_is_ahead_over_the_losses_that_both_went_through():
    path = [(loss, 0.5) for loss in (1.0, 0.3, 0.1)]
    ahead = [(loss, success) for loss, success in ((0.8, 0.7), (0.05, 0.7))]
    found = at_equal_loss([ahead, ahead], [path, path])
    assert found.difference == pytest.approx(0.2) and (found.low, found.high) == pytest.approx((0.1, 0.8))
    assert found.ci95 == pytest.approx((0.2, 0.2))
    nothing = at_equal_loss([[(0.01, 1.0)]], [path])
    assert (nothing.difference, nothing.pairs, nothing.of) == (None, 0, 1)
