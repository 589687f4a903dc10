"""How arrays of a store are laid out in files."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
import zarr.codecs
from numpy.typing import NDArray

CHUNK_BYTES = 256 * 1024
SHARD_BYTES = 8 * 1024 * 1024
META_CHUNK = 1024


@dataclass(frozen=True)
class KeyInfo:
    """Shape of one step (``()`` for a number) and dtype of a key under ``data/``."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def create_array(
    group: Any,
    name: str,
    shape: tuple[int, ...],
    dtype: Any,
    *,
    per_step: bool = True,
    fill_value: int | None = None,
    entry_bytes: int = 8,
) -> zarr.Array:
    # An append rewrites the chunk that it touches: a large entry (a model's XML) gets one of its own.
    chunk, shard = (
        _layout(shape, dtype) if per_step else (min(META_CHUNK, max(1, CHUNK_BYTES // max(1, entry_bytes))), None)
    )
    text = dtype.kind == "O"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr says that texts have no final v3 specification
        return group.create_array(
            name,
            shape=(0, *shape),
            dtype=str if text else dtype,
            chunks=(chunk, *(max(1, n) for n in shape)),
            shards=(shard, *(max(1, n) for n in shape)) if shard else None,
            # The checksum is what tells a reader, and `dopr info --check`, that a chunk is not what was written.
            compressors=zarr.codecs.ZstdCodec(level=3, checksum=True),
            fill_value=fill_value if fill_value is not None else ("" if text else 0),
        )


def _layout(shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[int, int]:
    """Steps in a chunk and in a shard. A large row (an image) is a chunk of its own: a window reads what it needs."""
    row = max(1, int(np.prod(shape)) * dtype.itemsize)
    chunk = max(1, CHUNK_BYTES // row) if row < 4096 else 1
    shard = max(1, SHARD_BYTES // (chunk * row))
    return chunk, chunk * shard


def fits(given: np.dtype[Any], held: np.dtype[Any]) -> bool:
    """Whether values of one dtype go into an array of another without becoming others: texts into texts, numbers of the same kind."""
    texts = [dtype.kind in "OT" for dtype in (given, held)]
    return all(texts) or (not any(texts) and np.can_cast(given, held, "same_kind"))


def write_rows(array: Any, start: int, rows: NDArray[Any]) -> None:
    stop = start + len(rows)
    if array.shape[0] != stop:
        array.resize((stop, *array.shape[1:]))
    array[start:stop] = rows
