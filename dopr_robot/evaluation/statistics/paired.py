"""Does one policy beat another? Statistics of paired evaluations: the same initial states, one success each at every horizon.

Arrays of successes are bool ``[training seeds, episodes, horizons]``, episode e from the same initial state for both sides.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from dopr_robot.evaluation.statistics import wilson

RESAMPLES = 4000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """Difference of two success curves, first minus second.

    Attributes:
        difference: ``[horizons]``.
        low, high: 95 % bootstrap interval at each horizon (percentiles).
        band_low, band_high: 95 % bootstrap band that holds the whole curve (sup-t; of one width where a side has several seeds).
    """

    difference: np.ndarray
    low: np.ndarray
    high: np.ndarray
    band_low: np.ndarray
    band_high: np.ndarray


def difference_curve(
    first: np.ndarray, second: np.ndarray, resamples: int = RESAMPLES, seed: int = 0, *, rates: bool = True
) -> Difference:
    """The paired difference with bootstrap intervals over episodes, and over training seeds where a side has several.

    Seeds are the outer level (each side's are drawn on their own, unless both have the same number, when they are pairs: one
    data order and initialisation each), episodes the inner one, drawn once for all runs because they start from common states. A
    bootstrap of three or five seeds is too narrow (at a nominal 5 %, 16 and 12 % false alarms in simulation), so what the seeds add is
    widened as Student's t is, by t(S - 1) / z * sqrt(S / (S - 1)). Where nothing differs between the episodes of rates the interval is
    Wilson's for none of them.

    Args:
        first, second: successes ``[seeds, episodes, horizons]``, or other figures of episodes (returns).
        resamples: of the bootstrap.
        seed: of the bootstrap; equal records give equal intervals.
        rates: whether they are successes, whose difference lies between -1 and 1; False: it has no bounds.
    """
    difference = first.mean(axis=(0, 1)) - second.mean(axis=(0, 1))
    means = first.mean(axis=1), second.mean(axis=1)  # [S, H] each
    sides = (means[0] - means[1],) if len(means[0]) == len(means[1]) else means
    sizes = (first.shape[1], *(len(side) for side in sides if len(side) > 1))
    over_seeds = _weights(sizes, resamples, seed)[1:]
    drawn_first, drawn_second = (
        _means(side.mean(axis=0, dtype=np.float64).tobytes(), sizes, resamples, seed) for side in (first, second)
    )
    replicates = drawn_first - drawn_second
    for side, sign in zip(sides, (1, -1), strict=False):
        if (seeds := len(side)) > 1:
            wider = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, seeds - 1) / scipy.stats.norm.ppf((1 + CONFIDENCE) / 2)
            drawn = over_seeds.pop(0) @ side / seeds - side.mean(axis=0)
            replicates = replicates + sign * drawn * wider * math.sqrt(seeds / (seeds - 1))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail], axis=0)
    # The band is as many standard errors wide, everywhere, as the worst horizon of 95 % of the replicates needs. A handful of seeds may
    # agree by chance at one horizon: their band has one width, which no such chance decides.
    error = replicates.std(axis=0) if len(first) == len(second) == 1 else np.ones(len(difference))
    centred = np.abs(replicates - difference)
    scaled = np.divide(centred, error, out=np.zeros_like(centred), where=error > 0)
    width = np.quantile(scaled.max(axis=1), CONFIDENCE) * error
    if not rates:
        return Difference(difference, low, high, difference - width, difference + width)
    low, high = np.clip([low, high], -1, 1)
    # Where all episodes of all seeds agree the bootstrap sees no spread, but the next one may be another.
    unseen = np.where(replicates.std(axis=0) == 0, wilson(0, first.shape[0] * first.shape[1])[1], 0.0)
    low, high, width = np.maximum(low - unseen, -1), np.minimum(high + unseen, 1), np.maximum(width, unseen)
    return Difference(difference, low, high, np.maximum(difference - width, -1), np.minimum(difference + width, 1))


@lru_cache(maxsize=4)
def _weights(sizes: tuple[int, ...], resamples: int, seed: int) -> list[NDArray[np.float64]]:
    """For each size N how often N draws with replacement take each of N values: ``[resamples, N]``. All pairs of a comparison have
    them in common, and drawing is most of the work."""
    rng = np.random.default_rng(seed)
    drawn = (rng.multinomial(size, np.full(size, 1 / size), size=resamples) for size in sizes)
    return [each.astype(np.float64) for each in drawn]  # which products are fast in


@lru_cache(maxsize=64)
def _means(episodes: bytes, sizes: tuple[int, ...], resamples: int, seed: int) -> NDArray[np.float64]:
    """The means of figures ``[E, H]`` over each draw of episodes: ``[resamples, H]``. A method has them in common with all its pairs."""
    return _weights(sizes, resamples, seed)[0] @ np.frombuffer(episodes).reshape(sizes[0], -1) / sizes[0]


def mcnemar(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """McNemar's exact test of two runs at one horizon, from their successes ``[episodes]``.

    Returns:
        ``{only_first, only_second, p_value}``: episodes in which just one of the two succeeded, and the two-sided p-value of
        their being as likely one way as the other (1 where there are none).
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    return {
        "only_first": only_first,
        "only_second": only_second,
        "p_value": float(mcnemar_p_value(only_first, only_second)),
    }


def mcnemar_p_value(only_first: ArrayLike, only_second: ArrayLike) -> NDArray[np.float64]:
    """The p-value of :func:`mcnemar` from its two counts, of any shape: twice the smaller tail of a fair coin."""
    fewer, discordant = np.minimum(only_first, only_second), np.add(only_first, only_second)
    # The binomial distribution's own function, without the checks of scipy.stats.
    return np.minimum(1.0, 2 * scipy.special.bdtr(fewer, discordant, 0.5))


def seeds_test(first: np.ndarray, second: np.ndarray) -> float:
    """Two-sided p-value for several training seeds a side, from success rates ``[seeds]``: a training run is the unit.

    An exact permutation test: sign flips where the two sides' seeds are pairs, relabelling where their numbers differ. With
    few seeds it can not be small (4 pairs: 0.125 at best), which is the truth about few seeds.
    """
    if len(first) == len(second):
        outcome = scipy.stats.permutation_test(
            (first, second), _mean_difference, permutation_type="samples", n_resamples=np.inf
        )
    else:
        outcome = scipy.stats.permutation_test(
            (first, second), _mean_difference, permutation_type="independent", n_resamples=np.inf
        )
    return float(outcome.pvalue)


def _mean_difference(first: np.ndarray, second: np.ndarray, axis: int = -1) -> np.ndarray:
    return first.mean(axis=axis) - second.mean(axis=axis)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (Scand. J. Statist. 6, 1979): each below 0.05 is significant among all of them at 5 %."""
    order = np.argsort(p_values)
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.minimum(1.0, np.maximum.accumulate(factors * np.asarray(p_values, float)[order]))
    result = np.empty(len(p_values))
    result[order] = adjusted
    return [float(value) for value in result]


def power(difference: float, discordant: float, episodes: int, level: float = 0.05) -> float:
    """Exact power of McNemar's exact test.

    Args:
        difference: true difference of the two success rates.
        discordant: probability that just one of the two succeeds; at least ``abs(difference)``.
        episodes: initial states.
        level: two-sided.
    """
    if not abs(difference) <= discordant <= 1:
        raise ValueError(
            f"a difference of {difference} needs between {abs(difference)} and 1 discordant pairs, not {discordant}"
        )
    share = (discordant + difference) / (2 * discordant) if discordant else 0.5
    # Numbers of discordant pairs that occur at all: what lies further out weighs less than 1e-20 (Bernstein's inequality).
    mean, reach = episodes * discordant, 10 * math.sqrt(episodes * discordant * (1 - discordant)) + 60
    counts = np.arange(max(0, math.floor(mean - reach)), min(episodes, math.ceil(mean + reach)) + 1)
    # The distribution's own functions, without the checks of scipy.stats, which are most of the time.
    weights = np.diff(scipy.special.bdtr(counts, episodes, discordant), prepend=0.0)
    critical = _critical(level, 1 << episodes.bit_length())[counts]
    rare = np.maximum(critical, 0)
    rejects = scipy.special.bdtr(rare, counts, share) + scipy.special.bdtrc(counts - rare - 1, counts, share)
    return float(weights @ np.where(critical >= 0, np.minimum(rejects, 1.0), 0.0))


@lru_cache(maxsize=32)
def _critical(level: float, number: int) -> NDArray[np.float64]:
    """For each number of discordant pairs below ``number`` the largest count of the rarer kind that rejects; -1 where none does."""
    counts = np.arange(number)
    critical = scipy.stats.binom.ppf(level / 2, counts, 0.5)
    return critical - (2 * scipy.stats.binom.cdf(critical, counts, 0.5) > level)


@lru_cache(maxsize=8192)
def episodes_needed(difference: float, discordant: float, wanted: float = 0.8, limit: int = 20_000) -> int | None:
    """The fewest initial states with which McNemar's exact test sees a difference with probability ``wanted``; None above
    ``limit``."""
    discordant = min(1.0, max(discordant, abs(difference)))
    if power(difference, discordant, limit) < wanted:
        return None
    low, high = 1, limit
    while low < high:  # power rises with the number of episodes but for the saw-teeth of a discrete test
        middle = (low + high) // 2
        low, high = (low, middle) if power(difference, discordant, middle) >= wanted else (middle + 1, high)
    return low
