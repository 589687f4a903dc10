"""Return versus horizon as a picture."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from dopr_robot.envs import TaskSpec
from dopr_robot.evaluation.reports.plots import BANDS, STYLE, Drawing, looks, wrapped


def returns_figure(curves: Sequence[tuple[str, Sequence[Mapping[str, Any]]]], spec: TaskSpec, title: str) -> Figure:
    """Mean return against the horizon in control steps. Dark: 95 % at each horizon; light, of a single curve: for the whole curve.

    Args:
        curves: label ("" for none) and points, as :func:`~dopr_robot.evaluation.statistics.returns.return_curve` gives them.
        spec: the task.
        title: of the picture.
    """
    with matplotlib.rc_context(STYLE):
        figure = Drawing(figsize=(7.2, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for (label, points), (colour, dashes) in zip(curves, looks(len(curves)), strict=True):
            steps = [0, *(point["horizon"] for point in points)]
            mean = np.array([0.0, *(point["mean"] for point in points)])
            name = wrapped(label) or f"{points[-1]['episodes']} episodes"
            axes.plot(steps, mean, "o", linestyle=dashes, color=colour, markersize=4, linewidth=2, label=name)
            told = (("ci95", 0.25, "95 % at each horizon"), ("band95", 0.10, "95 % for the whole curve"))
            for key, alpha, what in told if len(curves) <= BANDS else ():
                if all(point.get(key) for point in points):
                    low, high = np.array([[0.0, 0.0], *(point[key] for point in points)]).T
                    shown = what if len(curves) == 1 else None
                    axes.fill_between(steps, low, high, color=colour, alpha=alpha, linewidth=0, label=shown)
        axes.axhline(0, color="0.3", linewidth=0.8)
        axes.set_xlim(0, max(points[-1]["horizon"] for _, points in curves) * 1.02)
        axes.set_xlabel(f"horizon (control steps at {spec.control_hz:.4g} Hz)")
        axes.set_ylabel("mean return by the horizon")
        axes.set_title(wrapped(title, 60), loc="left", fontweight="bold")
        axes.legend(loc="best", fontsize=9)
    return figure
