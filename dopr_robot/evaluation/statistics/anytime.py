"""Tests that stay valid however often one looks: is a mean of paired, bounded differences 0?

An evaluation that stops once it sees a difference would find one by chance, if one only looked often enough. What bets against "no
difference" with fair odds has no such fault: with a share b of its money on the next difference d of [-1, 1] it is multiplied by 1 + b d,
whose expectation is 1 where the mean is 0, so that it ever reaches 20 with a chance of at most 1 in 20 (Ville). Money is spread over
bets from -1 to 1 by the arcsine law. For successes (d is -1, 0 or 1) that is Robbins' mixture (Ann. Math. Statist. 41(5), 1970) over the
episodes in which just one side succeeded; for shares such as coverage it is a test of their mean that needs no more than the bound
(Waudby-Smith and Ramdas, J. R. Stat. Soc. B 86(1), 2024).

It is written out because nothing that keeps has it: sequentialized-barnard-tests 0.0.9 takes the two sides for independent, which throws
the common initial states away, and may not be used commercially; confseq 0.0.11 (2023) no longer builds everywhere.
"""

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

BETS = 100
"""Gauss's nodes for the arcsine law: Robbins' mixture to the last digit for up to 199 discordant episodes, a mixture as valid after."""
Floats = NDArray[np.float64]


def evidence(differences: ArrayLike) -> Floats:
    """Evidence against a mean of 0 after each difference: 1 where there is none; 20 decides at 5 %.

    Args:
        differences: of [-1, 1], ``[..., episodes]`` in the order in which they were seen.

    Raises:
        ValueError: one out of [-1, 1].
    """
    return np.exp(np.minimum(700.0, _log_wealth(_checked(differences), 0.0)))


def mean_interval(differences: ArrayLike, level: float = 0.05) -> tuple[float, float]:
    """Means that the differences ``[episodes]`` do not speak against: an interval that holds the true one at all looks together with
    probability ``1 - level``. It is ``(-1, 1)`` without episodes."""
    values = _checked(differences)
    if not len(values):
        return -1.0, 1.0

    def against(mean: float) -> float:
        # A bet on d - m may lose all of its money at most: 1 + b (d - m) > 0 for b below 1 / (1 + |m|).
        return float(_log_wealth(values, mean)[-1] - np.log(1 / level))

    # Nothing can be won against the mean of what was seen (Jensen), and the more the further away.
    middle = float(values.mean())
    low, high = (
        end if against(end) < 0 else float(scipy.optimize.brentq(against, middle, end, xtol=1e-4))
        for end in (-1.0, 1.0)
    )
    return low, high


def decided_after(differences: ArrayLike, level: float = 0.05) -> int | None:
    """After how many differences the test had decided, or None."""
    decided = evidence(differences) >= 1 / level
    return int(np.argmax(decided)) + 1 if decided.any() else None


def _log_wealth(values: Floats, mean: float) -> Floats:
    """Logarithm of what the spread bets have become after each value."""
    nodes = np.cos((2 * np.arange(1, BETS + 1) - 1) * np.pi / (2 * BETS))
    total = np.full(values.shape, -np.inf)
    for bet in nodes / (1 + abs(mean)):
        total = np.logaddexp(total, np.log1p(bet * (values - mean)).cumsum(axis=-1))
    return total - np.log(BETS)


def _checked(differences: ArrayLike) -> Floats:
    values = np.asarray(differences, np.float64)
    if not (np.abs(values) <= 1).all():
        raise ValueError("differences have to lie in [-1, 1]")
    return values
