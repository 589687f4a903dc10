"""Windows of observations and actions, gathered straight from a store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dopr_robot.datasets.store import Store
from dopr_robot.errors import UserError


class Batch(TypedDict):
    """``{"observation": {key: [B, To, ...]}, "action": [B, H, A]}``, in the store's dtypes and units."""

    observation: dict[str, NDArray]
    action: NDArray


class Windows:
    """All windows of a store's episodes, by index.

    A window has ``n_obs_steps`` observations and ``horizon`` actions that start at the same step; the executed actions
    are ``action[n_obs_steps - 1 : n_obs_steps - 1 + n_action_steps]``. As in Diffusion Policy, windows reach
    ``n_obs_steps - 1`` steps before an episode and ``n_action_steps - 1`` after it, where the first or the last step is
    repeated.

    Only the keys asked for are read.

    Args:
        store: where from.
        observations: keys of the observation.
        action: key of the action.
        n_obs_steps, horizon, n_action_steps: To, H, Ta; ``n_obs_steps - 1 + n_action_steps <= horizon``.
        episodes: which episodes (all, where None).

    Raises UserError where a key or an episode does not exist, or the three numbers do not fit.
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
        self._data = store.read([*dict.fromkeys((*self.observations, action))])

    def __len__(self) -> int:
        return len(self._start)

    def batch(self, indices: ArrayLike) -> Batch:
        """The windows of these indices, as new arrays."""
        indices = np.asarray(indices, np.int64)
        rows = self._start[indices, None] + np.arange(self.horizon)
        rows = np.clip(rows, self._first[indices, None], self._last[indices, None])
        seen = rows[:, : self.n_obs_steps]
        return {
            "observation": {key: self._data[key][seen] for key in self.observations},
            "action": self._data[self.action][rows],
        }

    def episode_of(self, indices: ArrayLike) -> NDArray[np.int64]:
        """The store's episode that each of these windows is from."""
        return np.searchsorted(self._ends, self._last[np.asarray(indices, np.int64)], side="right")

    def _index(self, store: Store) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """First and last row of its episode, and first row (which may lie outside), of every window."""
        first, last = store.episode_starts[self.episodes], store.episode_ends[self.episodes] - 1
        begin = first - (self.n_obs_steps - 1)
        count = np.maximum(last - self.horizon + self.n_action_steps - begin + 1, 0)
        offset = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        return np.repeat(first, count), np.repeat(last, count), np.repeat(begin, count) + offset
