"""Minimum, maximum, mean and standard deviation of keys, in one pass and bounded memory."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from dopr_robot.datasets.store import Store

BLOCK_BYTES = 32 * 1024 * 1024


def statistics(
    store: Store, keys: Iterable[str], episodes: Iterable[int] | None = None
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Statistics over the steps of some episodes (all, where None).

    Returns:
        ``{key: {"min", "max", "mean", "std"}}``, float64 arrays of the key's shape; the deviation is the population's.
        Numbers that are not finite spread into the result, as they would into training.
    """
    chosen = range(store.num_episodes) if episodes is None else sorted({int(e) for e in episodes})
    spans = _merge([(int(store.episode_starts[e]), int(store.episode_ends[e])) for e in chosen])
    return {key: _of_key(store, key, spans) for key in keys}


def _of_key(store: Store, key: str, spans: list[tuple[int, int]]) -> dict[str, NDArray[np.float64]]:
    array = store.array(key)
    shape = array.shape[1:]
    rows = max(1, BLOCK_BYTES // max(1, int(np.prod(shape)) * 8))
    count = 0
    low, high = np.full(shape, np.inf), np.full(shape, -np.inf)
    mean, squares = np.zeros(shape), np.zeros(shape)
    for start, stop in spans:
        for begin in range(start, stop, rows):
            block = store.read([key], begin, min(begin + rows, stop))[key].astype(np.float64)
            low, high = np.minimum(low, block.min(0)), np.maximum(high, block.max(0))
            # Chan, Golub, LeVeque (1983): merging two samples' means and squared deviations without cancellation.
            n, block_mean = len(block), block.mean(0)
            delta = block_mean - mean
            squares += ((block - block_mean) ** 2).sum(0) + delta**2 * (count * n / (count + n))
            mean += delta * (n / (count + n))
            count += n
    return {"min": low, "max": high, "mean": mean, "std": np.sqrt(squares / max(count, 1))}


def _merge(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Neighbouring row ranges joined, so that a chunk is read once."""
    merged: list[tuple[int, int]] = []
    for start, stop in spans:
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return merged
