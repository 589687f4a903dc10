"""The report of a study: its table, its curves, and what was held equal, in one page that opens from disk."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from dopr_robot.envs import get_task
from dopr_robot.evaluation import EpisodeRecord, plots
from dopr_robot.evaluation.pages import svg, write_page
from dopr_robot.evaluation.statistics import success_matrix
from dopr_robot.files import replacing
from dopr_robot.study.config import Arm, Study
from dopr_robot.study.table import Method, Record, methods, rows, to_csv


def write_report(
    study: Study,
    chosen: Sequence[Arm],
    done: Mapping[str, Record],
    tests: Mapping[str, Sequence[EpisodeRecord]],
    horizons: Mapping[str, Sequence[int]],
    out: Path,
) -> None:
    """Write ``table.csv``, ``curves-<task>-<policy>.png`` and ``report.html``."""
    every = methods(study, chosen, done, tests, horizons)
    table = rows(study, every, horizons)
    with replacing(out / "table.csv") as beside:
        beside.write_text(to_csv(table), encoding="utf-8")
    panels = []
    for task, policy in dict.fromkeys((method.task, method.policy) for method in every):
        group = [method for method in every if (method.task, method.policy) == (task, policy)]
        figure = curves_figure(group, max(horizons[task]))
        name = "-".join((task.rsplit("/", 1)[-1], *policy.split()))
        plots.save(figure, out / f"curves-{name}.png")
        last = [
            row for row in table if (row["task"], row["policy"], row["horizon"]) == (task, policy, max(horizons[task]))
        ]
        whole = [row for row in table if (row["task"], row["policy"]) == (task, policy)]
        last = [row | {"own": json.loads(row["figures"] or "{}")} for row in last]
        figures = list(dict.fromkeys(name for row in last for name in row["own"]))
        panels.append(
            {"task": task, "policy": policy, "last": last, "rows": whole, "figures": figures, "svg": svg(figure)}
        )
    write_page(
        out / "report.html",
        "study.html.j2",
        package="dopr_robot.study",
        panels=panels,
        study=study,
        arms=len(done),
        diverged=[record for record in done.values() if record["error"]],
        settings=study.to_yaml(),
    )


def curves_figure(group: Sequence[Method], longest: int) -> Figure:
    """Of one task and policy: test success against the horizon, validation loss and selection success along training, success
    against wall time and against validation loss, and what each learning rate gave. Thick: means over seeds; thin: seeds."""
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(12.6, 7.4), layout="constrained")
        panels: Any = figure.subplots(2, 3)
        for method, colour in zip(group, plots.colours(len(group)), strict=True):
            _horizon(panels[0, 0], method, colour, longest)
            _along(panels[0, 1], method, colour, "validation_loss")
            _along(panels[0, 2], method, colour, "success_rate")
            _along(panels[1, 0], method, colour, "success_rate", clock=True)
            _against_loss(panels[1, 1], method, colour)
            means = {rate: np.mean(values) for rate, values in sorted(method.tried.items())}
            panels[1, 2].plot(list(means), list(means.values()), "o-", color=colour, markersize=4)
            panels[1, 2].plot(
                [method.learning_rate],
                [means[method.learning_rate]],
                "o",
                color=colour,
                markersize=10,
                fillstyle="none",
            )
        labels = (
            ("horizon (control steps)", "success on test seeds"),
            ("training step", "validation loss"),
            ("training step", "success on selection seeds"),
            ("training time (s)", "success on selection seeds"),
            ("validation loss", "success on selection seeds"),
            ("learning rate (circle: chosen)", "success on selection seeds"),
        )
        for axes, (x, y) in zip(panels.flat, labels, strict=True):
            axes.set_xlabel(x)
            axes.set_ylabel(y)
            if "success" in y:
                axes.set_ylim(-0.02, 1.02)
                axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        panels[1, 2].set_xscale("log")
        rates = sorted({rate for method in group for rate in method.tried})
        panels[1, 2].set_xticks(rates, [f"{rate:g}" for rate in rates], rotation=0 if len(rates) < 6 else 45)
        panels[1, 2].minorticks_off()
        for axes, set_log in ((panels[0, 1], "set_yscale"), (panels[1, 1], "set_xscale")):
            losses = [loss for method in group for loss in _values(method, "validation_loss")]
            if losses and min(losses) > 0 and max(losses) > 10 * min(losses):
                getattr(axes, set_log)("log")
        for axes in panels[0]:
            axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def _horizon(axes: Axes, method: Method, colour: str, longest: int) -> None:
    kind, steps = get_task(method.task).kind, np.unique(np.linspace(0, longest, 200).round().astype(int))
    curves = [
        success_matrix(records, kind, steps.tolist()).mean(axis=0) if records else np.zeros(len(steps))
        for records in method.tests
    ]
    for curve in curves if len(curves) > 1 else []:
        axes.plot(steps, curve, drawstyle="steps-post", color=colour, linewidth=0.7, alpha=0.4)
    axes.plot(steps, np.mean(curves, axis=0), drawstyle="steps-post", color=colour, linewidth=2, label=method.optimizer)


def _along(axes: Axes, method: Method, colour: str, key: str, *, clock: bool = False) -> None:
    lines = []
    for record in method.records:
        places = record["cost"]["seconds"] if clock else [point["step"] for point in record["curve"]]
        line = [(x, point[key]) for x, point in zip(places, record["curve"], strict=True) if point.get(key) is not None]
        if line:
            lines.append(np.array(line))
            axes.plot(*lines[-1].T, color=colour, linewidth=0.7, alpha=0.4)
    shared = min(map(len, lines), default=0)
    if shared:
        axes.plot(*np.mean([line[:shared] for line in lines], axis=0).T, "o-", color=colour, linewidth=2, markersize=3)


def _against_loss(axes: Axes, method: Method, colour: str) -> None:
    for record in method.records:
        points = [
            (point["validation_loss"], point["success_rate"])
            for point in record["curve"]
            if point.get("validation_loss") is not None and "success_rate" in point
        ]
        if points:
            x, y = np.array(points).T
            axes.plot(x, y, "-", color=colour, linewidth=0.7, alpha=0.4)
            axes.plot(x[-1:], y[-1:], "o", color=colour, markersize=6)


def _values(method: Method, key: str) -> list[float]:
    return [point[key] for record in method.records for point in record["curve"] if point.get(key) is not None]
