"""The reference shows every public name, and each has a docstring. `make docs` looks at their members too."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
SHOWN = [
    name
    for page in sorted(REFERENCE.glob("*.md"))
    for name in re.findall(r"^::: (\S+)", page.read_text(encoding="utf-8"), re.M)
]
ROOMS = ("", ".optim", ".datasets", ".envs", ".policies", ".training", ".collection", ".evaluation", ".study")


def found(name: str) -> object:
    room, _, last = name.rpartition(".")
    return getattr(importlib.import_module(room), last)


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_is_shown(room):
    module = importlib.import_module(f"dopr_robot{room}")
    shown = [found(name) for name in SHOWN]
    missing = [
        name
        for name in module.__all__
        if name != "__version__" and not any(getattr(module, name) is each for each in shown)
    ]
    assert not missing


def test_what_is_shown_has_a_docstring_of_its_own():
    bare = [
        name for name in SHOWN if callable(found(name)) and not inspect.isclass(found(name)) and not found(name).__doc__
    ]
    bare += [name for name in SHOWN if inspect.isclass(found(name)) and not vars(found(name)).get("__doc__")]
    assert not bare
