"""Episodes written into a store's arrays, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from dopr_robot.datasets.episode import UNKNOWN, Episode, as_array, check_episode
from dopr_robot.datasets.layout import KeyInfo, create_array, fits, write_rows
from dopr_robot.datasets.opening import Arrays
from dopr_robot.errors import UserError

TOGETHER_BYTES = 4 * 2**20
"""How much is read or written together where nothing is lost by it. PushT's 206 episodes, 26 kB each, were converted in 22.8 CPU seconds
one after another and in 0.9 so: a call of zarr's takes some milliseconds, whatever its size."""


def append_episodes(arrays: Arrays, ends: NDArray[np.int64], episodes: Sequence[Episode]) -> NDArray[np.int64]:
    """Add episodes to a store that has those that ``ends`` are the ends of.

    Returns:
        the ends of all, int64 [episodes].

    Raises UserError, before any of them counts, where one does not fit.
    """
    index, start = len(ends), int(ends[-1]) if len(ends) else 0
    data = [{key: as_array(value) for key, value in episode.arrays.items()} for episode in episodes]
    known = {key: KeyInfo(each.shape[1:], each.dtype) for key, each in arrays.under("data").items()} if index else {}
    lengths = []
    for number, own in enumerate(data, index):
        lengths.append(check_episode(arrays.path, number, own, known))
        known = known or {key: KeyInfo(value.shape[1:], value.dtype) for key, value in own.items()}
    if not index:  # arrays that a killed first write left
        for key in list(arrays.under("data")):
            arrays.remove(f"data/{key}")
    for key, info in known.items():
        array = arrays.get(f"data/{key}")
        if array is None:
            array = arrays.add(f"data/{key}", create_array(arrays.group["data"], key, info.shape, info.dtype))
        rows = [own[key] for own in data]
        write_rows(array, start, rows[0] if len(rows) == 1 else np.concatenate(rows))
    _append_meta(arrays, index, episodes)
    new = start + np.cumsum(lengths, dtype=np.int64)
    write_rows(arrays.get("meta/episode_ends"), index, new)
    return np.concatenate((ends, new))


def _append_meta(arrays: Arrays, index: int, episodes: Sequence[Episode]) -> None:
    """What belongs to the episodes, from entry ``index`` on; entries that one lacks hold the array's fill value."""
    values = [
        {
            "seed": UNKNOWN if episode.seed is None else int(episode.seed),
            **episode.meta,
            "success": UNKNOWN if episode.success is None else int(episode.success),
        }
        for episode in episodes
    ]
    for name in dict.fromkeys(name for each in values for name in each):
        entries = {number: as_array(each[name]) for number, each in enumerate(values, index) if name in each}
        first = next(iter(entries.values()))
        array = arrays.get(f"meta/{name}")
        if array is None:
            size = sum(map(len, first[None].flat)) if first.dtype.kind == "O" else first.nbytes
            array = create_array(arrays.group["meta"], name, first.shape, first.dtype, per_step=False, entry_bytes=size)
            arrays.add(f"meta/{name}", array)
        for number, entry in entries.items():
            if array.shape[1:] != entry.shape or not fits(entry.dtype, array.dtype):
                raise UserError(
                    f"{arrays.path}: meta/{name}: is {entry.dtype}{list(entry.shape)}, earlier episodes' "
                    f"{array.dtype}{list(array.shape[1:])} (episode {number})"
                )
        column = np.full(
            (len(episodes), *first.shape), array.fill_value, object if first.dtype.kind == "O" else array.dtype
        )
        for number, entry in entries.items():
            column[number - index, ...] = entry  # without the dots an old NumPy puts an array of a text, not the text
        write_rows(array, index, column)
    whole = index + len(episodes)
    for name, array in arrays.under("meta").items():  # what none of them has
        if name != "episode_ends" and array.shape[0] < whole:
            array.resize((whole, *array.shape[1:]))


def together(episodes: Iterable[Episode]) -> Iterator[list[Episode]]:
    """Episodes in lists that are worth one write: 4 MiB, or one episode that is larger."""
    waiting: list[Episode] = []
    held = 0
    for episode in episodes:
        waiting.append(episode)
        held += sum(np.asarray(value).nbytes for value in (*episode.arrays.values(), *episode.meta.values()))
        if held >= TOGETHER_BYTES:
            yield waiting
            waiting, held = [], 0
    if waiting:
        yield waiting
