"""Writing so that a kill at any moment leaves the old content or the new one."""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dopr_robot.errors import UserError

LOG = logging.getLogger(__name__)

LONGEST_NAME = 150
"""Bytes of a name; with what is added to it, below the 255 that file systems take."""


@contextlib.contextmanager
def replacing(path: Path, *, new: bool = False) -> Iterator[Path]:
    """A path beside ``path`` to write a file or a folder to; moved into place on success, removed on any error.

    The name it gives keeps the suffix, since writers of images and video read the format from it. What a killed process left in the
    folder is removed first.

    Args:
        new: raise UserError where there is something at ``path``, before or after the work.
    """
    missing = [folder for folder in path.parents if not folder.exists()]
    if new and path.exists():
        raise UserError(f"{path}: exists already; choose another path")
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_traces(path.parent)
    beside, before = _beside(path, "partial"), _beside(path, "before")
    try:
        with naming(path):
            yield beside
            if new and path.exists():
                raise UserError(f"{path}: exists already; choose another path")
            if beside.is_dir() and path.is_dir():
                path.rename(before)
            beside.replace(path)
            _remove(before)
        LOG.debug("wrote %s", path)
    except BaseException:
        _remove(beside)
        for folder in missing:  # the innermost first
            with contextlib.suppress(OSError):  # somebody else has put something there
                folder.rmdir()
        raise


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name ``path`` in an OSError that names no file, as that of a full disk does."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def remove_traces(folder: Path) -> None:
    """Remove what processes of this machine that are gone left half-written in a folder, and put back what they moved aside."""
    for trace in folder.iterdir():
        found = _TRACE.match(trace.name)
        if found is None or found["host"] != _host() or _runs(int(found["pid"])):
            continue
        place = folder / found["name"]
        if found["kind"] == "before" and not place.exists():
            trace.rename(place)
        else:
            _remove(trace)


def write_json(path: Path, value: Any) -> None:
    """Write JSON with floats unrounded; NaN and inf are refused, since JSON has no word for them."""
    with replacing(path) as beside:
        beside.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def shown(path: str | Path) -> str:
    """A path as a report shows it: from the working directory, not from the root of somebody's disk."""
    text = str(path)
    return text if "://" in text or not Path(text).is_absolute() else os.path.relpath(text)


def check_name(name: str, what: str) -> str:
    """``name``, if a folder or file inside another one can be called so. Raises UserError naming ``what``.

    >>> check_name("../../x", "name")
    Traceback (most recent call last):
        ...
    dopr_robot.errors.UserError: name='../../x' can not name a folder: one line without / and \\ is expected, of at most 150 bytes
    """
    plain = (
        name.isprintable() and name == name.strip() and name not in ("", ".", "..") and not re.search(r"[/\\]", name)
    )
    if not plain or len(name.encode()) > LONGEST_NAME:
        raise UserError(
            f"{what}={name[:80]!r} can not name a folder: one line without / and \\ is expected, of at most {LONGEST_NAME} bytes"
        )
    return name


_TRACE = re.compile(r"\.(?P<name>.+)\.(?P<kind>partial|before)-(?P<host>[0-9a-f]{6})-(?P<pid>\d+)(\..*)?", re.DOTALL)


def _beside(path: Path, kind: str) -> Path:
    # The host, since processes of several machines may share a disk.
    return path.with_name(f".{path.name}.{kind}-{_host()}-{os.getpid()}{path.suffix}")


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def point_to(pointer: Path, target: str) -> None:
    """Let ``pointer`` name ``target``, which lies beside it, in one step: a relative symbolic link, or a file with that one line where
    links can not be made. A convenience for people and shells, so nothing is raised where neither can."""
    beside = _beside(pointer, "partial")
    try:
        beside.unlink(missing_ok=True)
        try:
            beside.symlink_to(target)
        except (OSError, NotImplementedError):
            beside.write_text(f"{target}\n", encoding="utf-8")
        beside.replace(pointer)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def pointed(pointer: Path) -> Path:
    """The folder beside it that a file of :func:`point_to` names; every other path as it is."""
    if not pointer.is_file() or pointer.stat().st_size > 100:
        return pointer
    name = pointer.read_text(encoding="utf-8", errors="replace").strip()
    return pointer.with_name(name) if name.isdecimal() else pointer
