"""Rows of a key straight from a store's files: in any order, from several threads at once, in bounded memory.

zarr opens a shard, reads its index and schedules a task for every chunk that is asked for; for a random image that is many times
the work of decompressing it. Here a shard's index is read once and kept (16 bytes a chunk), and a row is one read and one
decompression, both without Python's lock.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import zarr
import zarr.codecs
from numcodecs.zstd import Zstd
from numpy.typing import NDArray

from dopr_robot.datasets.store import Store
from dopr_robot.errors import DamagedError

_ABSENT = np.iinfo(np.uint64).max
_CHECKSUM_BYTES = 4


class Shards:
    """One key of a store of our own in a local folder. :meth:`suits` says whether a key is laid out so."""

    def __init__(self, store: Store, key: str) -> None:
        array = store.array(key)
        self.store, self.key = store, key
        self.shape, self.dtype = tuple(array.shape[1:]), array.dtype
        assert array.shards is not None
        self._chunk_rows, self._shard_rows = array.chunks[0], array.shards[0]
        self._folder = Path(store.path) / "data" / key
        self._array = array
        self._indices: dict[int, tuple[tuple[int, int, int], NDArray[np.uint64]]] = {}
        self._codec = threading.local()

    def __reduce__(self) -> tuple[Any, ...]:
        return Shards, (self.store, self.key)  # what was read of the files is read again in another process

    @staticmethod
    def suits(store: Store, key: str) -> bool:
        """Whether it is a local zarr v3 array, sharded along its steps, whose chunks are zstd and nothing else."""
        array = store.array(key)
        if not Path(store.path).is_dir() or array.metadata.zarr_format != 3 or array.shards is None:
            return False
        codecs: Any = array.metadata.codecs
        if len(codecs) != 1 or not isinstance(codecs[0], zarr.codecs.ShardingCodec):
            return False
        inner, whole = codecs[0].codecs, array.chunks[1:] == array.shape[1:]
        at_end = codecs[0].index_location == zarr.codecs.ShardingCodecIndexLocation.end
        kinds = (
            len(inner) == 2
            and isinstance(inner[0], zarr.codecs.BytesCodec)
            and isinstance(inner[1], zarr.codecs.ZstdCodec)
        )
        return whole and at_end and kinds and array.dtype.kind in "fiub" and array.dtype.isnative

    def read(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """``[len(rows), ...]``. Raises DamagedError naming the key and the episode."""
        wanted, place = np.unique(rows, return_inverse=True)
        found = np.empty((len(wanted), *self.shape), self.dtype)
        start = 0
        while start < len(wanted):
            shard = int(wanted[start]) // self._shard_rows
            stop = int(np.searchsorted(wanted, (shard + 1) * self._shard_rows))
            self._read_shard(shard, wanted[start:stop], found[start:stop])
            start = stop
        return found if len(wanted) == len(rows) and (place[1:] > place[:-1]).all() else found[place]

    def _read_shard(self, shard: int, rows: NDArray[np.int64], out: NDArray[Any]) -> None:
        try:
            name = self._array.metadata.encode_chunk_key((shard, *(0,) * (self._array.ndim - 1)))
            descriptor = os.open(self._folder / name, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise self._damage(f"a file is missing ({error.strerror})", int(rows[0])) from error
        try:
            index = self._index(descriptor, shard)
            last, chunk = -1, None
            for number, row in enumerate(rows.tolist()):
                within, offset = divmod(row - shard * self._shard_rows, self._chunk_rows)
                if within != last:
                    last, chunk = within, self._chunk(descriptor, index, within, row)
                assert chunk is not None
                out[number] = chunk[offset]
        finally:
            os.close(descriptor)

    def _index(self, descriptor: int, shard: int) -> NDArray[np.uint64]:
        """Offset and length of every chunk, ``[chunks, 2]``; read again where a writer has replaced the file."""
        about = os.fstat(descriptor)
        mark = (about.st_ino, about.st_mtime_ns, about.st_size)
        known = self._indices.get(shard)
        if known is not None and known[0] == mark:
            return known[1]
        count = self._shard_rows // self._chunk_rows
        if count * 16 > about.st_size:
            raise self._damage("cannot be read (the file is cut short)", shard * self._shard_rows)
        raw = _read_at(descriptor, count * 16, max(0, about.st_size - count * 16 - _CHECKSUM_BYTES))
        index = np.frombuffer(raw, "<u8").reshape(count, 2)
        self._indices[shard] = mark, index
        return index

    def _chunk(self, descriptor: int, index: NDArray[np.uint64], chunk: int, row: int) -> NDArray[Any]:
        offset, length = (int(value) for value in index[chunk])
        if offset == _ABSENT:
            raise self._damage("a chunk is missing", row)
        if offset + length > os.fstat(descriptor).st_size:
            raise self._damage("cannot be read (the file is cut short)", row)
        codec = getattr(self._codec, "value", None)
        if codec is None:
            codec = self._codec.value = Zstd()
        try:
            # zstd checks the checksum that every chunk carries. Into the size that is declared: a chunk may say any.
            chunk_rows = np.empty((self._chunk_rows, *self.shape), self.dtype)
            codec.decode(_read_at(descriptor, length, offset), chunk_rows)
            return chunk_rows
        except (RuntimeError, ValueError) as error:
            raise self._damage(f"cannot be read ({' '.join(str(error).split())})", row) from error

    def _damage(self, what: str, row: int) -> DamagedError:
        episode = int(np.searchsorted(self.store.episode_ends, row, side="right"))
        return DamagedError(f"{self.store.path}: {self.key}: {what} (episode {episode})")


def _read_at(descriptor: int, length: int, offset: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(descriptor, length, offset)
    os.lseek(descriptor, offset, os.SEEK_SET)  # Windows; nobody else has the descriptor
    return os.read(descriptor, length)
