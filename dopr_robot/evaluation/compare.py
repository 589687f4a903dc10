"""Whether one run beats another: runs evaluated on common initial states, compared, and the comparison written down."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dopr_robot.envs import get_task
from dopr_robot.errors import UserError
from dopr_robot.evaluation.comparison import (
    Evaluated,
    compare_evaluated,
    curves_figure,
    load_evaluated,
    write_comparison,
)
from dopr_robot.evaluation.evaluate import evaluated
from dopr_robot.evaluation.reports.naming import method_labels
from dopr_robot.evaluation.results import Curve, spread
from dopr_robot.evaluation.rollouts.records import RESULTS
from dopr_robot.evaluation.sequential import sequentially
from dopr_robot.policies import find_checkpoint
from dopr_robot.tables import InFolder, Table, interval

PAIRS = 3
"""Of more pairs than these the longest horizon alone is printed."""


class Comparison(InFolder):
    """A comparison and where it lies. ``print`` shows what ``dopr compare`` does.

    Attributes:
        folder: with ``comparison.json``, ``horizon.png``, ``difference.png`` and ``report.html``.
        content: ``comparison.json``, see :func:`~dopr_robot.evaluation.comparison.compare_evaluated`.
        runs: the evaluations that were compared.
    """

    def __init__(self, folder: Path, content: dict[str, Any], runs: Sequence[Evaluated]) -> None:
        self.folder, self.content, self.runs = folder, content, list(runs)

    @property
    def methods(self) -> list[dict[str, Any]]:
        """Label, runs and curve of each method."""
        return list(self.content["methods"])

    @property
    def pairs(self) -> list[dict[str, Any]]:
        """For each two methods the differences at every horizon, with intervals and p-values."""
        return list(self.content["pairs"])

    @property
    def curves(self) -> dict[str, Curve]:
        """Success versus horizon of each method, by its label."""
        hz = get_task(self.content["task"]).control_hz
        return {method["label"]: Curve(method["curve"], hz) for method in self.methods}

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame``, a row a pair and horizon, rates and not points. Raises ImportError without pandas."""
        import pandas

        keys = ("horizon", "difference", "p_value", "p_holm")
        return pandas.DataFrame(
            [
                {
                    "first": pair["first"],
                    "second": pair["second"],
                    **{key: cell[key] for key in keys},
                    "low": cell["ci95"][0],
                    "high": cell["ci95"][1],
                }
                for pair in self.pairs
                for cell in pair["curve"]
            ]
        )

    def plot(self) -> Any:
        """Every method's curve as a matplotlib figure."""
        return curves_figure(self.content, self.runs)

    def _parts(self) -> Iterator[str | Table]:
        content = self.content
        yield f"{content['task']} ({content['kind']}), {content['episodes']} common initial states"
        horizon = content["horizons"][-1]
        rows = []
        for method in self.methods:
            last = method["curve"][-1]
            rows.append([method["label"], len(method["runs"]), f"{last['success_rate']:.1%}", interval(last["ci95"])])
        yield Table(["method", "runs", f"success at {horizon}", "95 %"], rows)
        every = len(self.pairs) <= PAIRS
        for pair in self.pairs if every else []:
            yield f"\n{pair['first']} minus {pair['second']} ({pair['curve'][0]['test']})"
            cells = [[cell["horizon"], *_cells(cell)] for cell in pair["curve"]]
            yield Table(["horizon", "points", "95 %", "p", "p (Holm)"], cells)
            needed = (
                f"{100 * float(size):.0f}: {count or 'more than 20000'}"
                for size, count in pair["episodes_needed"].items()
            )
            yield f"episodes needed to see a difference (80 % power), by points: {', '.join(needed)}"
        if not every:
            test = self.pairs[0]["curve"][0]["test"]
            yield f"\ndifferences at horizon {horizon} ({test}); the others are in the report"
            rows = [[pair["first"], pair["second"], *_cells(pair["curve"][-1])] for pair in self.pairs]
            yield Table(["", "minus", "points", "95 %", "p", "p (Holm)"], rows)
        yield from self._returns()
        if settings := content["settings"]:
            yield "\nsettings that differ"
            labels = [method["label"] for method in self.methods]
            if len(labels) > len(settings):  # the longer side goes down the page
                columns = list(settings.values())
                rows = [[label, *(values[i] for values in columns)] for i, label in enumerate(labels)]
                yield Table(["method", *settings], rows)
            else:
                yield Table(["setting", *labels], [[key, *values] for key, values in settings.items()])
        if content["sequential"]:
            yield "\n" + content["sequential"]["verdict"].replace("; ", "\n")
            yield "(intervals and p-values above are of a fixed number of episodes: after a stop, the verdict counts)"

    def _returns(self) -> Iterator[str | Table]:
        """Of a task whose reward says more than success."""
        if not self.methods[0].get("returns"):
            return
        last = self.methods[0]["returns"][-1]["horizon"]
        yield "\nreturn"
        rows = [(method["label"], method["returns"][-1]) for method in self.methods]
        yield Table(
            ["method", f"mean return at {last}", "95 %"], [[label, f"{p['mean']:.1f}", spread(p)] for label, p in rows]
        )
        cells = [(pair["first"], pair["second"], pair["returns"][-1]) for pair in self.pairs]
        yield Table(
            ["", "minus", "difference", "95 %"],
            [[*names, f"{cell['difference']:+.1f}", interval(cell["ci95"], "{:+.1f}")] for *names, cell in cells],
        )

    def _pictures(self) -> Sequence[Path]:
        more = [self.folder / "returns.png"] if self.methods[0].get("returns") else []
        return [self.folder / "horizon.png", self.folder / "difference.png", *more]

    def __repr__(self) -> str:
        named = " against ".join(method["label"] for method in self.methods)
        return f"Comparison({str(self.folder)!r}: {named}, {self.content['episodes']} common initial states)"


def compare(
    runs: Sequence[str | os.PathLike[str]],
    *,
    episodes: int = 100,
    horizons: Sequence[int] | None = None,
    seed: int = 0,
    labels: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
    num_envs: int | None = None,
    ray: str | None = None,
    sequential: bool = False,
    on: str = "success",
    margin: float = 0.05,
    block: int = 20,
    out: str | os.PathLike[str] = "comparison",
) -> Comparison:
    """Compare runs on common initial states, as ``dopr compare`` does; runs that differ in the training seed alone are one method.

    >>> compare(["runs/adamw", "runs/dopr"], episodes=200).pairs                # doctest: +SKIP

    Args:
        runs: runs, run folders, checkpoints or evaluation folders; those without such an evaluation are evaluated.
        episodes: initial states; with ``sequential`` at most.
        horizons: control steps; None: 8 equal ones up to the task's longest.
        seed: block of initial states.
        options: of the task, over those that the runs were trained for; runs of different options are refused.
        labels: what the methods are called, in their order.
        num_envs: copies of the environment.
        ray: address of a Ray cluster that evaluates, see :func:`~dopr_robot.evaluation.evaluate.evaluate`.
        sequential: at most eight runs, ``block`` episodes between two looks, until an anytime-valid test has decided every pair.
        on: what that test compares: ``success``, ``time``, ``stages``, a figure of the task's, see
            :func:`~dopr_robot.evaluation.sequential.figure`.
        margin: of a pair that differs by less, as a rate, the test says so and stops; 0: it goes on to ``episodes``.
        out: where it goes.

    Raises:
        UserError: fewer than two runs or methods, or runs that can not be compared.
    """
    paths, out = [Path(run) for run in runs], Path(out)
    if len(paths) < 2:
        raise UserError("a comparison needs at least two runs")
    for path in paths:  # before anything is evaluated
        if not (path / RESULTS).is_file():
            find_checkpoint(path)
    named = method_labels(paths, labels)
    ways: dict[str, Any] = {"horizons": horizons, "seed": seed, "num_envs": num_envs, "ray": ray, "options": options}
    decision: dict[str, Any] | None = None
    if sequential:
        labels = [label for label, _ in named]
        folders, decision = sequentially(
            paths, labels, on=on, margin=margin, episodes=episodes, block=block, out=out, ways=ways
        )
    else:
        folders = [evaluated(path, episodes=episodes, **ways) for path in paths]
    found = [load_evaluated(folder, *label) for folder, label in zip(folders, named, strict=True)]
    result = compare_evaluated(found, horizons)
    result["sequential"] = decision
    write_comparison(result, found, out)
    return Comparison(out, result, found)


def _cells(cell: dict[str, Any]) -> list[str]:
    points = [100 * bound for bound in cell["ci95"]]
    values = f"{100 * cell['difference']:+.1f}", interval(points, "{:+.1f}"), cell["p_value"], cell["p_holm"]
    return [value if isinstance(value, str) else f"{value:.4f}" for value in values]
