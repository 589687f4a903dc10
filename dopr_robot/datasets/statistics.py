"""Minimum, maximum, mean and standard deviation of keys, in one pass and bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dopr_robot.datasets.store import Store

BLOCK_BYTES = 32 * 1024 * 1024
PART_BYTES = 512 * 1024


def statistics(
    store: Store, keys: Iterable[str], episodes: Iterable[int] | None = None
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Statistics over the steps of some episodes (all, where None).

    Returns:
        ``{key: {"min", "max", "mean", "std"}}``, float64 arrays of the key's shape; the deviation is the population's.
        Numbers that are not finite spread into the result, as they would into training.
    """
    chosen = range(store.num_episodes) if episodes is None else sorted({int(e) for e in episodes})
    wanted = np.zeros(store.num_episodes, bool)
    wanted[list(chosen)] = True
    return {key: _of_key(store, key, wanted) for key in keys}


def blocks(store: Store, key: str, wanted: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Rows in which to read a key, so that the wanted episodes ``[episodes]`` are in them, each chunk is read about once, and memory is
    bounded: short episodes are read many at a time, with what lies between them where that is less than a chunk."""
    array = store.array(key)
    most = max(1, BLOCK_BYTES // max(1, int(np.prod(array.shape[1:])) * 8))
    starts, ends = store.episode_starts[wanted], store.episode_ends[wanted]
    if not len(starts):
        return
    apart = np.flatnonzero(starts[1:] - ends[:-1] > array.chunks[0])
    for start, stop in zip(starts[[0, *(apart + 1)]], ends[[*apart, -1]], strict=True):
        for begin in range(int(start), int(stop), most):
            yield begin, min(begin + most, int(stop))


def _of_key(store: Store, key: str, wanted: NDArray[np.bool_]) -> dict[str, NDArray[np.float64]]:
    shape = store.array(key).shape[1:]
    count = 0
    low, high = np.full(shape, np.inf), np.full(shape, -np.inf)
    mean, squares = np.zeros(shape), np.zeros(shape)
    for part in _parts(store, key, wanted):
        low, high = np.minimum(low, part.min(0)), np.maximum(high, part.max(0))
        # Chan, Golub, LeVeque (1983): merging two samples' means and squared deviations without cancellation.
        n, part_mean = len(part), part.mean(0, dtype=np.float64)
        delta, part = part_mean - mean, part - part_mean
        squares += np.einsum("n...,n...->...", part, part) + delta**2 * (count * n / (count + n))
        mean += delta * (n / (count + n))
        count += n
    return {"min": low, "max": high, "mean": mean, "std": np.sqrt(squares / max(count, 1))}


def _parts(store: Store, key: str, wanted: NDArray[np.bool_]) -> Iterator[NDArray[Any]]:
    """The rows ``[N, ...]`` of the wanted episodes, few enough at a time for the processor's cache (a third of the time of 32 MB)."""
    rows = max(1, PART_BYTES // max(1, int(np.prod(store.array(key).shape[1:])) * 8))
    for start, stop in blocks(store, key, wanted):
        block, chosen = store.read([key], start, stop)[key], _rows(store, wanted, start, stop)
        for begin in range(0, len(block), rows):
            part = block[begin : begin + rows].take(np.flatnonzero(chosen[begin : begin + rows]), axis=0)
            if len(part):
                yield part


def _rows(store: Store, wanted: NDArray[np.bool_], start: int, stop: int) -> NDArray[np.bool_]:
    """Which of the rows ``start:stop`` are a wanted episode's."""
    ends = store.episode_ends
    first, last = np.searchsorted(ends, [start, stop - 1], side="right")
    lengths = np.diff(np.minimum(ends[first : last + 1], stop), prepend=start)
    return np.repeat(wanted[first : last + 1], lengths)
