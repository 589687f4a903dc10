"""Success versus horizon and the other figures of one evaluation, computed from episode records alone.

Wilson's interval is written out; scipy has the others: order statistics for a median, Student's t for a mean. The simultaneous band is
Dvoretzky-Kiefer-Wolfowitz with Massart's constant (Ann. Probab. 18(3), 1990), which needs no more than n.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import scipy

from dopr_robot.evaluation.rollouts.records import OUTCOMES, EpisodeRecord

CONFIDENCE = 0.95


def succeeded(records: Sequence[EpisodeRecord], kind: str, horizon: int) -> np.ndarray:
    """Success of every episode at one horizon (control steps): bool ``[episodes]``."""
    return success_matrix(records, kind, [horizon])[:, 0]


def success_matrix(records: Sequence[EpisodeRecord], kind: str, horizons: Sequence[int]) -> np.ndarray:
    """Success of every episode at every horizon: bool ``[episodes, horizons]``."""
    steps = event_steps(records, kind)[:, None]
    return steps <= np.asarray(horizons) if kind == "attain" else steps > np.asarray(horizons)


def event_steps(records: Sequence[EpisodeRecord], kind: str) -> np.ndarray:
    """The step that decides each episode: float64 ``[episodes]``, inf = never.

    The first success of an attain task, the first failure of a sustain task. An exception counts as never succeeded, and as
    failed before the first step.
    """
    if kind not in ("attain", "sustain"):
        raise ValueError(f"a task attains or sustains, not {kind!r}")

    def step(record: EpisodeRecord) -> float:
        if record.outcome == "exception":
            return math.inf if kind == "attain" else 0.0
        decided = record.first_success_step if kind == "attain" else record.first_failure_step
        return math.inf if decided is None else float(decided)

    return np.array([step(record) for record in records], dtype=np.float64)


def wilson(successes: int, episodes: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate (1927). Raises ValueError for no episodes.

    >>> wilson(0, 10)
    (0.0, 0.27753279986288915)
    """
    if not 0 <= successes <= episodes or not episodes:
        raise ValueError(f"{successes} successes of {episodes} episodes have no interval")
    # scipy's own comes with a p-value that takes milliseconds, and a comparison asks for thousands of these.
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    rate, wider = successes / episodes, episodes + z**2
    centre, half = (successes + z**2 / 2) / wider, z / wider * math.sqrt(episodes * rate * (1 - rate) + z**2 / 4)
    return centre - half if successes else 0.0, centre + half if successes < episodes else 1.0


def dkw_half_width(episodes: int) -> float:
    """Half the width of the 95 % band that holds the whole curve at once: sqrt(ln(2 / 0.05) / (2 n))."""
    return math.sqrt(math.log(2 / (1 - CONFIDENCE)) / (2 * episodes))


def curve(records: Sequence[EpisodeRecord], kind: str, horizons: Sequence[int]) -> list[dict[str, Any]]:
    """Success versus horizon: for each horizon the rate, its Wilson interval and the simultaneous band. Empty without records."""
    if not records:
        return []
    n = len(records)
    margin = dkw_half_width(n)
    points = []
    for horizon, count in zip(horizons, success_matrix(records, kind, horizons).sum(axis=0), strict=True):
        rate = int(count) / n
        points.append(
            {
                "horizon": int(horizon),
                "episodes": n,
                "successes": int(count),
                "success_rate": rate,
                "ci95": list(wilson(int(count), n)),
                "band95": [max(0.0, rate - margin), min(1.0, rate + margin)],
            }
        )
    return points


def outcomes(records: Sequence[EpisodeRecord]) -> dict[str, int]:
    """How many episodes ended in which way; every outcome is named."""
    count = Counter(record.outcome for record in records)
    return {name: count[name] for name in OUTCOMES}


def causes(records: Sequence[EpisodeRecord]) -> dict[str, int]:
    """How often each cause of a failure and each kind of exception occurred, the most frequent first."""
    named = (record.cause or (record.error or "").split(":")[0] for record in records if record.outcome != "success")
    return dict(Counter(name for name in named if name).most_common())


def median_steps(records: Sequence[EpisodeRecord], kind: str) -> dict[str, Any] | None:
    """Median of the deciding step over all episodes, with its distribution-free 95 % interval.

    ``{"median", "ci95": [lo, hi]}``; None stands for "later than the longest horizon". None without records.
    """
    steps = np.sort(event_steps(records, kind))
    if not len(steps):
        return None
    interval = scipy.stats.quantile_test(steps, q=0, p=0.5).confidence_interval(CONFIDENCE)

    def finite(step: float) -> float | None:
        return float(step) if math.isfinite(step) else None

    low = 0.0 if math.isnan(interval.low) else interval.low  # too few episodes for a bound on that side
    median = float(np.quantile(steps, 0.5, method="inverted_cdf"))
    return {"median": finite(median), "ci95": [finite(low), finite(interval.high)]}


def restricted_mean(records: Sequence[EpisodeRecord], kind: str, horizon: int) -> dict[str, Any] | None:
    """Mean of the deciding step, cut off at ``horizon``: the curve in one number (the area over or under it).

    Mean steps to success (attain: smaller is better) or before failure (sustain: larger is better), in control steps.
    """
    steps = np.minimum(event_steps(records, kind), horizon)
    return mean_with_interval(steps, low=0.0, high=float(horizon)) if len(steps) else None


def mean_with_interval(values: np.ndarray, low: float = -math.inf, high: float = math.inf) -> dict[str, Any]:
    """``{"mean", "ci95"}`` by Student's t, cut to the values' possible range; ci95 is None for a single value."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return {"mean": mean, "ci95": None}
    margin = (
        float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
        * float(np.std(values, ddof=1))
        / math.sqrt(len(values))
    )
    return {"mean": mean, "ci95": [max(low, mean - margin), min(high, mean + margin)]}


def metrics(records: Sequence[EpisodeRecord], shares: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Mean over episodes of each of the task's figures; an episode that broke off before its first step has none.

    The interval of a figure that is never negative (a distance) does not reach below 0, that of one of the ``shares`` not above 1.
    """
    names = sorted({name for record in records for name in record.metrics})
    found = {}
    for name in names:
        values = np.array([record.metrics[name] for record in records if name in record.metrics])
        low, high = 0.0 if values.min() >= 0 else -math.inf, 1.0 if name in shares else math.inf
        found[name] = mean_with_interval(values, low, high)
    return found


def stages(records: Sequence[EpisodeRecord], horizon: int, names: Sequence[str]) -> list[dict[str, Any]]:
    """Of a task in stages: the share of episodes that had done each by ``horizon``, with its Wilson interval."""
    shares = []
    for name in names if records else []:
        done = sum(record.stages.get(name, math.inf) <= horizon and record.outcome != "exception" for record in records)
        rate = {"success_rate": done / len(records), "ci95": list(wilson(done, len(records)))}
        shares.append({"stage": name, "successes": done, **rate})
    return shares


def by_length(
    records: Mapping[int, Sequence[EpisodeRecord]], kind: str, horizon: int, *, returned: bool = False
) -> list[dict[str, Any]]:
    """Success by ``horizon`` against the task's length, the shortest first, from ``{length: records}``; none of them empty.

    ``return``: mean with interval, where the task's reward says more than success (``returned``) and all records go to the horizon; else
    None."""
    points = []
    for length, those in sorted(records.items()):
        (point,) = curve(those, kind, [horizon])
        more = {
            "median_steps": median_steps(those, kind),
            "restricted_mean_steps": restricted_mean(those, kind, horizon),
            "return": None,
        }
        earned = [record.return_at(horizon) for record in those]
        if returned and None not in earned:
            more["return"] = mean_with_interval(np.array(earned, np.float64))
        points.append({"length": length, **point, **more})
    return points


def summary(
    records: Sequence[EpisodeRecord],
    kind: str,
    horizons: Sequence[int],
    stage_names: Sequence[str] = (),
    shares: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything of ``results.json`` that records decide."""
    return {
        "outcomes": outcomes(records),
        "causes": causes(records),
        "curve": curve(records, kind, horizons),
        "median_steps": median_steps(records, kind),
        "restricted_mean_steps": restricted_mean(records, kind, max(horizons)),
        "metrics": metrics(records, shares),
        "stages": stages(records, max(horizons), stage_names),
    }
