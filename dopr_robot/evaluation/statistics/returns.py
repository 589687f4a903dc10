"""Return versus horizon: what a task's reward adds up to by each step, from episode records alone."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from dopr_robot.evaluation.rollouts.records import EpisodeRecord
from dopr_robot.evaluation.statistics.curves import CONFIDENCE, mean_with_interval
from dopr_robot.evaluation.statistics.paired import difference_curve

DRAWS = 4000


def known_horizons(records: Sequence[EpisodeRecord], horizons: Sequence[int]) -> list[int]:
    """Those of ``horizons`` at which every record says its return; of records without :attr:`~EpisodeRecord.returns` the last."""
    return [horizon for horizon in horizons if all(record.return_at(horizon) is not None for record in records)]


def return_matrix(records: Sequence[EpisodeRecord], horizons: Sequence[int]) -> NDArray[np.float64]:
    """Sum of rewards of every episode up to every one of :func:`known_horizons`: ``[episodes, horizons]``.

    An episode that has ended earns nothing more; one that an exception broke off keeps what it had earned.
    """
    return np.array([[record.return_at(horizon) for horizon in horizons] for record in records], dtype=np.float64)


def return_curve(records: Sequence[EpisodeRecord], horizons: Sequence[int]) -> list[dict[str, Any]]:
    """``[{horizon, episodes, mean, ci95, band95}]``: the mean return, its interval, and the band that holds the whole curve.

    ci95 is Student's t. band95 is as much wider as the largest deviation over all horizons is than that at one, by a Gaussian multiplier
    bootstrap (Chernozhukov, Chetverikov and Kato, Ann. Statist. 41(6), 2013), which knows how returns of one episode go together; equal
    records give an equal band. Both are None for a single episode.
    """
    known = known_horizons(records, horizons) if records else []
    values = return_matrix(records, known)
    wider = _wider(values) if known and len(values) > 1 else 1.0
    points = []
    for horizon, column in zip(known, values.T, strict=True):
        point = mean_with_interval(column)
        margin = None if point["ci95"] is None else wider * (point["ci95"][1] - point["mean"])
        band = None if margin is None else [point["mean"] - margin, point["mean"] + margin]
        points.append({"horizon": horizon, "episodes": len(records), **point, "band95": band})
    return points


def returns_of_seeds(returns: NDArray[np.float64], horizons: Sequence[int]) -> list[dict[str, Any]]:
    """``[{horizon, episodes, mean, ci95}]`` of returns ``[training seeds, episodes, horizons]``: the interval is Student's t over
    episodes for one training seed, the bootstrap's over seeds and episodes for several."""
    if not len(horizons):
        return []
    own = difference_curve(returns, np.zeros_like(returns), rates=False)
    points = []
    for h, horizon in enumerate(horizons):
        if len(returns) == 1:
            point = mean_with_interval(returns[0, :, h])
        else:
            point = {"mean": float(own.difference[h]), "ci95": [float(own.low[h]), float(own.high[h])]}
        points.append({"horizon": horizon, "episodes": returns[:, :, h].size, **point})
    return points


def _wider(values: NDArray[np.float64]) -> float:
    """How many times as wide as an interval at one horizon the band over all is, for values ``[episodes, horizons]``."""
    centred = values - values.mean(axis=0)
    spread = centred.std(axis=0)
    standard = np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 0)
    draws = np.random.default_rng(0).standard_normal((DRAWS, len(values))) @ standard / math.sqrt(len(values))
    largest = float(np.quantile(np.abs(draws).max(axis=1), CONFIDENCE))
    return max(1.0, largest / float(scipy.stats.norm.ppf((1 + CONFIDENCE) / 2)))
