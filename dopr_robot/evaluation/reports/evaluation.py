"""The reports of an evaluation, a comparison and a measurement of feedback."""

from pathlib import Path
from typing import Any

import imageio.v3 as imageio
from matplotlib.figure import Figure

from dopr_robot.envs import TaskSpec
from dopr_robot.envs.task import in_words
from dopr_robot.evaluation.reports.differences import PAIRS
from dopr_robot.evaluation.reports.pages import data_uri, svg, write_page
from dopr_robot.evaluation.reports.plots import training_figure
from dopr_robot.evaluation.reports.provenance import evaluation_command, metrics_of, training_rows
from dopr_robot.evaluation.rollouts.records import read_results
from dopr_robot.files import shown
from dopr_robot.training import Run

OUTCOME_COLOURS = {"success": "#00794a", "timeout": "#e69f00", "failure": "#b3261e", "exception": "#6a1b9a"}


def write_evaluation_report(
    out: Path,
    results: dict[str, Any],
    spec: TaskSpec,
    curve: Figure | None,
    video: Path,
    stills: Path,
    lengths: Figure | None = None,
    strength: Figure | None = None,
    returns: Figure | None = None,
) -> None:
    """Write ``report.html`` of one evaluation to ``out``.

    Args:
        out: the page's path.
        results: content of ``results.json``.
        spec: the task.
        curve: success versus horizon; None where nothing was run.
        video, stills: put into the page where they exist.
        lengths: success versus the task's length, where that was asked for.
        strength: success versus the strength of a perturbation, likewise.
        returns: return versus horizon, where the reward says more than success.
    """
    write_page(
        out,
        "evaluation.html.j2",
        r=results,
        description=spec.description.rstrip("."),
        reward=spec.reward,
        hz=spec.control_hz,
        colours=OUTCOME_COLOURS,
        curve_svg=svg(curve),
        video=data_uri("video/mp4", video.read_bytes()) if video.exists() else None,
        poster=_poster(video) if video.exists() else None,
        stills=data_uri("image/png", stills.read_bytes()) if stills.exists() else None,
        lengths_svg=svg(lengths),
        strength_svg=svg(strength),
        returns_svg=svg(returns),
        command=evaluation_command(results),
        **_training(Run.of(results["checkpoint"]["path"]) if results["checkpoint"] else None),
    )


def write_run_report(out: Path, path: Path, kind: str, step: int | None, description: dict[str, Any]) -> None:
    """Write a page about a run or a checkpoint at ``path`` to ``out``; ``description``: content of its ``policy.json``."""
    run = Run.of(path)
    write_page(
        out,
        "run.html.j2",
        path=shown(path),
        kind=kind,
        step=step,
        task=in_words(description.get("task"), description.get("task_options")),
        observations=description["observations"],
        action=description["action"],
        steps=[description[key] for key in ("To", "H", "Ta")],
        evaluations=[read_results(folder) | {"name": folder.name} for folder in (run.evaluations if run else [])],
        settings=(run.folder / "config.yaml").read_text(encoding="utf-8") if run else None,
        **_training(run),
    )


def _training(run: Run | None) -> dict[str, Any]:
    """What ``about.html.j2`` shows of a run."""
    return {"about": dict(training_rows(run)), "training_svg": svg(training_figure(metrics_of(run)))}


def write_comparison_report(
    out: Path,
    comparison: dict[str, Any],
    spec: TaskSpec,
    curves: Figure,
    difference: Figure,
    returns: Figure | None = None,
) -> None:
    """Write ``report.html`` of a comparison to ``out``; ``returns``: return versus horizon, where the task's reward is reported."""
    write_page(
        out,
        "comparison.html.j2",
        c=comparison,
        reward=spec.reward,
        hz=spec.control_hz,
        drawn=PAIRS,
        several=any(len(method["runs"]) > 1 for method in comparison["methods"]),
        curves_svg=svg(curves),
        difference_svg=svg(difference),
        returns_svg=svg(returns),
    )


def write_feedback_report(
    out: Path,
    result: dict[str, Any],
    description: str,
    along: Figure,
    validation: Figure | None,
    run: Run | None = None,
) -> None:
    """Write ``report.html`` of a measurement of test-time feedback to ``out``.

    Args:
        out: the page's path.
        result: content of ``feedback.json``.
        description: what the task is.
        along: what happens along the rollouts.
        validation: validation loss against success; None without a validation split.
        run: the run.
    """
    write_page(
        out,
        "feedback.html.j2",
        f=result,
        description=description.rstrip("."),
        along_svg=svg(along),
        validation_svg=svg(validation),
        **_training(run),
    )


def _poster(video: Path) -> str:
    """The video's last frame: what a page on paper shows."""
    *_, last = imageio.imiter(video)
    return data_uri("image/jpeg", imageio.imwrite("<bytes>", last, extension=".jpg"))
