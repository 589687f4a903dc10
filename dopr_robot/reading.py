"""Where foreign bytes become checked values: JSON, JSON lines and YAML that a disk, a kill or somebody else may have spoiled.

What a value has to look like is said by a *form*:

- a type, or a union of types: ``int`` takes no bool, ``float`` takes finite numbers; a union with None may be absent;
- a ``range``: a whole number in it;
- ``Maybe(form)``: null, absent, or such;
- ``[form]``: a list of such; ``(form, form)``: a list of exactly these;
- ``{str: form}``: a mapping from any text to such; ``{"key": form, ...}``: a mapping that has at least these keys.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any

from dopr_robot.errors import DamagedError


@dataclass(frozen=True)
class Maybe:
    """A form, or null, or nothing."""

    form: Any


_NAMES = {
    int: "a whole number", float: "a finite number", str: "a text", bool: "true or false", dict: "a mapping", list: "a list",
    type(None): "null",
}  # fmt: skip


def require(value: Any, form: Any, where: str, place: str = "") -> Any:
    """``value``, if it has the form. Raises DamagedError naming ``where`` (a file) and the place inside."""
    if isinstance(form, Maybe):
        return None if value is None else require(value, form.form, where, place)
    if isinstance(form, dict) and isinstance(value, dict):
        every = form.get(str)
        for key in value if every is not None else form:
            require(
                value.get(key), every if every is not None else form[key], where, f"{place}.{key}" if place else key
            )
        return value
    if isinstance(form, list) and isinstance(value, list):
        for index, each in enumerate(value):
            require(each, form[0], where, f"{place}[{index}]")
        return value
    if isinstance(form, tuple) and isinstance(value, list) and len(value) == len(form):
        for index, (each, inner) in enumerate(zip(value, form, strict=True)):
            require(each, inner, where, f"{place}[{index}]")
        return value
    if not _is(value, form):
        raise DamagedError(f"{where}: {f'{place} is ' if place else ''}{_shown(value)}: {_expected(form)} is expected")
    return value


def read_json(path: Path, form: Any = dict) -> Any:
    """The JSON value in a file. Raises FileNotFoundError, and DamagedError where it can not be read or has another form."""
    return require(parse_json(read_bytes(path), str(path)), form, str(path))


def read_json_lines(path: Path, form: Any = dict) -> list[Any]:
    """The values of the whole lines of a file; a last one without its end is the trace of a kill, and passed over.

    Raises FileNotFoundError, and DamagedError naming the line.
    """
    *lines, _unfinished = read_bytes(path).split(b"\n")
    named = ((f"{path}, line {number}", line) for number, line in enumerate(lines, start=1))
    return [require(parse_json(line, where), form, where) for where, line in named]


def read_bytes(path: Path) -> bytes:
    """A file's content. Raises FileNotFoundError, and DamagedError for what can not be read (a folder in its place)."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path} can not be read ({getattr(error, 'strerror', None) or error})") from None


def parse_json(content: bytes | str, where: str) -> Any:
    """A JSON value. Raises DamagedError naming ``where``."""
    try:
        return json.loads(content)
    except RecursionError:
        raise DamagedError(f"{where} is nested too deeply") from None
    except ValueError as error:  # UnicodeDecodeError is one, and so is a number of more digits than Python takes
        raise DamagedError(f"{where} is not JSON ({' '.join(str(error).split())})") from None


def _is(value: Any, form: Any) -> bool:
    if isinstance(form, UnionType):
        return any(_is(value, each) for each in form.__args__)
    if isinstance(form, range):
        return isinstance(value, int) and not isinstance(value, bool) and value in form
    if not isinstance(form, type):
        return False
    if form is float:
        return (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and abs(value) < 1e300
            and math.isfinite(value)
        )
    return isinstance(value, form) and (form is bool or form is object or not isinstance(value, bool))


def _expected(form: Any) -> str:
    if isinstance(form, UnionType):
        return " or ".join(_expected(each) for each in form.__args__)
    if isinstance(form, range):
        return f"a whole number from {form.start} to {form.stop - 1}"
    if isinstance(form, tuple):
        return f"a list of {len(form)}"
    return _NAMES.get(form if isinstance(form, type) else type(form), str(form))


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # more digits than Python writes
        text = f"a {type(value).__name__} too large to be written"
    return "not there" if value is None else text if len(text) <= 60 else text[:57] + "..."
