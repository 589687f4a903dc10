"""Differences of success between methods as a picture."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from dopr_robot.evaluation.reports.plots import COLOURS, STYLE, Drawing, wrapped

PAIRS = 6
"""Differences of more pairs than these are drawn against the first method alone, and of more of those at the longest horizon alone."""
Pairs = Sequence[Mapping[str, Any]]


def difference_figure(pairs: Pairs, control_hz: float) -> Figure:
    """Differences of success curves, one panel a pair: dark the 95 % interval at each horizon, light the band for the whole curve.

    Of more than :data:`PAIRS` pairs those with the first method, the others being in the tables; where that has more others than this,
    one line each, by their difference at the longest horizon.
    """
    shown = [pair for pair in pairs if pair["first"] == pairs[0]["first"]] if len(pairs) > PAIRS else list(pairs)
    with matplotlib.rc_context(STYLE):
        return _lines(shown, control_hz) if len(shown) > PAIRS else _panels(shown, control_hz)


def _panels(shown: Pairs, control_hz: float) -> Figure:
    columns = 1 if len(shown) < 3 else 2
    rows = -(-len(shown) // columns)
    titles = [wrapped(f"{pair['first']} minus {pair['second']}", 84 // columns) for pair in shown]
    lines = max(title.count("\n") for title in titles)
    figure = Drawing(figsize=(7.2, 1.1 + (2.2 + 0.17 * lines) * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, pair, title in zip(panels, shown, titles, strict=False):
        horizons = [0, *(cell["horizon"] for cell in pair["curve"])]
        low, high = 100 * np.array([[0, 0], *(cell["ci95"] for cell in pair["curve"])]).T
        band_low, band_high = 100 * np.array([[0, 0], *(cell["band95"] for cell in pair["curve"])]).T
        difference = [0, *(100 * cell["difference"] for cell in pair["curve"])]
        axes.axhline(0, color="0.3", linewidth=1)
        axes.fill_between(
            horizons, band_low, band_high, color=COLOURS[0], alpha=0.10, linewidth=0, label="95 %, whole curve"
        )
        axes.fill_between(horizons, low, high, color=COLOURS[0], alpha=0.25, linewidth=0, label="95 %, at each horizon")
        axes.plot(horizons, difference, "o-", color=COLOURS[0], markersize=4)
        for cell in pair["curve"]:
            if cell["p_holm"] <= 0.05:
                axes.annotate("*", (cell["horizon"], 100 * cell["ci95"][1]), ha="center", fontsize=12)
        axes.set_title(title, loc="left", fontsize=9)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", fontsize=8, ncols=2)
    figure.supxlabel(
        f"horizon (control steps at {control_hz:g} Hz)    * significant after Holm's correction", fontsize=10
    )
    figure.supylabel("difference of success, points", fontsize=10)
    return figure


def _lines(shown: Pairs, control_hz: float) -> Figure:
    last = sorted(((pair["curve"][-1], pair["second"]) for pair in shown), key=lambda each: each[0]["difference"])
    names = [wrapped(second, 40) for _, second in last]
    heights = np.array([1 + 0.6 * name.count("\n") for name in names])
    places = heights.cumsum() - heights / 2
    figure = Drawing(figsize=(7.2, 1.2 + 0.2 * heights.sum()), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color="0.3", linewidth=1)
    difference = 100 * np.array([cell["difference"] for cell, _ in last])
    ends = 100 * np.array([cell["ci95"] for cell, _ in last])
    axes.hlines(places, *ends.T, color=COLOURS[0], alpha=0.5, linewidth=2, label="95 %")
    axes.plot(difference, places, "o", color=COLOURS[0], markersize=4)
    for (cell, _), place, (_, high) in zip(last, places, ends, strict=True):
        if cell["p_holm"] <= 0.05:
            axes.annotate("*", (high, place), xytext=(3, -5), textcoords="offset points", fontsize=12)
    axes.set_yticks(places, names, fontsize=8)
    axes.set_ylim(0, heights.sum())
    axes.grid(axis="y", visible=False)
    horizon = last[0][0]["horizon"]
    axes.set_title(
        f"{wrapped(shown[0]['first'], 50)} minus each, at {horizon} steps ({horizon / control_hz:.3g} s)",
        loc="left",
        fontsize=10,
    )
    axes.set_xlabel("difference of success, points    * significant after Holm's correction")
    axes.legend(loc="lower right", fontsize=8)
    return figure
