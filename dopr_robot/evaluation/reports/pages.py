"""Self-contained HTML pages: one file that opens from disk, on a phone and in print."""

import base64
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from dopr_robot.evaluation.reports import plots
from dopr_robot.files import replacing, shown

TEMPLATES = "dopr_robot.evaluation.reports"


def write_page(out: Path, template: str, *, package: str = TEMPLATES, **context: Any) -> None:
    """Write a page to ``out``.

    Args:
        out: its path.
        template: a file in ``package``'s ``templates``, where it may extend ``base.html.j2`` of this package's.
        package: which has the template.
        context: what the template names; a name that it uses and does not get is an error.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in dict.fromkeys((package, TEMPLATES))]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": _percent,
        "points": _points,
        "span": _span,
        "between": _between,
        "steps": _steps,
        "figure": _figure,
        "number": _number,
        "shown": shown,
    }
    page = environment.get_template(template).render(**context)
    with replacing(out) as beside:
        beside.write_text(page, encoding="utf-8")


def svg(figure: Figure | None) -> Markup | None:
    """A figure as it goes into a page."""
    if figure is None:
        return None
    text = plots.render(figure, "svg").decode()
    return Markup(text[text.index("<svg") :])  # without the XML prologue, which HTML has no place for


def data_uri(kind: str, content: bytes) -> str:
    """A file's content as it goes into a page; ``kind`` is its media type (``image/png``)."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"


def _points(difference: float) -> str:
    """A difference of two rates, in percentage points."""
    return f"{100 * difference:+.1f}"


def _span(ends: tuple[float, float] | None) -> str:
    """An interval of rates or of their difference, in percentage points."""
    return "" if ends is None else f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}"


def _between(ends: tuple[float, float] | None) -> str:
    """An interval of returns."""
    return "" if ends is None else f"{ends[0]:.1f} to {ends[1]:.1f}"


def _figure(value: float | None, form: str = ".3f") -> str:
    return "–" if value is None else format(value, form)


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}g}"


def _steps(steps: float | None, longest: int) -> str:
    return f"> {longest}" if steps is None else f"{steps:.0f}"
