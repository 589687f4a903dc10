"""Windows of observations and actions, gathered straight from a store."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dopr_robot.datasets.store import Store
from dopr_robot.datasets.streaming import Shards
from dopr_robot.errors import UserError

MEMORY_BYTES = 2 * 1024**3
"""What the keys of a store may take in memory; the largest beyond that are streamed from its files."""


class Batch(TypedDict):
    """``{"observation": {key: [B, To, ...]}, "action": [B, H, A]}``, in the store's dtypes and units."""

    observation: dict[str, NDArray]
    action: NDArray


class Windows:
    """All windows of a store's episodes, by index.

    A window has ``n_obs_steps`` observations and ``horizon`` actions that start at the same step; the executed actions
    are ``action[n_obs_steps - 1 : n_obs_steps - 1 + n_action_steps]``. As in Diffusion Policy, windows reach
    ``n_obs_steps - 1`` steps before an episode and ``n_action_steps - 1`` after it, where the first or the last step is
    repeated. An episode that is too short for even one of these, which Diffusion Policy leaves out, gives the first of them, its last
    step repeated as often as that takes (:attr:`short`).

    Only the keys asked for are read. Small ones are held in memory, once for all windows of a store; large ones are read from its
    files as they are needed, and :meth:`ahead` reads them while the step before is computed.

    Args:
        store: where from.
        observations: keys of the observation.
        action: key of the action.
        n_obs_steps, horizon, n_action_steps: To, H, Ta; ``n_obs_steps - 1 + n_action_steps <= horizon``.
        episodes: which episodes (all, where None).
        memory_bytes: what the keys may take in memory.

    Raises UserError where a key or an episode does not exist, the three numbers do not fit, or somebody else's store is
    too large to be held (only our own can be streamed).
    """

    def __init__(
        self,
        store: Store,
        observations: Sequence[str],
        action: str = "action",
        *,
        n_obs_steps: int,
        horizon: int,
        n_action_steps: int,
        episodes: Iterable[int] | None = None,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        if n_obs_steps < 1 or n_action_steps < 1 or n_obs_steps - 1 + n_action_steps > horizon:
            raise UserError(
                f"n_obs_steps {n_obs_steps}, horizon {horizon}, n_action_steps {n_action_steps} do not fit: "
                "n_obs_steps - 1 + n_action_steps must be at most horizon, and all at least 1"
            )
        self.n_obs_steps, self.horizon, self.n_action_steps = n_obs_steps, horizon, n_action_steps
        self.observations, self.action = tuple(observations), action
        self.episodes = np.asarray(range(store.num_episodes) if episodes is None else list(episodes), np.int64)
        outside = (self.episodes < 0) | (self.episodes >= store.num_episodes)
        if outside.any():
            raise UserError(
                f"{store.path}: there is no episode {self.episodes[outside][0]} (episodes: {store.num_episodes})"
            )
        self._first, self._last, self._start = self._index(store)
        self._ends = np.asarray(store.episode_ends)
        self._held, self._streamed = _sources(store, [*dict.fromkeys((*self.observations, action))], memory_bytes)
        self._coming: dict[bytes, Future[Batch]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_coming": {}}  # what is being read belongs to this process

    def __len__(self) -> int:
        return len(self._start)

    @property
    def short(self) -> NDArray[np.int64]:
        """The episodes that are shorter than ``horizon - n_obs_steps - n_action_steps + 2`` steps: they give one window each."""
        return self._short

    @property
    def streamed(self) -> list[str]:
        """The keys that are read from files as they are needed."""
        return list(self._streamed)

    def batch(self, indices: ArrayLike) -> Batch:
        """The windows of these indices, as new arrays."""
        indices = np.asarray(indices, np.int64)
        coming = self._coming.pop(indices.tobytes(), None) if self._coming else None
        return coming.result() if coming is not None else self._gather(indices)

    def ahead(
        self,
        stream: Iterable[NDArray[np.int64]],
        pieces: Callable[[NDArray[np.int64]], Sequence[NDArray[np.int64]]] = lambda indices: [indices],
        *,
        steps: int = 3,
        threads: int = 2,
    ) -> Iterator[NDArray[np.int64]]:
        """The same stream of indices, while the batches of the next ones are read.

        :meth:`batch` hands out what was read. Nothing but the time changes: batches and their order are the stream's. At most
        ``steps`` are read in advance, which bounds the memory. Without streamed keys there is nothing to wait for and
        nothing is read in advance.

        Args:
            stream: indices, a step at a time.
            pieces: those of a step that :meth:`batch` will be asked for (a process's share, or several).
            steps: how many steps in advance.
            threads: how many batches are read at a time.
        """
        if not self._streamed:
            yield from stream
            return
        waiting: deque[tuple[NDArray[np.int64], list[bytes]]] = deque()
        source = iter(stream)
        with ThreadPoolExecutor(threads, thread_name_prefix="windows") as pool:
            try:
                while True:
                    while len(waiting) <= steps and (indices := next(source, None)) is not None:
                        parts = [np.ascontiguousarray(part, np.int64) for part in pieces(indices)]
                        names = [part.tobytes() for part in parts]
                        for name, part in zip(names, parts, strict=True):
                            self._coming[name] = pool.submit(self._gather, part)
                        waiting.append((indices, names))
                    if not waiting:
                        return
                    indices, names = waiting.popleft()
                    yield indices
                    for name in names:  # a step that was left out
                        self._coming.pop(name, None)
            finally:
                for future in self._coming.values():
                    future.cancel()
                self._coming.clear()

    def _gather(self, indices: NDArray[np.int64]) -> Batch:
        rows = self._start[indices, None] + np.arange(self.horizon)
        rows = np.clip(rows, self._first[indices, None], self._last[indices, None])
        seen = rows[:, : self.n_obs_steps]
        return {
            "observation": {key: self._rows(key, seen) for key in self.observations},
            "action": self._rows(self.action, rows),
        }

    def _rows(self, key: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        """``[B, T, ...]`` of a key at rows ``[B, T]``."""
        if key in self._held:
            return self._held[key][rows]
        found = self._streamed[key].read(rows.ravel())
        return found.reshape(*rows.shape, *found.shape[1:])

    def episode_of(self, indices: ArrayLike) -> NDArray[np.int64]:
        """The store's episode that each of these windows is from."""
        return np.searchsorted(self._ends, self._last[np.asarray(indices, np.int64)], side="right")

    def _index(self, store: Store) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """First and last row of its episode, and first row (which may lie outside), of every window."""
        first, last = store.episode_starts[self.episodes], store.episode_ends[self.episodes] - 1
        begin = first - (self.n_obs_steps - 1)
        count = last - self.horizon + self.n_action_steps - begin + 1
        self._short = self.episodes[count < 1]
        count = np.maximum(count, 1)
        offset = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        return np.repeat(first, count), np.repeat(last, count), np.repeat(begin, count) + offset


def _sources(store: Store, keys: Sequence[str], memory_bytes: int) -> tuple[dict[str, NDArray[Any]], dict[str, Shards]]:
    """Keys that are held, the smallest first, and those that are streamed."""
    sizes = {
        key: store.num_steps * int(np.prod(store.array(key).shape[1:])) * store.array(key).dtype.itemsize
        for key in keys
    }
    held: dict[str, NDArray[Any]] = {}
    streamed: dict[str, Shards] = {}
    total = 0
    for key in sorted(keys, key=lambda key: sizes[key]):
        total += sizes[key]
        if total > memory_bytes and Shards.suits(store, key):
            streamed[key] = Shards(store, key)
        elif total > max(memory_bytes, physical_bytes() // 2):
            raise UserError(
                f"{store.path}: {key!r} takes {sizes[key] / 1024**3:.1f} GiB and cannot be streamed from this layout: "
                "dopr convert makes a store that can (and dopr edit --uint8 a smaller one of float images)"
            )
        else:
            held[key] = store.hold(key)
    return held, streamed


def physical_bytes() -> int:
    """Memory of this machine; 8 GiB where it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 8 * 1024**3
