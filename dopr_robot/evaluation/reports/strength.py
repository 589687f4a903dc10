"""Success versus the strength of a perturbation as a picture."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
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
    """Left: success at the longest horizon against the strength of the first option, with Wilson intervals, a line for each combination
    of the others; the unperturbed task across it. Right: every arm's curve.

    Args:
        before: records of the unperturbed arm.
        unperturbed: its point at the longest horizon.
        arms: of :func:`~dopr_robot.evaluation.statistics.perturbed`.
        records: of each arm.
        spec: the task.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 4.0), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 3))
        name, horizon = next(iter(arms[0]["options"])), unperturbed["horizon"]
        left.axhspan(*unperturbed["ci95"], color="0.9", zorder=0)
        left.axhline(unperturbed["success_rate"], color="0.4", linewidth=1, label="unperturbed")
        lines: dict[str, list[tuple[float, Mapping[str, Any]]]] = {}
        for arm in arms:
            others = " ".join(words({key: value for key, value in arm["options"].items() if key != name}))
            lines.setdefault(others, []).append((arm["options"][name], arm["curve"][-1]))
        for (others, points), (colour, dashes) in zip(lines.items(), looks(len(lines)), strict=True):
            points.sort(key=lambda point: point[0])
            strengths = [strength for strength, _ in points]
            rates = np.array([point["success_rate"] for _, point in points])
            error = np.abs(np.array([point["ci95"] for _, point in points]).T - rates)
            left.errorbar(
                strengths, rates, yerr=error, fmt="o", linestyle=dashes, color=colour, capsize=3, label=others or None
            )
        left.set_xlabel(name)
        left.set_ylabel(f"success at {horizon} steps")
        success_axis(left)
        left.margins(x=0.1)
        left.legend(fontsize=9)
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
