"""Options of a task on the command line: ``--option NAME=VALUE``, several values of one (``--perturb NAME=A,B``), and cameras."""

import argparse
from collections.abc import Iterable
from typing import Any

from dopr_robot.errors import UserError
from dopr_robot.settings import Word, plain


def add_option(parser: argparse.ArgumentParser) -> None:
    """``--option``, which may be given several times."""
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="an option of the task, see docs/tasks.md"
    )


def add_cameras(parser: argparse.ArgumentParser) -> None:
    """``--cameras`` and ``--size``."""
    parser.add_argument(
        "--cameras",
        type=lambda text: text.split(","),
        default=[],
        metavar="A,B",
        help="whose pictures are observations too, see docs/tasks.md",
    )
    parser.add_argument("--size", type=int, metavar="S", help="side of these pictures, in pixels (default: the task's)")


def option_values(texts: Iterable[str]) -> dict[str, Any]:
    """Values by name, of two for one the later; a value is read as the settings of `dopr train` are.

    >>> option_values(["cubes=3", "clearance=1e-3"])
    {'cubes': 3, 'clearance': 0.001}
    """
    return {name: plain(Word(value)) for name, value in (_parts("--option", text) for text in texts)}


def option_lists(texts: Iterable[str]) -> dict[str, list[Any]]:
    """Lists of values by name.

    >>> option_lists(["observation_noise=0.01,0.02"])
    {'observation_noise': [0.01, 0.02]}
    """
    return {
        name: [plain(Word(each)) for each in value.split(",")]
        for name, value in (_parts("--perturb", text, "NAME=VALUE,VALUE") for text in texts)
    }


def _parts(flag: str, text: str, form: str = "NAME=VALUE") -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise UserError(f"{flag} {text!r} has to be {form}")
    return name, value
