"""A new store from old ones: merged, filtered, split, with other keys, at another control rate, or told what it did not know."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dopr_robot.datasets import Recording, Store, split_episodes, write_store
from dopr_robot.datasets.editing import (
    as_uint8,
    merge,
    rename_keys,
    resample,
    select,
    subset,
    succeeded,
    with_action,
    with_success,
)
from dopr_robot.datasets.tasks import as_task, looked_at
from dopr_robot.envs import get_task
from dopr_robot.errors import UserError

FLAGS = {"true": 1, "false": 0, "1": 1, "0": 0}


@dataclass(frozen=True)
class Edit:
    """What is done to stores, in the order of these fields.

    Attributes:
        success_from: episodes succeeded where this key is above 0 at any step.
        set_success: whether all episodes succeeded ("true", "false"), or a text file with a word an episode.
        success: successful episodes only.
        length: episodes with ``a <= steps < b``; None for ``b``: no bound.
        subset: so many of the episodes, drawn by ``seed``.
        keep, drop: keys that stay beside the action, or go.
        rename: ``{old: new}``.
        uint8: images held as floats 0 to 255 that become uint8.
        absolute: whether actions are targets, where the store does not say.
        hz: the control rate that it was recorded at.
        rate: the control rate to resample to.
        task: that it shows, whose rate, bounds and names are taken over; "none": no task.
        split: two stores, with this share of the episodes in the second.
        seed: of ``subset`` and ``split``.
    """

    success_from: str | None = None
    set_success: str | None = None
    success: bool = False
    length: tuple[int, int | None] | None = None
    subset: int | None = None
    keep: Sequence[str] = ()
    drop: Sequence[str] = ()
    rename: Mapping[str, str] = field(default_factory=dict)
    uint8: Sequence[str] = ()
    absolute: bool | None = None
    hz: float | None = None
    rate: float | None = None
    task: str | None = None
    split: float | None = None
    seed: int = 0

    def provenance(self) -> list[str]:
        """What is said of it in the new store."""
        low, high = self.length or (0, None)
        said = {
            f"success: {self.success_from} above 0 at any step": self.success_from is not None,
            f"success: {self.set_success}": self.set_success is not None,
            "successful episodes": self.success,
            f"length {low or ''}:{'' if high is None else high}": self.length is not None,
            f"subset of {self.subset}, seed {self.seed}": self.subset is not None,
            f"split {self.split}, seed {self.seed}": self.split is not None,
        }
        return [text for text, done in said.items() if done]


def edit(
    stores: Sequence[str | os.PathLike[str]] | str | os.PathLike[str], out: str | os.PathLike[str], **changes: Any
) -> list[Store]:
    """Make a new store from old ones, which are not touched, as ``dopr edit`` does; several are merged, in their order.

    >>> edit(["a.zarr", "b.zarr"], "both.zarr", success=True, length=(20, 300))      # doctest: +SKIP

    Args:
        stores: to read.
        out: path of the new one, where nothing is yet; with ``split`` its name with ``-train`` and ``-validation``.
        changes: fields of :class:`Edit`.

    Returns:
        The new store, or the two.

    Raises:
        UserError: what is asked for does not fit the stores, or no episode is left.
    """
    asked, out = Edit(**changes), Path(out)
    paths = [stores] if isinstance(stores, str | os.PathLike) else stores
    opened = [Store.open(os.fspath(path)) for path in paths]
    known = _success(asked, opened)
    chosen = [
        (index, int(e))
        for index, store in enumerate(opened)
        for e in select(store, success=asked.success, length=asked.length, known=known[index])
    ]
    if asked.subset is not None:
        chosen = [chosen[n] for n in subset(np.arange(len(chosen)), asked.subset, asked.seed)]
    if not chosen:
        raise UserError("no episode is left: nothing was written")
    if asked.split is None:
        return [_write(asked, opened, known, chosen, out)]
    if len(chosen) < 2 or not 0 < asked.split < 1:
        raise UserError(
            f"--split {asked.split:g} of {len(chosen)} episodes: it has to lie between 0 and 1, and two episodes be there"
        )
    outs = [out.with_name(f"{out.stem}-{name}{out.suffix}") for name in ("train", "validation")]
    for each in outs:
        if each.exists():
            raise UserError(f"{each}: exists already; choose another path")
    parts = split_episodes(len(chosen), asked.split, asked.seed)
    return [
        _write(asked, opened, known, [chosen[n] for n in part], each) for each, part in zip(outs, parts, strict=True)
    ]


def _write(
    asked: Edit, stores: Sequence[Store], known: Sequence[NDArray[np.int8]], chosen: list[tuple[int, int]], out: Path
) -> Store:
    parts = [(store, [e for which, e in chosen if which == index]) for index, store in enumerate(stores)]
    recording = merge(parts)
    if asked.success_from or asked.set_success:
        recording = with_success(recording, [known[index][e] for index, (_, part) in enumerate(parts) for e in part])
    about, said = with_action(recording.attributes, asked.absolute), asked.provenance()
    recording = Recording(about.with_provenance("; ".join(said)) if said else about, recording.episodes)
    if asked.keep or asked.drop or asked.rename:
        names = dict(asked.rename)
        recording = rename_keys(recording, stores[0].keys, keep=list(asked.keep), drop=list(asked.drop), names=names)
    if asked.uint8:
        recording = as_uint8(recording, [asked.rename.get(key, key) for key in asked.uint8])
    if asked.hz is not None:
        if asked.hz <= 0:
            raise UserError(f"--hz {asked.hz:g} has to be above 0")
        about = recording.attributes.with_provenance(f"recorded at {asked.hz:g} Hz", control_hz=asked.hz)
        recording = Recording(about, recording.episodes)
    if asked.rate is not None:
        recording = resample(recording, asked.rate)
    if asked.task:
        recording = _of_task(recording, asked.task)
    return write_store(recording, out)


def _of_task(recording: Recording, name: str) -> Recording:
    if name == "none":
        return Recording(recording.attributes.with_provenance("of no task", task=None), recording.episodes)
    task = get_task(name)
    recording, first = looked_at(recording)
    recording = as_task(recording, first, task)
    return Recording(recording.attributes.with_provenance(f"as {task.id}"), recording.episodes)


def _success(asked: Edit, stores: Sequence[Store]) -> list[NDArray[np.int8]]:
    """Of every store, success of its episodes: what is said here, else what the store says."""
    if asked.success_from:
        return [succeeded(store, asked.success_from) for store in stores]
    if asked.set_success is None:
        return [store.success for store in stores]
    counts = [store.num_episodes for store in stores]
    if asked.set_success in FLAGS:
        return [np.full(count, FLAGS[asked.set_success], np.int8) for count in counts]
    words = _lines(Path(asked.set_success))
    if len(words) != sum(counts):
        raise UserError(f"--set-success {asked.set_success}: has {len(words)} words for {sum(counts)} episodes")
    return np.split(np.array([FLAGS[word] for word in words], np.int8), np.cumsum(counts)[:-1])


def _lines(path: Path) -> list[str]:
    try:
        words = path.read_text(encoding="utf-8").lower().split()
    except (OSError, UnicodeDecodeError):
        raise UserError(
            f"--set-success {path}: true, false or a text file of them is expected, one an episode"
        ) from None
    wrong = next((word for word in words if word not in FLAGS), None)
    if wrong is not None:
        raise UserError(f"--set-success {path}: holds {wrong!r}: true or false is expected, one an episode")
    return words
