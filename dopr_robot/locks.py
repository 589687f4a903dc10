"""Folders that one process works in at a time."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from dopr_robot.errors import UserError


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Work in a folder in which no other process works meanwhile, by a lock called ``.lock``.

    The system's own, which ends with its holder however that ends. On file systems that have none, a file that names process and host;
    filelock takes over one of this host whose process has ended.

    Raises:
        UserError: another process holds it; the message names it where that is known.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    try:
        lock = _acquired(path)
    except Timeout:
        raise UserError(f"{folder} is being worked on by {_holder(path)}: wait for it, or stop it") from None
    try:
        if not isinstance(lock, SoftFileLock):  # which writes this itself
            with suppress(OSError):
                path.write_text(f"{os.getpid()}\n{socket.gethostname()}\n", encoding="utf-8")
        yield
    finally:
        lock.release()
        if made and [each.name for each in folder.iterdir()] in ([path.name], []):  # nothing came into it
            path.unlink(missing_ok=True)
            for each in made:
                with suppress(OSError):
                    each.rmdir()


def _acquired(path: Path) -> BaseFileLock:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise
    except (NotImplementedError, OSError):
        soft = SoftFileLock(path)
        soft.acquire(timeout=0)
        return soft
    return lock


def _holder(path: Path) -> str:
    with suppress(OSError, ValueError):
        process, host, *_ = path.read_text(encoding="utf-8").splitlines()
        return f"process {int(process)} on {host} ({path})"
    return f"another process ({path})"
