"""Does one policy beat another? Statistics of paired evaluations: the same initial states, one success each at every horizon.

Arrays of successes are bool ``[training seeds, episodes, horizons]``, episode e from the same initial state for both sides.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special, stats

RESAMPLES = 4000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """Difference of two success curves, first minus second.

    Attributes:
        difference: ``[horizons]``.
        low, high: 95 % bootstrap interval at each horizon (percentiles).
        band_low, band_high: 95 % bootstrap band that holds the whole curve (sup-t).
    """

    difference: np.ndarray
    low: np.ndarray
    high: np.ndarray
    band_low: np.ndarray
    band_high: np.ndarray


def difference_curve(first: np.ndarray, second: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> Difference:
    """The paired difference with bootstrap intervals over episodes, and over training seeds where a side has several.

    Seeds are the outer level (each side's are drawn on their own, unless both have the same number, when they are pairs: one
    data order and initialisation each), episodes the inner one, drawn once for all runs because they start from common states.

    Args:
        first, second: successes ``[seeds, episodes, horizons]``.
        resamples: of the bootstrap.
        seed: of the bootstrap; equal records give equal intervals.
    """
    rng = np.random.default_rng(seed)
    episodes = first.shape[1]
    weights = rng.multinomial(episodes, np.full(episodes, 1 / episodes), size=resamples) / episodes  # [R, E]
    means = []
    for side, successes in enumerate((first, second)):
        seeds = successes.shape[0]
        if side == 0 or seeds != first.shape[0]:
            draw = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds  # [R, S]
        per_seed = np.einsum("re,seh->rsh", weights, successes.astype(np.float64), optimize=True)
        means.append(np.einsum("rs,rsh->rh", draw, per_seed))
    replicates = means[0] - means[1]
    difference = first.mean(axis=(0, 1)) - second.mean(axis=(0, 1))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail], axis=0)
    # The band is as many standard errors wide, everywhere, as the worst horizon of 95 % of the replicates needs.
    error = replicates.std(axis=0)
    centred = np.abs(replicates - difference)
    scaled = np.divide(centred, error, out=np.zeros_like(centred), where=error > 0)
    width = np.quantile(scaled.max(axis=1), CONFIDENCE) * error
    return Difference(difference, low, high, np.maximum(difference - width, -1), np.minimum(difference + width, 1))


def mcnemar(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """McNemar's exact test of two runs at one horizon, from their successes ``[episodes]``.

    Returns:
        ``{only_first, only_second, p_value}``: episodes in which just one of the two succeeded, and the two-sided p-value of
        their being as likely one way as the other (1 where there are none).
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = only_first + only_second
    p_value = float(stats.binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0
    return {"only_first": only_first, "only_second": only_second, "p_value": p_value}


def seeds_test(first: np.ndarray, second: np.ndarray) -> float:
    """Two-sided p-value for several training seeds a side, from success rates ``[seeds]``: a training run is the unit.

    An exact permutation test: sign flips where the two sides' seeds are pairs, relabelling where their numbers differ. With
    few seeds it can not be small (4 pairs: 0.125 at best), which is the truth about few seeds.
    """
    if len(first) == len(second):
        outcome = stats.permutation_test(
            (first, second), _mean_difference, permutation_type="samples", n_resamples=np.inf
        )
    else:
        outcome = stats.permutation_test(
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
    counts = np.arange(episodes + 1)
    weights = stats.binom.pmf(counts, episodes, discordant)
    # The largest number of the rarer kind that rejects, for each number of discordant pairs; -1 where none does.
    critical = stats.binom.ppf(level / 2, counts, 0.5)
    critical -= 2 * stats.binom.cdf(critical, counts, 0.5) > level
    rejects = stats.binom.cdf(critical, counts, share) + stats.binom.sf(counts - critical - 1, counts, share)
    return float(weights @ np.where(critical >= 0, np.minimum(rejects, 1.0), 0.0))


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


def evidence(only_first: int, only_second: int) -> float:
    """Evidence against "neither is better" that stays valid however often one looks: an e-value, 1 where there is none.

    Robbins' mixture (Ann. Math. Statist. 41(5), 1970) over McNemar's discordant pairs: the likelihood ratio of p ~ Beta(1/2,
    1/2) against p = 1/2. Under no difference the chance that it ever reaches 20 is at most 1 in 20 (Ville).
    """
    log_ratio = special.betaln(only_first + 0.5, only_second + 0.5) - special.betaln(0.5, 0.5)
    return math.exp(min(700.0, float(log_ratio) + (only_first + only_second) * math.log(2)))


def sequential_decision(first: np.ndarray, second: np.ndarray, level: float = 0.05) -> int | None:
    """After how many episodes the anytime-valid test had decided, from successes ``[episodes]`` in their order, or None."""
    wins, losses = np.cumsum(first & ~second), np.cumsum(second & ~first)
    for episode, (win, loss) in enumerate(zip(wins, losses, strict=True), start=1):
        if evidence(int(win), int(loss)) >= 1 / level:
            return episode
    return None
