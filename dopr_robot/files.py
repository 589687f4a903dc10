"""Writing so that a kill at any moment leaves the old content or the new one."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write a file or a folder to; moved into place on success, removed on any error.

    The name it gives keeps the suffix, since writers of images and video read the format from it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield beside
        if beside.is_dir() and path.is_dir():
            shutil.rmtree(path)
        beside.replace(path)
    except BaseException:
        if beside.is_dir():
            shutil.rmtree(beside, ignore_errors=True)
        else:
            beside.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON with floats unrounded; NaN and inf are refused, since JSON has no word for them."""
    with replacing(path) as beside:
        beside.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def point_to(pointer: Path, target: str) -> None:
    """Let ``pointer`` name ``target``, which lies beside it, in one step: a relative symbolic link, or a file with that one line where
    links can not be made. A convenience for people and shells, so nothing is raised where neither can."""
    beside = pointer.with_name(f".{pointer.name}.{os.getpid()}")
    try:
        beside.unlink(missing_ok=True)
        try:
            beside.symlink_to(target)
        except (OSError, NotImplementedError):
            beside.write_text(f"{target}\n", encoding="utf-8")
        beside.replace(pointer)
    except OSError:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def pointed(pointer: Path) -> Path:
    """The folder beside it that a file of :func:`point_to` names; every other path as it is."""
    if not pointer.is_file() or pointer.stat().st_size > 100:
        return pointer
    name = pointer.read_text(encoding="utf-8", errors="replace").strip()
    return pointer.with_name(name) if name.isdecimal() else pointer
