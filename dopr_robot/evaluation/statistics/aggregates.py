"""Several tasks in a few numbers: how runs of one method do over all of them, and whether one method beats another. The task is the unit.

Arrays of scores are ``[tasks, seeds]``: success rates, or, where a task's figure is its return, shares of a return that counts as 1, since
means of figures on different scales say nothing (normalised scores: Agarwal et al., section 2). A share has no bounds, and that of one task
may lie far out: the interquartile mean is for that. Probability of improvement and tasks won, level and lost compare within a task, so that
no scale enters them.

The figures are those of Agarwal et al., *Deep RL at the edge of the statistical precipice*
(NeurIPS 2021): interquartile mean, performance profile, probability of improvement, stratified bootstrap. Their package, rliable, is
archived; scipy has the parts, and the tests hold the results against its definitions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from dopr_robot.evaluation.statistics.curves import mean_with_interval

RESAMPLES = 2000
CONFIDENCE = 0.95
Interval = tuple[float, float]
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Aggregate:
    """One method over tasks.

    Attributes:
        mean, iqm: of all runs; the interquartile mean leaves out the lowest and the highest quarter.
        mean_ci95, iqm_ci95: what other training seeds on these tasks would give (stratified bootstrap: seeds are drawn within each task);
            None for one seed, of which nothing can be drawn.
        mean_tasks_ci95: what other tasks like these would give (Student's t over the tasks' means); None for one task.
    """

    mean: float
    mean_ci95: Interval | None
    mean_tasks_ci95: Interval | None
    iqm: float
    iqm_ci95: Interval | None


@dataclass(frozen=True)
class TaskComparison:
    """Two methods over tasks, the first minus the second; one pair of means a task.

    Attributes:
        difference, ci95: mean of the tasks' differences, and its interval over tasks (Student's t); None for one task.
        permutation_p: two-sided, of all sign flips of the tasks' differences: exact, whatever the number of tasks.
        wilcoxon_p: Wilcoxon's signed-rank test over the tasks' differences (zeros are dropped).
        improvement, improvement_ci95: probability that a run of the first on a task drawn at random beats one of the second, ties counted
            half, with a bootstrap over tasks and seeds.
        wins, ties, losses: tasks.
    """

    difference: float
    ci95: Interval | None
    permutation_p: float
    wilcoxon_p: float
    improvement: float
    improvement_ci95: Interval
    wins: int
    ties: int
    losses: int


def aggregate(scores: Scores, resamples: int = RESAMPLES, seed: int = 0, *, rates: bool = True) -> Aggregate:
    """A method's figures over tasks, from scores ``[tasks, seeds]``; ``rates``: whether all are success rates, and so from 0 to 1."""
    drawn = _within_tasks(scores, resamples, seed) if scores.shape[1] > 1 else None
    possible = {"low": 0.0, "high": 1.0} if rates else {}
    over_tasks = mean_with_interval(scores.mean(axis=1), **possible)["ci95"]
    return Aggregate(
        mean=float(scores.mean()),
        mean_ci95=_interval([each.mean() for each in drawn]) if drawn is not None else None,
        mean_tasks_ci95=None if over_tasks is None else (over_tasks[0], over_tasks[1]),
        iqm=interquartile_mean(scores),
        iqm_ci95=_interval([interquartile_mean(each) for each in drawn]) if drawn is not None else None,
    )


def interquartile_mean(scores: Scores) -> float:
    """Mean of the middle half of all runs.

    >>> interquartile_mean(np.array([[0.0, 0.4], [0.6, 1.0]]))
    0.5
    """
    return float(scipy.stats.trim_mean(scores, proportiontocut=0.25, axis=None))


def compare_over_tasks(
    first: Scores, second: Scores, resamples: int = RESAMPLES, seed: int = 0, *, rates: bool = True
) -> TaskComparison:
    """Whether the first method beats the second, from scores ``[tasks, seeds]`` over the same tasks; ``rates``: see :func:`aggregate`."""
    differences = first.mean(axis=1) - second.mean(axis=1)
    differences[np.abs(differences) < 1e-12] = 0.0  # level, but for the rounding of a mean
    possible = {"low": -1.0, "high": 1.0} if rates else {}
    interval = mean_with_interval(differences, **possible)["ci95"]
    rng = np.random.default_rng(seed)
    better = [
        probability_of_improvement(_drawn(first[tasks], rng), _drawn(second[tasks], rng))
        for tasks in rng.integers(0, len(first), (resamples, len(first)))
    ]
    return TaskComparison(
        difference=float(differences.mean()),
        ci95=None if interval is None else (interval[0], interval[1]),
        permutation_p=sign_flip_p_value(differences),
        wilcoxon_p=float(scipy.stats.wilcoxon(differences).pvalue) if differences.any() else 1.0,
        improvement=probability_of_improvement(first, second),
        improvement_ci95=_interval(better),
        wins=int((differences > 0).sum()),
        ties=int((differences == 0).sum()),
        losses=int((differences < 0).sum()),
    )


def probability_of_improvement(first: Scores, second: Scores) -> float:
    """Mean over tasks of P(a run of the first > one of the second) + P(equal) / 2, which is Mann and Whitney's U over the number of pairs.

    >>> probability_of_improvement(np.array([[0.5, 0.7]]), np.array([[0.5, 0.6]]))
    0.625
    """
    pairs = first[:, :, None] - second[:, None, :]
    return float(((pairs > 0) + 0.5 * (pairs == 0)).mean(axis=(1, 2)).mean())


def performance_profile(scores: Scores, thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of all runs with a score above each threshold: ``[thresholds]``."""
    return (scores.reshape(-1, 1) > thresholds).mean(axis=0)


def sign_flip_p_value(differences: NDArray[np.float64]) -> float:
    """Two-sided p-value of a mean of 0 over all 2^n sign flips, counted exactly: the distribution of a sum of signed terms is the product
    of their polynomials, so 45 tasks cost no more than three. Differences of rates are whole multiples of one over the number of
    episodes and seeds; others are rounded to 1/5000.

    >>> sign_flip_p_value(np.array([0.25, 0.5, 0.25, 0.5, 0.75]))
    0.0625
    """
    units = _units(differences)
    total = int(units.sum())
    weights = np.ones(1)  # chance of each sum of signed units, from -reach to reach
    for unit in np.abs(units[units != 0]):
        longer = np.zeros(len(weights) + 2 * unit)
        longer[: len(weights)] += weights / 2
        longer[2 * unit :] += weights / 2
        weights = longer
    sums = np.arange(len(weights)) - len(weights) // 2
    return float(min(1.0, weights[np.abs(sums) >= abs(total)].sum()))


def _units(differences: NDArray[np.float64]) -> NDArray[np.int64]:
    """The differences in whole units of the coarsest grid that holds them, of 1/5000 where none does."""
    for points in range(1, 5001):
        units = np.round(differences * points)
        if np.allclose(units, differences * points, rtol=0, atol=1e-6):
            break
    return units.astype(np.int64)


def letters(names: Sequence[str], means: Mapping[str, float], apart: Callable[[str, str], bool]) -> dict[str, str]:
    """A compact letter display (Piepho, J. Comput. Graph. Stat. 13(2), 2004): methods that share a letter are not told apart.

    Args:
        names: of the methods; ``means``: the best gets ``a``.
        apart: whether two of them differ significantly.

    >>> letters(["x", "y", "z"], {"x": 0.9, "y": 0.6, "z": 0.5}, lambda a, b: "x" in (a, b) and "z" in (a, b))
    {'x': 'a', 'y': 'ab', 'z': 'b'}
    """
    ordered = sorted(names, key=lambda name: -means[name])
    columns = [set(ordered)]
    for place, first in enumerate(ordered):
        for second in ordered[place + 1 :]:
            if not apart(first, second):
                continue
            split = [column - {other} for column in columns for other in (second, first) if {first, second} <= column]
            kept = [column for column in columns if not {first, second} <= column]
            columns = kept + [column for column in split if not any(column <= other for other in kept)]
            columns = [
                column
                for i, column in enumerate(columns)
                if not any(column < other or (column == other and i > j) for j, other in enumerate(columns) if i != j)
            ]
    columns.sort(key=lambda column: sorted(ordered.index(name) for name in column))
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    return {name: "".join(alphabet[i] for i, column in enumerate(columns) if name in column) for name in names}


def _within_tasks(scores: Scores, resamples: int, seed: int) -> Scores:
    """Bootstrap replicates with seeds drawn within each task: ``[resamples, tasks, seeds]``."""
    rng = np.random.default_rng(seed)
    return np.stack([_drawn(scores, rng) for _ in range(resamples)])


def _drawn(scores: Scores, rng: np.random.Generator) -> Scores:
    return np.take_along_axis(scores, rng.integers(0, scores.shape[1], scores.shape), axis=1)


def _interval(values: Sequence[float]) -> Interval:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
