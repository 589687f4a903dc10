"""Evaluated runs beside each other: from their folders to a comparison."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dopr_robot import seeds
from dopr_robot.envs import get_task
from dopr_robot.errors import UserError
from dopr_robot.evaluation import statistics
from dopr_robot.evaluation.reports import naming, plots
from dopr_robot.evaluation.reports.differences import difference_figure
from dopr_robot.evaluation.reports.evaluation import write_comparison_report
from dopr_robot.evaluation.reports.provenance import training_rows
from dopr_robot.evaluation.reports.returns import returns_figure
from dopr_robot.evaluation.rollouts.records import RECORDS, EpisodeRecord, read_records, read_results
from dopr_robot.files import shown, write_json
from dopr_robot.progress import progress
from dopr_robot.training import Run

SIZES = (0.05, 0.1, 0.2)
"""Differences for which the number of episodes needed is told."""


@dataclass(frozen=True)
class Evaluated:
    """The evaluation of one run.

    Attributes:
        folder: of the evaluation.
        label: what the run's method is called, see :mod:`~dopr_robot.evaluation.reports.naming`; runs of one differ in the seed.
        training_seed: None where it is not known.
        results, records: content of the folder.
    """

    folder: Path
    label: str
    training_seed: int | None
    results: dict[str, Any]
    records: list[EpisodeRecord]


@dataclass(frozen=True)
class Method:
    """Runs that differ in the training seed alone, on common episodes.

    Attributes:
        label: see :class:`Evaluated`.
        runs: one a training seed.
        success: bool ``[training seeds, episodes, horizons]``.
        returns: likewise at the horizons at which all records say it; none of a task whose reward says no more than success.
    """

    label: str
    runs: tuple[Evaluated, ...]
    success: np.ndarray
    returns: np.ndarray


def load_evaluated(folder: Path, label: str, training_seed: int | None) -> Evaluated:
    """Read an evaluation folder. Raises UserError where it is none, or one on seeds that are not for final figures."""
    results = read_results(folder)
    records = read_records(folder / RECORDS)
    seeds.require_use((record.seed for record in records), "final")
    return Evaluated(folder, label, training_seed, results, records)


def compare_evaluated(runs: Sequence[Evaluated], horizons: Sequence[int] | None = None) -> dict[str, Any]:
    """Compare methods on the episodes that all their runs have in common.

    Args:
        runs: at least two, of at least two labels.
        horizons: control steps; None: those of the first evaluation.

    Returns:
        The content of ``comparison.json``: ``methods`` (curve, returns and restricted mean of each), ``pairs`` (for each two methods and
        each horizon the difference with interval, band and p-value, plain and after Holm's correction over all pairs and horizons, and
        the episodes needed to see differences of a given size; the paired difference of returns with interval and band), ``about`` (what
        each method is, ``{name: [a text a method]}``) and ``settings`` (those in which methods differ, likewise).

    Raises:
        UserError: fewer than two methods, different tasks, no episode in common, or initial states that differ for one seed.
    """
    common = common_seeds(runs)
    kind, longest = runs[0].results["kind"], min(max(run.results["horizons"]) for run in runs)
    asked = sorted(set(horizons or runs[0].results["horizons"]))
    if asked[-1] > longest:
        raise UserError(
            f"horizon {asked[-1]} is beyond {longest}, which all runs were rolled out to: evaluate again with --horizons"
        )
    earning = _earning_horizons(runs, asked)
    methods = group(runs, common, kind, asked, earning)
    if len(methods) < 2:
        raise UserError("the runs differ in the training seed alone: compare runs of at least two methods")
    pairs = []
    with progress("compare", math.comb(len(methods), 2), "pairs") as meter:
        for first, second in combinations(methods, 2):
            pairs.append(_pair(first, second, asked) | {"returns": _pair_of_returns(first, second, earning)})
            meter.advance()
    cells = [cell for pair in pairs for cell in pair["curve"]]
    for cell, adjusted in zip(cells, statistics.holm([cell["p_value"] for cell in cells]), strict=True):
        cell["p_holm"] = adjusted
    return {
        "task": runs[0].results["task"],
        "kind": kind,
        "episodes": len(common),
        "horizons": asked,
        "methods": [
            _describe(method, kind, asked) | {"returns": statistics.returns_of_seeds(method.returns, earning)}
            for method in methods
        ],
        "pairs": pairs,
        "about": _about(methods),
        "settings": naming.details({method.label: naming.settings(method.runs[0].folder) for method in methods}),
    }


def _about(methods: Sequence[Method]) -> dict[str, list[str]]:
    """What :func:`training_rows` says of each method's first run, ``{name: [a text a method]}``; the seeds are those of all its runs."""
    rows = [dict(training_rows(Run.of(method.runs[0].folder))) for method in methods]
    found = {name: [row.get(name, "") for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    if "training seed" in found:
        found["training seed"] = [
            ", ".join(str(run.training_seed) for run in method.runs if run.training_seed is not None)
            for method in methods
        ]
    return found


def common_seeds(runs: Sequence[Evaluated]) -> list[int]:
    """Seeds that every run was evaluated on, from the same initial states."""
    if len(runs) < 2:
        raise UserError("a comparison needs at least two runs")
    first = runs[0]
    for run in runs[1:]:
        for key in ("task", "kind", "env_options"):
            if run.results.get(key) != first.results.get(key):
                hint = ": --option NAME=VALUE evaluates all runs under one" if key == "env_options" else ""
                raise UserError(
                    f"{run.folder} is of another {key} ({run.results.get(key)}) than {first.folder} ({first.results.get(key)}){hint}"
                )
    states = [{record.seed: record.initial_state_sha256 for record in run.records} for run in runs]
    common = sorted(set.intersection(*(set(of_run) for of_run in states)))
    if not common:
        raise UserError(
            f"{runs[0].folder} and {runs[1].folder} have no initial state in common: evaluate with the same --seed"
        )
    for run, of_run in zip(runs, states, strict=True):
        for seed in common:
            known = {state for state in (of_run[seed], states[0][seed]) if state is not None}
            if len(known) > 1:
                raise UserError(
                    f"seed {seed} began from another state in {run.folder}: evaluate both with one version of the task"
                )
    return common


def _earning_horizons(runs: Sequence[Evaluated], horizons: Sequence[int]) -> list[int]:
    """Where the return is compared: at the horizons at which every run's records say it."""
    if not get_task(runs[0].results["task"]).reward:
        return []
    return statistics.known_horizons([record for run in runs for record in run.records], horizons)


def group(
    runs: Sequence[Evaluated], common: Sequence[int], kind: str, horizons: Sequence[int], earning: Sequence[int] = ()
) -> list[Method]:
    """Methods in the order in which they were named, each with the runs of its training seeds; ``earning``: horizons of the returns."""
    chosen = set(common)
    methods = []
    for label in dict.fromkeys(run.label for run in runs):
        members = tuple(sorted((run for run in runs if run.label == label), key=lambda run: run.training_seed or 0))
        those = [
            sorted((record for record in run.records if record.seed in chosen), key=lambda record: record.seed)
            for run in members
        ]
        success = np.stack([statistics.success_matrix(records, kind, horizons) for records in those])
        returns = np.stack([statistics.return_matrix(records, earning) for records in those])
        methods.append(Method(label, members, success, returns))
    return methods


def _describe(method: Method, kind: str, horizons: Sequence[int]) -> dict[str, Any]:
    rates = method.success.mean(axis=(0, 1))
    own = statistics.difference_curve(method.success, np.zeros_like(method.success))
    points = []
    for h, horizon in enumerate(horizons):
        successes, episodes = int(method.success[:, :, h].sum()), method.success[:, :, h].size
        point = {"horizon": horizon, "episodes": episodes, "successes": successes, "success_rate": float(rates[h])}
        # Episodes of several training seeds are no independent draws.
        one = len(method.runs) == 1
        interval = statistics.wilson(successes, episodes) if one else (max(0.0, float(own.low[h])), float(own.high[h]))
        points.append(point | {"ci95": list(interval)})
    return {
        "label": method.label,
        "runs": [shown(run.folder) for run in method.runs],
        "training_seeds": [run.training_seed for run in method.runs],
        "curve": points,
        "restricted_mean_steps": [statistics.restricted_mean(run.records, kind, max(horizons)) for run in method.runs],
    }


def _pair(first: Method, second: Method, horizons: Sequence[int]) -> dict[str, Any]:
    found = statistics.difference_curve(first.success, second.success)
    single = len(first.runs) == len(second.runs) == 1
    cells: list[dict[str, Any]] = []
    for h, horizon in enumerate(horizons):
        test: dict[str, Any]
        if single:
            test = {"test": "McNemar, exact", **statistics.mcnemar(first.success[0, :, h], second.success[0, :, h])}
        else:
            rates = first.success[:, :, h].mean(axis=1), second.success[:, :, h].mean(axis=1)
            test = {"test": "permutation of training seeds, exact", "p_value": statistics.seeds_test(*rates)}
        cells.append(
            {
                "horizon": horizon,
                "difference": float(found.difference[h]),
                "ci95": [float(found.low[h]), float(found.high[h])],
                "band95": [float(found.band_low[h]), float(found.band_high[h])],
                **test,
            }
        )
    seeds_in_common = min(len(first.runs), len(second.runs))
    discordant = float((first.success[:seeds_in_common, :, -1] ^ second.success[:seeds_in_common, :, -1]).mean())
    return {
        "first": first.label,
        "second": second.label,
        "curve": cells,
        "discordant": discordant,
        "episodes_needed": {str(size): statistics.episodes_needed(size, discordant) for size in SIZES},
    }


def _pair_of_returns(first: Method, second: Method, horizons: Sequence[int]) -> list[dict[str, Any]]:
    """The paired difference of returns: ``[{horizon, difference, ci95, band95}]``."""
    if not horizons:
        return []
    found = statistics.difference_curve(first.returns, second.returns, rates=False)
    return [
        {
            "horizon": horizon,
            "difference": float(found.difference[h]),
            "ci95": [float(found.low[h]), float(found.high[h])],
            "band95": [float(found.band_low[h]), float(found.band_high[h])],
        }
        for h, horizon in enumerate(horizons)
    ]


def write_comparison(result: dict[str, Any], runs: Sequence[Evaluated], out: Path) -> None:
    """Write ``comparison.json``, ``horizon.png`` (all curves on common axes), ``difference.png`` and ``report.html`` to ``out``.

    ``returns.png`` too, where the task's reward says more than success."""
    write_json(out / "comparison.json", result)
    curves = curves_figure(result, runs)
    spec = get_task(result["task"])
    difference = difference_figure(result["pairs"], spec.control_hz)
    returns = None
    if result["methods"][0]["returns"]:
        title = f"{spec.name}: {result['episodes']} common initial states"
        returns = returns_figure([(method["label"], method["returns"]) for method in result["methods"]], spec, title)
        plots.save(returns, out / "returns.png")
    plots.save(curves, out / "horizon.png")
    plots.save(difference, out / "difference.png")
    write_comparison_report(out / "report.html", result, spec, curves, difference, returns)


def curves_figure(result: dict[str, Any], runs: Sequence[Evaluated]) -> Figure:
    """Every method's curve; of several training seeds the mean, and thin lines for the single runs."""
    common = set(common_seeds(runs))
    drawn = []
    looks = plots.looks(len(result["methods"]))
    for method, (colour, dashes) in zip(result["methods"], looks, strict=True):
        members = [run for run in runs if run.label == method["label"]]
        shared = [[record for record in run.records if record.seed in common] for run in members]
        single = len(members) == 1
        if not single:
            drawn += [
                plots.Run("", records, result["horizons"], colour, dashes, band=False, thin=True) for records in shared
            ]
        pooled = [record for records in shared for record in records]
        # More bands than these over one another show nothing.
        band = single and len(result["methods"]) <= plots.BANDS
        bars = [point["ci95"] for point in method["curve"]] if not single else None
        drawn.append(plots.Run(method["label"], pooled, result["horizons"], colour, dashes, band, intervals=bars))
    title = f"{get_task(result['task']).name}: {result['episodes']} common initial states"
    return plots.horizon_figure(drawn, result["kind"], get_task(result["task"]).control_hz, title)
