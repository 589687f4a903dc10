"""Success and return versus the strength of a perturbation as a picture."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dopr_robot.envs import TaskSpec
from dopr_robot.envs.task import words
from dopr_robot.evaluation.reports.plots import STYLE, change_points, looks, success_axis
from dopr_robot.evaluation.rollouts.records import EpisodeRecord
from dopr_robot.evaluation.statistics import success_matrix


def strength_figure(
    before: Sequence[EpisodeRecord],
    unperturbed: Mapping[str, Any],
    arms: Sequence[Mapping[str, Any]],
    records: Sequence[Sequence[EpisodeRecord]],
    spec: TaskSpec,
) -> Figure:
    """Left: success at the longest horizon against the strength of the first option, with 95 % intervals, a line for each combination
    of the others; the unperturbed task across it. Middle: every arm's curve. Right, where the reward says more than success: the mean
    return as on the left.

    Args:
        before: records of the unperturbed arm.
        unperturbed: its ``results.json``.
        arms: of :func:`~dopr_robot.evaluation.statistics.perturbed`.
        records: of each arm.
        spec: the task.
    """
    earning = bool(unperturbed["returns"]) and all(arm["returns"] for arm in arms)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6 + 3.6 * earning, 4.0), layout="constrained")
        panels = figure.subplots(1, 2 + earning, width_ratios=(2, 3, 2)[: 2 + earning])
        left, right = panels[:2]
        right.sharey(left)
        right.tick_params(labelleft=False)
        horizon = unperturbed["curve"][-1]["horizon"]
        _against_strength(left, arms, [unperturbed["curve"][-1], *(arm["curve"][-1] for arm in arms)], "success_rate")
        left.set_ylabel(f"success at {horizon} steps")
        success_axis(left)
        if earning:
            points = [unperturbed["returns"][-1], *(arm["returns"][-1] for arm in arms)]
            _against_strength(panels[2], arms, points, "mean")
            panels[2].set_ylabel(f"mean return at {points[0]['horizon']} steps")
        drawn = [
            ("unperturbed", before),
            *((" ".join(words(a["options"])), r) for a, r in zip(arms, records, strict=True)),
        ]
        shades = ["0.4", *matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(arms)))]
        for (label, those), shade in zip(drawn, shades, strict=True):
            steps = change_points(those, spec.kind, horizon)
            rates = success_matrix(those, spec.kind, steps).mean(axis=0)
            right.plot(steps, rates, drawstyle="steps-post", color=shade, linewidth=2, label=label)
        right.set_xlim(0, horizon * 1.02)
        right.set_xlabel(f"horizon (control steps at {spec.control_hz:g} Hz)")
        right.legend(fontsize=9)
        left.set_title(f"{spec.id}: {len(before)} episodes each", loc="left", fontweight="bold")
    return figure


def _against_strength(
    axes: Axes, arms: Sequence[Mapping[str, Any]], points: Sequence[Mapping[str, Any]], key: str
) -> None:
    """``points``: the unperturbed one and each arm's; ``key``: what of them is drawn."""
    name, (unperturbed, *others) = next(iter(arms[0]["options"])), points
    axes.axhspan(*_interval(unperturbed, key), color="0.9", zorder=0)
    axes.axhline(unperturbed[key], color="0.4", linewidth=1, label="unperturbed")
    lines: dict[str, list[tuple[float, Mapping[str, Any]]]] = {}
    for arm, point in zip(arms, others, strict=True):
        rest = " ".join(words({option: value for option, value in arm["options"].items() if option != name}))
        lines.setdefault(rest, []).append((arm["options"][name], point))
    for (rest, line), (colour, dashes) in zip(lines.items(), looks(len(lines)), strict=True):
        line.sort(key=lambda point: point[0])
        values = np.array([point[key] for _, point in line])
        error = np.abs(np.array([_interval(point, key) for _, point in line]).T - values)
        strengths = [strength for strength, _ in line]
        axes.errorbar(
            strengths, values, yerr=error, fmt="o", linestyle=dashes, color=colour, capsize=3, label=rest or None
        )
    axes.set_xlabel(name)
    axes.margins(x=0.1)
    axes.legend(fontsize=9)


def _interval(point: Mapping[str, Any], key: str) -> tuple[float, float]:
    """A mean of a single episode has none."""
    low, high = point["ci95"] or (point[key], point[key])
    return low, high
