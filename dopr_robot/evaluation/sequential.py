"""Runs evaluated block by block until it is clear which is better, or that no difference matters."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dopr_robot.envs import TaskSpec, get_task
from dopr_robot.errors import UserError
from dopr_robot.evaluation import statistics
from dopr_robot.evaluation.comparison import Evaluated, common_seeds, load_evaluated
from dopr_robot.evaluation.evaluate import evaluate
from dopr_robot.evaluation.rollouts.records import RESULTS, EpisodeRecord, read_results

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
"""Folders of the runs' evaluations."""
LEVEL = 0.05
"""Chance of one false verdict or more, over all pairs and looks."""
OF_ORDER = "order:"


def sequentially(
    runs: Sequence[Path],
    labels: Sequence[str],
    *,
    on: str,
    margin: float,
    episodes: int,
    block: int,
    out: Path,
    ways: Mapping[str, Any],
) -> tuple[list[Path], dict[str, Any]]:
    """Evaluate runs, ``block`` episodes each at a time, until every pair is decided or there are ``episodes``; a run all of whose pairs
    are decided is left alone. The same call goes on where it stopped.

    Args:
        runs, labels: at most eight.
        on: the figure that is compared, see :func:`figure`.
        margin: a pair whose difference lies within it, as far as anybody can tell, is decided too: level; 0: never.
        ways: more of :func:`~dopr_robot.evaluation.evaluate.evaluate`.

    Returns:
        The evaluation folders and what :func:`look` says of them.
    """
    if len(runs) > len(ORDINALS):
        raise UserError(f"--sequential compares at most {len(ORDINALS)} runs, not {len(runs)}")
    if block < 1:
        raise UserError(f"--block {block} has to be at least 1")
    if not 0 <= margin < 1:
        raise UserError(f"--margin {100 * margin:g} has to be from 0 to 100 points")
    folders = [out / name for name in ORDINALS[: len(runs)]]
    done = [read_results(folder)["episodes"] if (folder / RESULTS).is_file() else 0 for folder in folders]
    going = set(range(len(runs)))
    while True:
        target = min(max(*(done[i] for i in going), block), episodes)
        for i in sorted(going):
            evaluate(runs[i], episodes=target, video=0, out=folders[i], resume=True, **ways)
            done[i] = target
        said = look(folders, labels, on, margin)
        going = {i for pair in said["pairs"] if not pair["state"] for i in pair["places"]}
        if not going or target >= episodes:
            return folders, said
        for i in going:
            done[i] = target + block


def look(folders: Sequence[Path], labels: Sequence[str], on: str = "success", margin: float = 0.0) -> dict[str, Any]:
    """The anytime-valid test of every two evaluations at their longest horizon; one may look after every episode.

    Returns:
        ``{decided, verdict, on, margin, level, horizon, episodes, pairs: [{first, second, places, episodes, difference, interval,
        evidence, state}]}``: ``state`` is ``first``, ``second`` (which is better), ``level``, or None where nothing is decided.
        ``interval`` holds the difference at all looks together; the pairs share the level (Bonferroni).
    """
    # The folders' positions stand for the labels, which need not differ.
    runs = [load_evaluated(folder, str(i), None) for i, folder in enumerate(folders)]
    spec, horizon = get_task(runs[0].results["task"]), max(runs[0].results["horizons"])
    couples = list(combinations(range(len(runs)), 2))
    level = LEVEL / len(couples)
    pairs = []
    for i, j in couples:
        differences = _differences(runs[i], runs[j], on, spec, horizon)
        value = float(statistics.evidence(differences)[-1])
        low, high = statistics.mean_interval(differences, level)
        mean = float(differences.mean())
        state = None
        if value >= 1 / level:
            state = "first" if mean > 0 else "second"
        elif margin and max(-low, high) <= margin:
            state = "level"
        pairs.append(
            {
                "first": labels[i], "second": labels[j], "places": [i, j], "episodes": len(differences), "difference": mean,
                "interval": [low, high], "evidence": value, "state": state,
            }
        )  # fmt: skip
    episodes = max(len(run.records) for run in runs)
    found = {
        "decided": all(pair["state"] for pair in pairs), "on": on, "margin": margin, "level": LEVEL, "horizon": horizon,
        "episodes": episodes, "pairs": pairs,
    }  # fmt: skip
    return {**found, "verdict": "; ".join(_verdict(pair, found, 1 / level) for pair in pairs)}


def figure(records: Sequence[EpisodeRecord], on: str, spec: TaskSpec, horizon: int) -> NDArray[np.float64]:
    """A figure of each episode, the larger the better: ``[episodes]``.

    Args:
        records: episodes of one task, to ``horizon`` control steps.
        on: ``success``; ``time`` (success early, failure late: the share of the horizon that was left over, or lasted); ``stages`` (the
            share of the task's stages that were done); one of the task's figures that lies in [0, 1], such as ``coverage``; with
            ``order:`` before it, ``return`` or any figure, of which just the order counts.

    Raises:
        UserError: a figure that the task does not have, or that does not lie in [0, 1].
    """
    if on == "success":
        return statistics.succeeded(records, spec.kind, horizon).astype(np.float64)
    if on == "time":
        steps = np.minimum(statistics.event_steps(records, spec.kind), horizon) / horizon
        return 1 - steps if spec.kind == "attain" else steps
    if on == "stages" and spec.stages:
        return np.array(
            [
                sum(record.stages.get(name, np.inf) <= horizon for name in spec.stages) / len(spec.stages)
                if record.outcome != "exception"
                else 0.0
                for record in records
            ]
        )
    name = on.removeprefix(OF_ORDER)
    if name == "return":
        values = np.array([record.return_ for record in records])
    else:
        known = {key for record in records for key in record.metrics}
        if name not in known:
            choices = ", ".join(
                ["success", "time", *(["stages"] if spec.stages else []), *sorted(known), "order:return"]
            )
            raise UserError(f"--on {on}: {spec.id} has no such figure; it has {choices}")
        # An episode that broke off before its first step has none: it is the worst there can be.
        values = np.array([record.metrics.get(name, -np.inf) for record in records])
    if on.startswith(OF_ORDER):
        return values
    values = np.where(np.isneginf(values), 0.0, values)
    if ((values < 0) | (values > 1)).any():
        raise UserError(
            f"--on {on}: {on} is not between 0 and 1, so its mean has no such test; --on {OF_ORDER}{on} compares which is larger"
        )
    return values


def _differences(first: Evaluated, second: Evaluated, on: str, spec: TaskSpec, horizon: int) -> NDArray[np.float64]:
    """First minus second on their common initial states, in the order of the seeds."""
    common = set(common_seeds([first, second]))
    one, other = (
        figure(sorted((r for r in run.records if r.seed in common), key=lambda r: r.seed), on, spec, horizon)
        for run in (first, second)
    )
    if on.startswith(OF_ORDER):
        return (one > other).astype(np.float64) - (one < other)
    return one - other


def _verdict(pair: Mapping[str, Any], found: Mapping[str, Any], enough: float) -> str:
    of = "" if found["on"] == "success" else f" in {found['on']}"
    if pair["state"] == "level":
        said = f"{pair['first']} and {pair['second']} differ{of} by less than {100 * found['margin']:g} points"
    elif pair["state"]:
        better, worse = pair[pair["state"]], pair["second" if pair["state"] == "first" else "first"]
        said = f"decided: {better} is better than {worse}{of}"
    else:
        said = f"undecided between {pair['first']} and {pair['second']}{of}"
    low, high = (100 * end for end in pair["interval"])
    return (
        f"{said} at horizon {found['horizon']} after {pair['episodes']} episodes "
        f"({100 * pair['difference']:+.1f} points, {low:+.1f} to {high:+.1f}, evidence {pair['evidence']:.3g} of {enough:.0f})"
    )
