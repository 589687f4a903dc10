"""Success at equal validation loss: whether two training runs that fit held-out demonstrations equally well also succeed equally often."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dopr_robot.evaluation.statistics.curves import mean_with_interval

LOSSES = 100
"""Points, even in the logarithm of the loss, at which two curves are compared; they are piecewise linear, so more change nothing."""

Curve = Sequence[tuple[float, float]]
"""``(validation loss, success rate)`` of a run along its training, in the order of the steps; or another score than success."""


@dataclass(frozen=True)
class EqualLoss:
    """The difference in success of two methods at matched validation loss, the first minus the second.

    Attributes:
        difference: mean over pairs of runs of the mean over the losses that both of a pair went through; None where no pair shares any.
        ci95: Student's t over the pairs; None for fewer than two.
        pairs: how many pairs share a range of losses, and ``of`` how many there are.
        low, high: the losses that are compared, over all pairs.
    """

    difference: float | None
    ci95: tuple[float, float] | None
    pairs: int
    of: int
    low: float | None
    high: float | None


def success_at_loss(curve: Curve, losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Success of a run when it first reached each loss: ``[losses]``, NaN outside of those that it went through.

    Between two points of the curve success is linear in the logarithm of the loss. A point that does not lower the loss is passed over:
    it is a second visit (a run that overfits comes back to losses that it had before).
    """
    reached: list[tuple[float, float]] = []
    for loss, success in curve:
        if not reached or loss < reached[-1][0]:
            reached.append((loss, success))
    if not reached:
        return np.full(len(losses), np.nan)
    falling = np.array(reached)[::-1]
    return np.interp(np.log(losses), np.log(falling[:, 0]), falling[:, 1], left=np.nan, right=np.nan)


def at_equal_loss(first: Sequence[Curve], second: Sequence[Curve], *, rates: bool = True) -> EqualLoss:
    """Compare runs pair by pair (one seed, one data order and initialisation each) over the losses that both went through.

    Args:
        first, second: curves of the runs, ``first[i]`` with ``second[i]``; losses are positive.
        rates: whether they are of success, whose difference lies between -1 and 1; False: it has no bounds.
    """
    means, bounds = [], []
    for one, other in zip(first, second, strict=True):
        low, high = _range(one, other)
        if not low < high:
            continue
        losses = np.geomspace(low, high, LOSSES)
        means.append(float(np.nanmean(success_at_loss(one, losses) - success_at_loss(other, losses))))
        bounds.append((low, high))
    if not means:
        return EqualLoss(None, None, 0, len(first), None, None)
    possible = {"low": -1.0, "high": 1.0} if rates else {}
    found: dict[str, Any] = mean_with_interval(np.array(means), **possible)
    interval = found["ci95"]
    return EqualLoss(
        difference=found["mean"],
        ci95=None if interval is None else (interval[0], interval[1]),
        pairs=len(means),
        of=len(first),
        low=min(low for low, _ in bounds),
        high=max(high for _, high in bounds),
    )


def _range(one: Curve, other: Curve) -> tuple[float, float]:
    """The losses that both went through; an empty range where they share none."""
    if not one or not other:
        return 1.0, 0.0
    least = [min(loss for loss, _ in curve) for curve in (one, other)]
    return max(least), min(one[0][0], other[0][0])
