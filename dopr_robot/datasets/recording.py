"""Episodes on their way from one place to another: what readers yield and writers take, one episode at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dopr_robot.datasets.attributes import Attributes
from dopr_robot.datasets.store import UNKNOWN, Store
from dopr_robot.errors import UserError
from dopr_robot.files import replacing


@dataclass
class Episode:
    """One demonstration: ``arrays {key: [T, ...]}``, its seed and success where known, and whatever else belongs to it."""

    arrays: dict[str, NDArray[Any]]
    seed: int | None = None
    success: bool | None = None
    meta: dict[str, Any] = field(default_factory=dict)


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
    for index in chosen:
        yield Episode(
            store.episode(index),
            None if seeds[index] == UNKNOWN else int(seeds[index]),
            None if success[index] == UNKNOWN else bool(success[index]),
            {name: meta[name][index] for name in others},
        )


def write_store(recording: Recording, out: str | Path) -> Store:
    """A new store at ``out``, there only when it is whole; whatever goes wrong leaves nothing behind."""
    with new_path(out) as partial:
        with Store.create(partial, recording.attributes) as store:
            for episode in recording.episodes:
                store.append(episode.arrays, seed=episode.seed, success=episode.success, meta=episode.meta)
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
            store.append(episode.arrays, seed=episode.seed, success=episode.success, meta=episode.meta)
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
