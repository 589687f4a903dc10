"""How arrays of a store are laid out in files, and what an episode has to be like."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
import zarr.codecs
from numpy.typing import ArrayLike, NDArray

from dopr_robot.errors import UserError

CHUNK_BYTES = 256 * 1024
SHARD_BYTES = 8 * 1024 * 1024
META_CHUNK = 1024


@dataclass(frozen=True)
class KeyInfo:
    """Shape of one step (``()`` for a number) and dtype of a key under ``data/``."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def check_episode(where: str, index: int, episode: Mapping[str, NDArray[Any]], known: Mapping[str, KeyInfo]) -> int:
    """Whether an episode is one, and like those before it (``known``, empty for the first).

    Returns:
        its number of steps.

    Raises UserError, naming ``where``, the key and the episode.
    """
    if not episode:
        raise UserError(f"{where}: an episode without any key cannot be appended (episode {index})")
    lengths = {key: len(value) if value.ndim else 0 for key, value in episode.items()}
    length = next(iter(lengths.values()))
    for key, n in lengths.items():
        if not all(part not in ("", ".", "..") for part in key.split("/")):
            raise UserError(f"{where}: {key!r} is no name of a key: parts between slashes cannot be empty, . or ..")
        if n != length or n == 0:
            raise UserError(
                f"{where}: {key}: has {n} steps and others {length}: all need the same number, above 0 (episode {index})"
            )
    if known and set(known) != set(episode):
        missing, new = sorted(set(known) - set(episode)), sorted(set(episode) - set(known))
        raise UserError(
            f"{where}: keys differ from the first episode's: missing: {missing}, new: {new} (episode {index})"
        )
    for key, info in known.items():
        value = episode[key]
        if value.shape[1:] != info.shape or not (
            value.dtype == info.dtype or {value.dtype.kind, info.dtype.kind} <= {"O", "T"}
        ):
            raise UserError(
                f"{where}: {key}: is {value.dtype}{list(value.shape[1:])} a step, the first episode's "
                f"{info.dtype}{list(info.shape)} (episode {index})"
            )
    return length


def as_array(value: ArrayLike) -> NDArray[Any]:
    """An array that zarr takes: in the machine's byte order; texts as Python objects, whatever numpy's version."""
    array = np.asarray(value)
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8")
    if array.dtype.kind in "UT":
        return array.astype(object)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


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
