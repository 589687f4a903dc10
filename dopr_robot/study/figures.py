"""Pictures of a study: of one task and policy, and over all tasks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dopr_robot.evaluation.reports import plots
from dopr_robot.evaluation.statistics import difference_curve, performance_profile, success_matrix
from dopr_robot.study.budgets import Clock, budget_text, seconds_of
from dopr_robot.study.config import Study
from dopr_robot.study.methods import Method
from dopr_robot.study.over_tasks import scores
from dopr_robot.study.summary import budget_of
from dopr_robot.study.table import references
from dopr_robot.study.tasks import task_of


def tasks_figure(every: Sequence[Method], study: Study, said: Mapping[str, str]) -> Figure:
    """Of one policy over all tasks: each optimizer's performance profile, and for each comparison the tasks' differences, sorted."""
    of: dict[str, list[Method]] = {}
    for method in every:
        of.setdefault(method.optimizer, []).append(method)
    against = {name: other for name, other in references(study).items() if name in of and other in of}
    everything, rates = scores(every), all(method.rates for method in every)
    thresholds = np.linspace(min(0.0, everything.min()), max(1.0, everything.max()), 401)
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(12.6, 4.4), layout="constrained")
        panels: Any = figure.subplots(1, 2)
        looks = dict(zip(of, plots.looks(len(of)), strict=True))
        for name, methods in of.items():
            colour, dashes = looks[name]
            profile = performance_profile(scores(methods), thresholds)
            panels[0].step(
                thresholds, profile, where="post", color=colour, linestyle=dashes, label=plots.wrapped(said[name])
            )
        panels[0].set_xlabel(
            "success at the longest horizon" if rates else "score: success, or share of the return that counts as 1"
        )
        panels[0].set_ylabel("share of runs above it")
        panels[0].set_ylim(-0.02, 1.02)
        panels[1].axhline(0, color="black", linewidth=0.8)
        for place, (name, other) in enumerate(against.items()):
            difference = (scores(of[name]) - scores(of[other])).mean(axis=1)
            # Beside one another where they are level, so that none hides another.
            beside = 0.6 * ((place + 0.5) / len(against) - 0.5)
            panels[1].plot(
                np.arange(1, len(difference) + 1) + beside,
                100 * np.sort(difference)[::-1],
                "o",
                color=looks[name][0],
                markersize=4,
                label=f"{plots.wrapped(said[name])} against {said[other]}",
            )
        bases = {said[other] for other in against.values()}
        if len(bases) > 1:
            panels[1].legend(fontsize=8)
        panels[1].set_xlabel("tasks, from the largest gain to the largest loss")
        beyond = f" from {bases.pop()}" if len(bases) == 1 else ""
        panels[1].set_ylabel(f"difference{beyond} in {'success' if rates else 'score'} (points)")
        panels[1].xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        plots.legend_above(figure, panels[0])
    return figure


def horizons_figure(table: Sequence[Mapping[str, Any]], said: Mapping[str, str]) -> Figure:
    """Success on test seeds against the horizon, or the return where that is the task's figure, a panel for each task and policy, from the
    rows of ``table.csv``. Bars: 95 %, beside one another so that they can be told apart. ``said``: what policies and optimizers are
    called."""
    panels = list(dict.fromkeys((row["task"], row["policy"], budget_of(row)) for row in table))
    optimizers = list(dict.fromkeys(row["optimizer"] for row in table))
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(5.2 * columns, 3.2 * lines + 0.6), layout="constrained")
        grid = figure.subplots(lines, columns, squeeze=False)
        for axes, (task, policy, budget) in zip(grid.flat, panels, strict=False):
            inside = [r for r in table if (r["task"], r["policy"], budget_of(r)) == (task, policy, budget)]
            figure_of = "return" if all(row.get("return") for row in inside) else "success"
            for place, (name, (colour, dashes)) in enumerate(
                zip(optimizers, plots.looks(len(optimizers)), strict=True)
            ):
                keys = ("horizon", figure_of, f"{figure_of}_low", f"{figure_of}_high")
                found = [[float(row[key] or "nan") for key in keys] for row in inside if row["optimizer"] == name]
                horizon, middle, low, high = np.array(found).reshape(-1, 4).T
                beside = 0.012 * (place - (len(optimizers) - 1) / 2) * horizon.max(initial=0)
                bars: Any = np.clip([middle - low, high - middle], 0, None)
                axes.errorbar(
                    horizon + beside, middle, bars, fmt="o", linestyle=dashes, color=colour, markersize=4, elinewidth=1,
                    label=plots.wrapped(said[name]),
                )  # fmt: skip
            share = f", {budget_text(budget)}" if len({panel[2] for panel in panels}) > 1 else ""
            axes.set(
                title=f"{task.rsplit('/', 1)[-1]}, {said[policy]}{share}",
                xlabel="horizon (control steps)",
                ylabel=figure_of,
            )
            axes.set_xlim(left=0)
            if figure_of == "success":
                plots.success_axis(axes)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        plots.legend_above(figure, grid[0, 0])
    return figure


def budgets_figure(group: Sequence[Method], clock: Clock, said: Mapping[str, str]) -> Figure:
    """Of one task and policy: the score at the longest horizon against each budget's optimizer steps, and against its training time.
    Thick: means over seeds; thin: seeds. ``said``: what optimizers are called."""
    of: dict[str, list[Method]] = {}
    for method in group:
        of.setdefault(method.optimizer, []).append(method)
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(12.6, 4.0), layout="constrained")
        panels: Any = figure.subplots(1, 2)
        for (name, methods), (colour, dashes) in zip(of.items(), plots.looks(len(of)), strict=True):
            seeds = scores(methods)  # [budgets, seeds]
            steps: list[float | None] = [float(method.steps) for method in methods]
            seconds = [seconds_of(method, clock) for method in methods]
            for axes, places in zip(panels, (steps, seconds), strict=True):
                if None in places:
                    continue
                axes.plot(places, seeds, color=colour, linewidth=0.7, alpha=0.4)
                axes.plot(
                    places, seeds.mean(axis=1), "o", linestyle=dashes, color=colour, linewidth=2, clip_on=False,
                    label=plots.wrapped(said[name]),
                )  # fmt: skip
        for axes, x in zip(panels, ("training step at which the schedule ends", "training time (s)"), strict=True):
            axes.set(xlabel=x, ylabel=f"{_called(group)} at the longest horizon")
            axes.set_xlim(left=0)
            if group[0].rates:
                plots.success_axis(axes)
        panels[0].legend(fontsize=8)
    return figure


def curves_figure(group: Sequence[Method], horizons: Sequence[int], said: Mapping[str, str]) -> Figure:
    """Of one task and policy: score on test seeds against the horizon, validation loss and score on selection seeds along training, that
    score against wall time and against validation loss, and what each learning rate gave. Thick: means over seeds; thin: seeds; bands:
    95 % over seeds and episodes, where they are few enough to be told apart. ``said``: what optimizers are called."""
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(12.6, 7.4), layout="constrained")
        panels: Any = figure.subplots(2, 3)
        for method, (colour, dashes) in zip(group, plots.looks(len(group)), strict=True):
            name = plots.wrapped(said[method.optimizer])
            style = {"color": colour, "linestyle": dashes}
            marked = style | {"marker": "o", "fillstyle": "full" if dashes == "-" else "none", "clip_on": False}
            _horizon(panels[0, 0], method, style, horizons, name, band=len(group) <= plots.BANDS)
            _along(panels[0, 1], method, marked, lambda point: point.get("validation_loss"))
            _along(panels[0, 2], method, marked, method.look)
            _along(panels[1, 0], method, marked, method.look, clock=True)
            _against_loss(panels[1, 1], method, marked)
            means = {rate: np.mean(values) for rate, values in sorted(method.tried.items())}
            panels[1, 2].plot(list(means), list(means.values()), markersize=4, **marked)
            circle = marked | {"fillstyle": "none", "markersize": 10}
            panels[1, 2].plot([method.learning_rate], [means[method.learning_rate]], **circle)
        chosen_on = f"{_called(group)} on selection seeds"
        labels = (
            ("horizon (control steps)", f"{_called(group)} on test seeds"),
            ("training step", "validation loss"),
            ("training step", chosen_on),
            ("training time (s)", chosen_on),
            ("validation loss", chosen_on),
            ("learning rate (circle: chosen)", chosen_on),
        )
        for axes, (x, y) in zip(panels.flat, labels, strict=True):
            axes.set_xlabel(x)
            axes.set_ylabel(y)
            if y.startswith("success"):
                plots.success_axis(axes)
        panels[1, 2].set_xscale("log")
        rates = sorted({rate for method in group for rate in method.tried})
        panels[1, 2].set_xticks(rates, [f"{rate:g}" for rate in rates], rotation=0 if len(rates) < 6 else 45)
        panels[1, 2].minorticks_off()
        losses = [loss for method in group for loss in _values(method, "validation_loss")]
        if losses and min(losses) > 0 and max(losses) > 3 * min(losses):
            panels[0, 1].set_yscale("log")
            panels[1, 1].set_xscale("log")
            plots.log_axis(panels[0, 1].yaxis)
            plots.log_axis(panels[1, 1].xaxis)
        else:
            panels[1, 1].xaxis.set_major_locator(MaxNLocator(4))  # their numbers are long
        for axes in panels[0]:
            axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        plots.legend_above(figure, panels[0, 0])
    return figure


def _called(group: Sequence[Method]) -> str:
    """What a task's score is on an axis."""
    if (found := group[0].return_range) is None:
        return "success"
    zero, one = found
    sign = "+" if zero < 0 else "-"
    return f"(return {sign} {abs(zero):.4g}) / {one - zero:.4g}" if zero else f"return / {one:.4g}"


def _horizon(
    axes: Axes, method: Method, style: Mapping[str, Any], horizons: Sequence[int], name: str, *, band: bool
) -> None:
    if method.rates:
        kind, steps = task_of(method.task).kind, np.unique(np.linspace(0, max(horizons), 200).round().astype(int))
        episodes = method.success.shape[1]
        score = np.stack(
            [
                success_matrix(records, kind, steps.tolist()) if records else np.zeros((episodes, len(steps)), bool)
                for records in method.tests
            ]
        )  # [S, E, steps]
    else:  # between the horizons a record does not say what had been earned
        steps, score = np.array(horizons), method.score
    step: Any = "post" if method.rates else None
    style = {**style, "drawstyle": "steps-post" if step else "default"}
    for curve in score.mean(axis=1) if len(score) > 1 else []:
        axes.plot(steps, curve, linewidth=0.7, alpha=0.4, **style)
    axes.plot(
        steps, score.mean(axis=(0, 1)), marker="" if step else "o", markersize=4, linewidth=2, label=name, **style
    )
    if band:
        own = difference_curve(score, np.zeros_like(score), rates=method.rates)
        low, high = np.clip([own.low, own.high], 0, 1) if method.rates else (own.low, own.high)
        axes.fill_between(steps, low, high, step=step, color=style["color"], alpha=0.12, linewidth=0)


def _along(
    axes: Axes,
    method: Method,
    style: Mapping[str, Any],
    of: Callable[[Mapping[str, Any]], float | None],
    *,
    clock: bool = False,
) -> None:
    lines = []
    for record in method.records:
        places = record["cost"]["seconds"] if clock else [point["step"] for point in record["curve"]]
        looks = zip(places, map(of, record["curve"]), strict=True)
        line = [(x, found) for x, found in looks if found is not None]
        if line:
            lines.append(np.array(line))
            axes.plot(*lines[-1].T, **{**style, "marker": ""}, linewidth=0.7, alpha=0.4)
    shared = min(map(len, lines), default=0)
    if shared:
        axes.plot(*np.mean([line[:shared] for line in lines], axis=0).T, **style, linewidth=2, markersize=3)


def _against_loss(axes: Axes, method: Method, style: Mapping[str, Any]) -> None:
    for curve in method.curves:
        if curve:
            x, y = np.array(curve).T
            axes.plot(x, y, **{**style, "marker": ""}, linewidth=0.7, alpha=0.4)
            axes.plot(x[-1:], y[-1:], **{**style, "linestyle": ""}, markersize=6)


def _values(method: Method, key: str) -> list[float]:
    return [point[key] for record in method.records for point in record["curve"] if point.get(key) is not None]
