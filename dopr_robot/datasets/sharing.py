"""What several processes of one run hold of a store, once a machine.

torchrun and accelerate start a process a device, and each opens the store. A key that is held in memory lies in a file of /dev/shm that
all of them map. Its name is gone as soon as every process has it, so that a kill later on leaves nothing; the memory is free when the
last of them ends. Where there is no such folder (macOS), or no room in it (a container's 64 MB), each process has its own copy.
"""

import atexit
import hashlib
import mmap
import os
from collections.abc import Callable
from io import BufferedRandom
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray

FOLDER = Path("/dev/shm")
HEADER = mmap.PAGESIZE
"""Bytes before the array: whether it is whole, then one a process: whether it has mapped the file."""


def held_once(name: str, shape: tuple[int, ...], dtype: DTypeLike, read: Callable[[], NDArray]) -> NDArray:
    """An array, read-only, that the processes of one launch on this machine have in common.

    Args:
        name: tells it from all others; the same in all processes.
        shape, dtype: what ``read()`` gives.
        read: called in one of the processes.
    """
    processes, rank = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    if processes == 1 or not FOLDER.is_dir():
        return _read_only(read())
    import fcntl

    path, size = _path(name), HEADER + int(np.prod(shape)) * np.dtype(dtype).itemsize
    atexit.register(path.unlink, missing_ok=True)  # where a launch ends, or a read fails, before all have come here
    with _opened(path) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError:  # no room: writing into it would be a bus error
            path.unlink(missing_ok=True)
            return _read_only(read())
        content = mmap.mmap(file.fileno(), size)
        if not content[0]:
            np.ndarray(shape, dtype, content, HEADER)[...] = read()
            content[0] = 1
        content[1 + rank] = 1
        if all(content[1 : 1 + processes]):
            path.unlink(missing_ok=True)
        fcntl.flock(file, fcntl.LOCK_UN)  # said outright: a mapping holds a descriptor of its own, and with it the lock
        return np.ndarray(shape, dtype, mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ), HEADER)


def _opened(path: Path) -> BufferedRandom:
    """The file, made where it is not there, and locked."""
    import fcntl

    while True:
        file = path.open("a+b")
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # its name was taken away meanwhile


def _path(name: str) -> Path:
    """Of the launch: its processes have one parent and one port, and another after an elastic restart."""
    launch = (os.getppid(), os.environ.get("MASTER_PORT"), os.environ.get("TORCHELASTIC_RESTART_COUNT"))
    return FOLDER / f"dopr-{hashlib.sha256(f'{launch} {name}'.encode()).hexdigest()[:24]}"


def _read_only(array: NDArray) -> NDArray:
    array.flags.writeable = False
    return array
