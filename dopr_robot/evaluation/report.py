"""Self-contained HTML pages: one file that opens from disk, on a phone and in print."""

import base64
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from dopr_robot.evaluation import plots
from dopr_robot.files import replacing

OUTCOME_COLOURS = {"success": "#00794a", "timeout": "#e69f00", "failure": "#b3261e", "exception": "#6a1b9a"}


def write_evaluation_report(
    out: Path,
    results: dict[str, Any],
    description: str,
    hz: float,
    curve: Figure | None,
    video: Path,
    stills: Path,
    lengths: Figure | None = None,
) -> None:
    """Write ``report.html`` of one evaluation to ``out``.

    Args:
        out: the page's path.
        results: content of ``results.json``.
        description: what the task is.
        hz: its control rate.
        curve: success versus horizon; None where nothing was run.
        video, stills: put into the page where they exist.
        lengths: success versus the task's length, where that was asked for.
    """
    _write(
        out,
        "evaluation.html.j2",
        r=results,
        description=description.rstrip("."),
        hz=hz,
        colours=OUTCOME_COLOURS,
        curve_svg=_svg(curve),
        video=_data("video/mp4", video.read_bytes()) if video.exists() else None,
        poster=_poster(video) if video.exists() else None,
        stills=_data("image/png", stills.read_bytes()) if stills.exists() else None,
        lengths_svg=_svg(lengths),
    )


def write_comparison_report(out: Path, comparison: dict[str, Any], curves: Figure, difference: Figure) -> None:
    """Write ``report.html`` of a comparison to ``out``."""
    _write(out, "comparison.html.j2", c=comparison, curves_svg=_svg(curves), difference_svg=_svg(difference))


def write_feedback_report(
    out: Path, result: dict[str, Any], description: str, along: Figure, validation: Figure | None
) -> None:
    """Write ``report.html`` of a measurement of test-time feedback to ``out``.

    Args:
        out: the page's path.
        result: content of ``feedback.json``.
        description: what the task is.
        along: what happens along the rollouts.
        validation: validation loss against success; None without a validation split.
    """
    _write(
        out,
        "feedback.html.j2",
        f=result,
        description=description.rstrip("."),
        along_svg=_svg(along),
        validation_svg=_svg(validation),
    )


def _write(out: Path, template: str, **context: Any) -> None:
    environment = Environment(
        loader=PackageLoader("dopr_robot.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "signed": _signed, "steps": _steps, "figure": _figure}
    page = environment.get_template(template).render(**context)
    with replacing(out) as beside:
        beside.write_text(page, encoding="utf-8")


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"


def _signed(rate: float) -> str:
    return f"{100 * rate:+.1f} %"


def _figure(value: float | None, form: str = ".3f") -> str:
    return "–" if value is None else format(value, form)


def _steps(steps: float | None, longest: int) -> str:
    return f"> {longest}" if steps is None else f"{steps:.0f}"


def _svg(figure: Figure | None) -> Markup | None:
    if figure is None:
        return None
    text = plots.render(figure, "svg").decode()
    return Markup(text[text.index("<svg") :])  # without the XML prologue, which HTML has no place for


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _poster(video: Path) -> str:
    """The video's last frame: what a page on paper shows."""
    *_, last = imageio.imiter(video)
    return _data("image/jpeg", imageio.imwrite("<bytes>", last, extension=".jpg"))
