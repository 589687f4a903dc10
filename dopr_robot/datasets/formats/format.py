"""What a format is, which one a file has, and what the readers share."""

from __future__ import annotations

import contextlib
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dopr_robot.datasets.attributes import Attributes
from dopr_robot.datasets.recording import Recording
from dopr_robot.datasets.store import Store
from dopr_robot.errors import DamagedError, UserError
from dopr_robot.registry import Registry


@dataclass(frozen=True)
class Format:
    """A layout of files that somebody else's programs read and write.

    Attributes:
        summary: what it is, in a few words.
        recognises: whether what lies at a path looks like it; reads names and little else, never fails, never runs code.
        read: a path as a recording. Raises UserError with what was found and what was expected.
        write: a recording to a new path; None where the format is only read.
    """

    summary: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path], Recording]
    write: Callable[[Recording, Path], None] | None = None


FORMATS = Registry[Format]("format", group="dopr_robot.formats")


STORE = "store"
"""What :func:`find_format` answers for a store of our own."""


def find_format(source: str | Path) -> str:
    """The name of the format of what lies at a path, :data:`STORE` for our own.

    Raises UserError where nothing is there, or where it is unfamiliar: what was found and what was expected.
    """
    if "://" in str(source):
        return STORE
    path = Path(source)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    check_archive(path)
    with contextlib.suppress(UserError, DamagedError):
        if Store.open(path, whole_part=True).is_own:
            return STORE
    for name in FORMATS:
        if FORMATS[name].recognises(path):
            return name
    if path.suffix in (".pickle", ".pkl"):
        raise UserError(f"{path}: a pickle has to be named, since it is read differently from all others: --from dapg")
    known = "; ".join(f"{name} ({entry.summary})" for name, entry in FORMATS.items())
    raise UserError(f"{path}: the layout is unfamiliar: found {content(path)}; expected one of: {known}")


def content(path: Path) -> str:
    """What lies at a path, in a few words."""
    if path.is_dir():
        names = sorted(entry.name + "/" * entry.is_dir() for entry in path.iterdir())
        return f"a folder with {some(names)}" if names else "an empty folder"
    if not path.stat().st_size:
        return "an empty file"
    if zipfile.is_zipfile(path):
        return f"an archive with {some(sorted({name.split('/')[0] for name in members(path)}))}"
    import h5py

    if h5py.is_hdf5(path):
        try:
            with h5py.File(path) as file:
                return f"HDF5 with {some(sorted(file))}"
        except OSError as error:
            return f"HDF5 that cannot be opened ({' '.join(str(error).split())[:120]})"
    with path.open("rb") as file:
        return f"a file that begins with {file.read(8)!r}"


def some(names: list[str], limit: int = 8) -> str:
    """A few of the names, for a message."""
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "") if names else "nothing"


def one_line(error: BaseException) -> str:
    """An error of somebody else's program, as part of a message."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]


def natural(name: str) -> list[int | str]:
    """A sorting key under which demo_2 comes before demo_10."""
    return [int(part) if index % 2 else part for index, part in enumerate(re.split(r"(\d+)", name))]


def check_archive(path: Path) -> None:
    """Refuse an archive that names files outside itself. Raises UserError."""
    if path.is_file() and zipfile.is_zipfile(path):
        for name in members(path):
            if _leads_out(name):
                raise UserError(f"{path}: {name!r} leads out of the archive: nothing of it is read")


def members(path: Path) -> list[str]:
    """Names in an archive. Raises UserError where it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{path}: cannot be opened as an archive ({one_line(error)})") from error


def inside(root: Path, name: str) -> Path:
    """A file that a data set names, below its root. Raises UserError where the name leads elsewhere.

    A link below the root may: the user made it, or the hub's cache did.
    """
    if _leads_out(name):
        raise UserError(f"{root}: {name!r} leads out of the data set: nothing of it is read")
    return root / name


def _leads_out(name: str) -> bool:
    """Whether a name that a file holds is that of a place elsewhere, on any system."""
    return not name or re.match(r"[/\\]|[A-Za-z]:", name) is not None or ".." in re.split(r"[/\\]", name)


def described(attributes: Attributes, without: str) -> dict[str, Any]:
    """The attributes as JSON for a file of a format that holds its own carried values itself."""
    carried = {name: value for name, value in attributes.carried.items() if name != without}
    return replace(attributes, carried=carried).to_json()
