"""Episodes on their way from one place to another: what readers yield and writers take, one episode at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from dopr_robot.datasets.appending import TOGETHER_BYTES, together
from dopr_robot.datasets.attributes import Attributes
from dopr_robot.datasets.episode import UNKNOWN, Episode
from dopr_robot.datasets.store import Store
from dopr_robot.errors import UserError
from dopr_robot.files import replacing


@dataclass
class Recording:
    """What is known of a set of episodes, and the episodes, read as they are asked for.

    Attributes:
        attributes: what is known.
        episodes: one after another.
        named: ``package/name`` of the task, where a file gives its package's own name for it, which is no id.
    """

    attributes: Attributes
    episodes: Iterable[Episode]
    named: str | None = None


def read_store(store: Store, episodes: Iterable[int] | None = None) -> Recording:
    """A store (some of its episodes, in the order given) as a recording."""
    return Recording(store.attributes, _episodes(store, range(store.num_episodes) if episodes is None else episodes))


def _episodes(store: Store, chosen: Iterable[int]) -> Iterator[Episode]:
    meta, seeds, success = store.meta, store.seeds, store.success
    others = [name for name in meta if name not in ("seed", "success")]
    starts, ends = store.episode_starts, store.episode_ends
    for run in _neighbours(store, chosen):
        first = int(starts[run[0]])
        rows = store.read(start=first, stop=int(ends[run[-1]]))
        for index in run:
            yield Episode(
                {key: value[starts[index] - first : ends[index] - first] for key, value in rows.items()},
                None if seeds[index] == UNKNOWN else int(seeds[index]),
                None if success[index] == UNKNOWN else bool(success[index]),
                {name: meta[name][index] for name in others},
            )


def _neighbours(store: Store, chosen: Iterable[int]) -> Iterator[list[int]]:
    """Episodes that lie one after another, in lists that are worth one reading: up to 4 MiB, or one episode."""
    step = sum(math.prod(info.shape) * info.dtype.itemsize for info in store.keys.values())
    starts, ends = store.episode_starts, store.episode_ends
    run: list[int] = []
    for index in chosen:
        if run and (index != run[-1] + 1 or (ends[index] - starts[run[0]]) * step > TOGETHER_BYTES):
            yield run
            run = []
        run.append(index)
    if run:
        yield run


def write_store(recording: Recording, out: str | Path) -> Store:
    """A new store at ``out``, there only when it is whole; whatever goes wrong leaves nothing behind."""
    with new_path(out) as partial:
        with Store.create(partial, recording.attributes) as store:
            for episodes in together(recording.episodes):
                store.extend(episodes)
        if not store.num_episodes:
            raise UserError(f"{out}: there is no episode to write")
    return Store.open(out)


def unfinished(out: Path) -> Path:
    """Where what :func:`go_on_writing` has written so far lies until it is whole."""
    return out.with_name(f"{out.name}.unfinished")


def go_on_writing(recording: Recording, out: Path) -> Store:
    """A new store at ``out`` from what an earlier, stopped call left at :func:`unfinished`, and then from ``recording``.

    Raises UserError where that was of another recording.
    """
    begun = unfinished(out)
    if begun.exists():
        store, wanted = Store.open(begun), json.loads(json.dumps(recording.attributes.to_json()))
        if json.loads(json.dumps(store.attributes.to_json())) != wanted:
            raise UserError(f"{begun} is the beginning of something else: remove it, or choose another path")
    else:
        store = Store.create(begun, recording.attributes)
    with store:
        for episode in recording.episodes:
            store.extend([episode])
    return finish(out)


def finish(out: Path) -> Store:
    """Move what is at :func:`unfinished` to its place."""
    if out.exists():
        raise UserError(f"{out}: exists already; choose another path")
    unfinished(out).rename(out)
    return Store.open(out)


def new_path(out: str | Path) -> AbstractContextManager[Path]:
    """A path beside ``out`` to write a file or folder at; it is moved to ``out`` at the end, or removed after an error."""
    return replacing(Path(out), new=True)
