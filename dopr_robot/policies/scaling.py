"""From the demonstrations' statistics to affine maps, and to what counts as within them. numpy alone."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

from dopr_robot.errors import UserError

Mode = Literal["minmax", "meanstd", "none"]
Statistics = Mapping[str, np.ndarray]
"""``{min, max, mean, std}`` of one key, each in the key's shape."""

CONSTANT = 1e-6
"""A dimension whose spread is below this share of its magnitude is constant: float32 resolves 1.2e-7, what is left is rounding."""

LEAST_SPREAD = 1e-3
"""Spreads are taken as at least this share of the key's largest, or of 1 in the key's unit where the largest is more.

Both, so that neither a large unit beside a small one (pixels, counts or milliseconds beside metres) nor a small unit throughout
(a magnetic field in tesla) hides what moved. Among the demonstrations of this package's tasks and of PushT the least half range of what
moves is 4.9e-3 (of the balancing humanoid), and the largest of what is still 5.6e-5 (the height of the block that the peg goes into).
Diffusion Policy takes 1e-4 as the least range in any unit.
"""

OUTSIDE = 10.0
"""Observations are limited to so many half ranges of the demonstrations on either side of their centre: far beyond what a policy can
tell apart, and short of the thousands that an object reaches once it has fallen (2,808 in a PickPlace policy's failures)."""


class Scaling(NamedTuple):
    """``normalized = scale * x + offset``, and the demonstrations' smallest and largest ``normalized``; all in the key's shape."""

    scale: np.ndarray
    offset: np.ndarray
    low: np.ndarray
    high: np.ndarray


def scaling(statistics: Statistics, mode: Mode) -> Scaling:
    """The map that a mode makes of one key's statistics.

    ``minmax`` maps [min, max] to [-1, 1], ``meanstd`` maps to mean 0 and standard deviation 1, with spreads of at least
    :data:`LEAST_SPREAD`. A constant dimension is mapped to 0 with scale 1, so that a policy that never saw it move is not handed a
    huge number when it does; its smallest and largest are taken as 1 below and above.

    Raises:
        UserError: statistics that are not finite.
    """
    low, high = (np.asarray(statistics[name], np.float64) for name in ("min", "max"))
    centre, spread, constant = _spread(statistics, mode)
    if mode == "none":
        scale, offset = np.ones_like(low), np.zeros_like(low)
    else:
        scale = 1.0 / np.where(constant, 1.0, np.maximum(spread, _least(spread, constant)))
        offset = -centre * scale
    # About the centre of the range, so that a range of minmax ends at -1 and 1 to the bit.
    middle = (low + high) / 2
    half = np.where(constant, 1.0, (high - low) / 2 * scale)
    return Scaling(scale, offset, *((middle - centre) * scale + side * half for side in (-1.0, 1.0)))


def hardly_moved(statistics: Statistics, mode: Mode = "minmax") -> list[int]:
    """Which entries of a (flattened) key are not constant and have less than the least spread."""
    _, spread, constant = _spread(statistics, mode)
    return np.flatnonzero(~constant & (spread < _least(spread, constant))).tolist()


def _spread(statistics: Statistics, mode: Mode) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre and spread that a mode takes, and which entries are constant."""
    low, high, mean, std = (np.asarray(statistics[name], np.float64) for name in ("min", "max", "mean", "std"))
    if not all(np.isfinite(value).all() for value in (low, high, mean, std)):
        raise UserError("statistics hold NaN or inf: `dopr info STORE --check` names the episode")
    centre, spread = (mean, std) if mode == "meanstd" else ((low + high) / 2, (high - low) / 2)
    constant = spread <= CONSTANT * np.maximum(1e-3, np.abs(centre))
    return (np.zeros_like(centre) if mode == "none" else centre), spread, constant


def _least(spread: np.ndarray, constant: np.ndarray) -> float:
    return LEAST_SPREAD * min(1.0, float(spread[~constant].max(initial=0.0)))
