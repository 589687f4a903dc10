"""Success versus horizon as a picture."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from dopr_robot.envs import TaskSpec
from dopr_robot.evaluation.rollouts.records import EpisodeRecord
from dopr_robot.evaluation.statistics import curve, dkw_half_width, succeeded, success_matrix
from dopr_robot.files import replacing

# Okabe and Ito's colours, told apart by everybody (jfly.uni-koeln.de/color).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")
FEW = 5
"""Quartiles of fewer episodes are not drawn."""
BANDS = 4
"""Curves of more methods than these are drawn without bands."""
WRAP = 46
"""Characters in a line of a legend."""
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.fonttype": "path",
}


@dataclass(frozen=True)
class Run:
    """A curve to draw.

    Attributes:
        label: in the legend; "" for none.
        records: what it is drawn from.
        horizons: steps to mark; the curve ends at the last.
        colour, dashes: None takes the next colour.
        band: whether its interval is drawn.
        thin: a single run behind the mean of several.
        intervals: where they are not Wilson's, low and high at each horizon; drawn as bars.
    """

    label: str
    records: Sequence[EpisodeRecord]
    horizons: Sequence[int]
    colour: str | None = None
    dashes: str = "-"
    band: bool = True
    thin: bool = False
    intervals: Sequence[Sequence[float]] | None = None


def horizon_figure(runs: Sequence[Run], kind: str, control_hz: float, title: str) -> Figure:
    """Success against the horizon in control steps (seconds on top), one curve a run.

    Dark band: pointwise Wilson interval. Light band: the simultaneous one, for the whole curve. Marks: the horizons asked for.
    """
    with matplotlib.rc_context(STYLE):
        names = [wrapped(run.label) for run in runs if run.label]
        below = len(names) > BANDS or any("\n" in name for name in names)
        columns = 1 if any(len(line) > WRAP // 2 for name in names for line in name.split("\n")) else 3
        lines = -(-sum(1 + name.count("\n") for name in names) // columns) if below else 0
        figure = Drawing(figsize=(7.2, 4.2 + 0.19 * lines), layout="constrained")
        axes = figure.add_subplot()
        longest = max(max(run.horizons) for run in runs)
        for run, (colour, _) in zip(runs, looks(len(runs)), strict=True):
            _draw_curve(axes, run, kind, run.colour or colour, alone=len(runs) == 1)
        axes.set_xlim(0, longest * 1.02)
        success_axis(axes)
        axes.set_xlabel("horizon (control steps)")
        axes.set_ylabel("success by the horizon" if kind == "attain" else "not failed by the horizon")
        seconds = axes.secondary_xaxis(
            "top", functions=(partial(_scaled, 1 / control_hz), partial(_scaled, control_hz))
        )
        seconds.set_xlabel("seconds", fontsize=8, color="0.4")
        seconds.tick_params(labelsize=8, colors="0.4", width=0.5)
        seconds.spines["top"].set_visible(False)
        axes.set_title(wrapped(title, 60), loc="left", fontweight="bold")
        if below:
            figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", fontsize=9, ncols=columns)
        else:
            axes.legend(loc="best", fontsize=9)
    return figure


def wrapped(text: str, width: int = WRAP) -> str:
    """A name in lines of at most ``width`` characters, broken at spaces where it has some."""
    return textwrap.fill(text, width, break_on_hyphens=False)


def legend_above(figure: Figure, axes: Axes) -> None:
    """What is in ``axes`` named above all panels, in four columns or as many as the figure is wide enough for."""
    handles, names = axes.get_legend_handles_labels()
    for columns in range(4, 0, -1):
        legend = figure.legend(handles, names, loc="outside upper center", ncols=columns)
        if legend.get_window_extent().width <= figure.bbox.width or columns == 1:
            return
        legend.remove()


def success_axis(axes: Axes) -> None:
    """Percent from 0 to 100, with room for the marks at both ends."""
    axes.set_ylim(-0.03, 1.04)
    axes.set_yticks(np.linspace(0, 1, 6), [f"{percent} %" for percent in range(0, 101, 20)])


def log_axis(axis: Axis) -> None:
    """A logarithmic axis whose ticks are numbers, also where it spans less than a decade."""
    low, high = sorted(axis.get_view_interval())
    decades = np.log10(high / low) if low > 0 else 3
    steps = (1.0,) if decades > 3 else (1.0, 3.0) if decades > 1.5 else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
    axis.set_major_locator(LogLocator(base=10, subs=steps, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axis.set_minor_locator(NullLocator())


def _draw_curve(axes: Axes, run: Run, kind: str, colour: str, alone: bool) -> None:
    steps = change_points(run.records, kind, max(run.horizons))
    points = curve(run.records, kind, steps)
    rate = np.array([point["success_rate"] for point in points])
    low, high = np.array([point["ci95"] for point in points]).T
    margin = dkw_half_width(len(run.records))
    label = f"{len(run.records)} episodes" if alone else wrapped(run.label)
    style: Any = {"color": colour, "linestyle": run.dashes, "linewidth": 0.8 if run.thin else 2}
    axes.plot(steps, rate, drawstyle="steps-post", alpha=0.5 if run.thin else 1, label=label or "_", **style)
    marks = [succeeded(run.records, kind, horizon).mean() for horizon in run.horizons]
    if run.intervals is not None:
        reach = np.abs(np.array(run.intervals).T - np.array(marks))
        axes.errorbar(
            run.horizons, marks, yerr=reach, fmt="none", ecolor=colour, elinewidth=1.2, capsize=2.5, alpha=0.8
        )
    if not run.thin:
        axes.plot(
            run.horizons, marks, "o", color=colour, markersize=5, markeredgecolor="white", clip_on=False, zorder=3
        )
    if not run.band:
        return
    axes.fill_between(
        steps,
        low,
        high,
        step="post",
        color=colour,
        alpha=0.25,
        linewidth=0,
        label="95 % at each horizon (Wilson)" if alone else None,
    )
    if alone:
        axes.fill_between(
            steps,
            np.clip(rate - margin, 0, 1),
            np.clip(rate + margin, 0, 1),
            step="post",
            color=colour,
            alpha=0.10,
            linewidth=0,
            label="95 % for the whole curve (DKW)",
        )


def lengths_figure(
    records: Mapping[int, Sequence[EpisodeRecord]], points: Sequence[Mapping[str, Any]], spec: TaskSpec
) -> Figure:
    """Left: success at the longest horizon against the task's length, with Wilson intervals. Right: every length's curve.

    Args:
        records: ``{length: records}``.
        points: of :func:`~dopr_robot.evaluation.statistics.curves.by_length`.
        spec: the task.
    """
    with matplotlib.rc_context(STYLE):
        figure = Drawing(figsize=(9.6, 4.0), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 3))
        rates = np.array([point["success_rate"] for point in points])
        error = np.abs(np.array([point["ci95"] for point in points]).T - rates)
        names = [str(point["length"]) for point in points]
        shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(points)))
        left.plot(names, rates, color="0.7", linewidth=1, zorder=1)
        horizon = points[0]["horizon"]
        for name, rate, low_high, shade in zip(names, rates, error.T, shades, strict=True):
            left.errorbar([name], [rate], yerr=low_high[:, None], fmt="o", color=shade, elinewidth=1.5, capsize=3)
            steps = change_points(records[int(name)], spec.kind, horizon)
            curves = success_matrix(records[int(name)], spec.kind, steps).mean(axis=0)
            right.plot(steps, curves, drawstyle="steps-post", color=shade, linewidth=2, label=name)
        left.set_xlabel("length of the task")
        left.set_ylabel(f"success at {horizon} steps")
        success_axis(left)
        left.margins(x=0.2)
        right.set_xlim(0, horizon * 1.02)
        right.set_xlabel(f"horizon (control steps at {spec.control_hz:g} Hz)")
        right.legend(title="length", fontsize=9, title_fontsize=9)
        left.set_title(f"{spec.id}: {points[0]['episodes']} episodes a length", loc="left", fontweight="bold")
    return figure


def change_points(records: Sequence[EpisodeRecord], kind: str, longest: int) -> list[int]:
    """Steps at which the curve changes, and both ends."""
    ends = {record.first_success_step if kind == "attain" else record.first_failure_step for record in records}
    return sorted({0, longest} | {step for step in ends if step is not None and step <= longest})


def _scaled(factor: float, values: np.ndarray) -> np.ndarray:
    return factor * np.asarray(values)


def looks(number: int) -> list[tuple[str, str]]:
    """So many pairs of colour and dashes: the colours are told apart by everybody, and where they come again the dashes are others."""
    return [(COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)]) for i in range(number)]


def training_figure(lines: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Loss, validation loss and success of rollouts against the training step, from ``metrics.jsonl``; None where it has no figure."""
    series = {
        key: [(line["step"], line[key]) for line in lines if line.get(key) is not None]
        for key in ("loss", "validation_loss", "success_rate")
    }
    if not series["loss"] and not series["validation_loss"]:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Drawing(figsize=(7.2, 2.8), layout="constrained")
        axes = figure.add_subplot()
        for key, name, colour, mark in (
            ("loss", "training loss", COLOURS[0], ""),
            ("validation_loss", "validation loss", COLOURS[1], "o"),
        ):
            if series[key]:
                axes.plot(
                    *zip(*series[key], strict=True), color=colour, marker=mark, markersize=4, label=name, clip_on=False
                )
        values = [value for key in ("loss", "validation_loss") for _, value in series[key]]
        if min(values) > 0 and max(values) > 3 * min(values):
            axes.set_yscale("log")
            log_axis(axes.yaxis)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        axes.set_xlabel("training step")
        axes.set_ylabel("loss")
        handles, names = axes.get_legend_handles_labels()
        if series["success_rate"]:
            right = axes.twinx()
            right.plot(
                *zip(*series["success_rate"], strict=True),
                "s-",
                color=COLOURS[2],
                markersize=4,
                label="success of rollouts",
            )
            success_axis(right)
            right.grid(False)
            right.spines["right"].set_visible(True)
            handles, names = (
                handles + right.get_legend_handles_labels()[0],
                names + right.get_legend_handles_labels()[1],
            )
        figure.legend(handles, names, loc="outside upper left", fontsize=9, ncols=3)
    return figure


def validation_figure(
    losses: Sequence[float], rates: Sequence[float], intervals: Sequence[Sequence[float]], labels: Sequence[str]
) -> Figure:
    """Validation loss against success, one point a checkpoint, in the order of training."""
    with matplotlib.rc_context(STYLE):
        figure = Drawing(figsize=(7.2, 4.0), layout="constrained")
        axes = figure.add_subplot()
        error = np.abs(np.array(intervals).T - np.array(rates))
        axes.plot(losses, rates, color="0.7", linewidth=1, zorder=1)
        axes.errorbar(losses, rates, yerr=error, fmt="o", color=COLOURS[0], elinewidth=1, capsize=2)
        for number, (loss, rate, label) in enumerate(zip(losses, rates, labels, strict=True)):
            # Below a point that lies high, above which is the title; right and left in turn, since neighbours lie close.
            place, side = ((5, "left") if number % 2 else (-5, "right")), 5 if rate < 0.9 else -12
            axes.annotate(
                label,
                (loss, rate),
                textcoords="offset points",
                xytext=(place[0], side),
                ha=place[1],
                fontsize=8,
                color="0.3",
            )
        success_axis(axes)
        if min(losses) > 0 and max(losses) / min(losses) > 10:
            axes.set_xscale("log")
            log_axis(axes.xaxis)
        axes.set_xlabel("validation loss")
        axes.set_ylabel("success at the longest horizon")
        axes.set_title("Does validation loss foretell success?", loc="left", fontweight="bold")
    return figure


def feedback_figure(result: Mapping[str, Any], control_hz: float) -> Figure:
    """Along the rollouts of every checkpoint: divergence, action gap, and of the last the divergence by how episodes ended.

    Args:
        result: content of ``feedback.json``.
        control_hz: of the task.
    """
    checkpoints = result["checkpoints"]
    shown = [checkpoints[i] for i in sorted(set(np.linspace(0, len(checkpoints) - 1, 6).round().astype(int).tolist()))]
    shades = matplotlib.colormaps["viridis"](np.linspace(0.85, 0, len(shown)))
    last = checkpoints[-1]
    gaps = any(each["action_gap"] for each in shown)
    with matplotlib.rc_context(STYLE):
        figure = Drawing(figsize=(7.2, 2.6 * (2 + gaps) + 0.6), layout="constrained")
        panels = figure.subplots(2 + gaps, 1, sharex=True)
        top, bottom = panels[0], panels[-1]
        for each, shade in zip(shown, shades, strict=True):
            _draw_quartiles(top, each["divergence"]["along"], shade, f"{each['step']:,}", band=each is last)
            if gaps and each["action_gap"]:
                _draw_quartiles(panels[1], each["action_gap"]["along"], shade, "_", band=each is last)
        for axes in (top, bottom):
            demonstrated = result["divergence_of_demonstrations"]
            axes.axhspan(demonstrated["q25"], demonstrated["q75"], color="0.5", alpha=0.15, linewidth=0)
            axes.axhline(1, color="0.4", linewidth=1, linestyle="--", label="held-out demonstrations")
            axes.set_ylabel("divergence")
            axes.set_yscale("log")
            log_axis(axes.yaxis)
        top.legend(title="training step", fontsize=8, title_fontsize=8, ncols=2)
        top.set_title(f"{result['task']}: visited states beside the demonstrations'", loc="left", fontweight="bold")
        if gaps:
            panels[1].set_ylabel("action gap")
            panels[1].set_title("The plan before, beside what was done", loc="left", fontsize=10)
            if last["action_gap_on_demonstrations"]:
                without = last["action_gap_on_demonstrations"]["median"]
                panels[1].axhline(without, color="0.4", linewidth=1, linestyle="--", label="on held-out demonstrations")
                panels[1].legend(fontsize=8)
            panels[1].set_ylim(bottom=0)
        for key, name, colour in (
            ("along_successes", "succeeded", COLOURS[2]),
            ("along_others", "did not", COLOURS[1]),
        ):
            _draw_quartiles(bottom, last["divergence"][key], colour, name, band=True)
        bottom.legend(fontsize=8)
        bottom.set_title(f"Step {last['step']:,}, by how episodes ended", loc="left", fontsize=10)
        bottom.set_xlim(0, max(result["horizons"]) * 1.02)
        bottom.set_xlabel(f"control steps at {control_hz:g} Hz; median of the episodes still running; bands: quartiles")
    return figure


def _draw_quartiles(axes: Axes, points: Sequence[Mapping[str, Any]], colour: Any, label: str, band: bool) -> None:
    most = max((point["episodes"] for point in points), default=0)
    points = [point for point in points if point["episodes"] >= min(FEW, most)]
    steps = [point["step"] for point in points]
    axes.plot(steps, [point["median"] for point in points], color=colour, linewidth=1.8, label=label)
    if band:
        low, high = ([point[key] for point in points] for key in ("q25", "q75"))
        axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)


class Drawing(Figure):
    """A figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> bytes:
        return render(self)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG or SVG, by the path's ending; moved in whole."""
    with replacing(path) as beside:
        beside.write_bytes(render(figure, path.suffix[1:]))


def render(figure: Figure, form: str = "png") -> bytes:
    """A figure's bytes as "png" or "svg"."""
    buffer = io.BytesIO()
    # Without the date, equal records give an equal file.
    metadata = {"Date": None} if form == "svg" else None
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "dopr"}):
        figure.savefig(buffer, format=form, dpi=160, metadata=metadata)
    return buffer.getvalue()
