"""From one format to another: what is read, made sure to be demonstrations, completed by what is known of them, and written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dopr_robot.datasets.attributes import Attributes
from dopr_robot.datasets.editing import success_from
from dopr_robot.datasets.episode import Episode, as_array, check_episode
from dopr_robot.datasets.formats.format import FORMATS, STORE, find_format
from dopr_robot.datasets.layout import KeyInfo
from dopr_robot.datasets.recording import (
    Recording,
    finish,
    go_on_writing,
    new_path,
    read_store,
    unfinished,
    write_store,
)
from dopr_robot.datasets.store import Store
from dopr_robot.datasets.tasks import GENERIC, Task, as_task, looked_at
from dopr_robot.errors import DamagedError, UserError

Arrays = Mapping[str, NDArray[Any]]
LOG = logging.getLogger(__name__)


def convert(
    source: str | Path,
    out: str | Path,
    *,
    read_as: str | None = None,
    write_as: str | None = None,
    task: Task | None = None,
    find_task: Callable[[str], Task | None] = lambda name: None,
    success_key: str | None = None,
    rebuilt: Callable[[str, Path, int], Recording] | None = None,
    **known: Any,
) -> int:
    """Episodes from one format to another; ``out`` is there only when it is whole, and ``source`` is never modified.

    Args:
        source: a store, or a file or folder of another format.
        out: a path where nothing is yet.
        read_as: the format of ``source``; found out where None (a pickle has to be named).
        write_as: the format of ``out``; None: a store.
        task: the task that is shown, see :func:`~dopr_robot.datasets.tasks.as_task`; None: the one that the source names.
        find_task: the task of a name that a source gives (:func:`dopr_robot.envs.recorded_task`), None for one that is not here.
        success_key: an episode succeeded where this key is above 0 at any of its steps; None: where the source says so.
        rebuilt: reads a file of a format that it is told, from its n-th episode on, in the place of the format's own reader. What takes
            so long goes on where an earlier call stopped, see :func:`~dopr_robot.datasets.recording.unfinished`.
        **known: fields of :class:`Attributes` that the source does not say (``control_hz``, ``observations``, ...), and
            ``absolute`` of its action.

    Returns:
        the number of episodes.

    Raises:
        UserError: an unknown format, an unfamiliar layout, a source that is damaged (what, which key, which episode), or one that says
            otherwise than what is known or than the task.
    """
    writer = None if write_as is None else FORMATS[write_as].write
    if write_as is not None and writer is None:
        raise UserError(
            f"{write_as} is only read: --to can be {', '.join(name for name in FORMATS if FORMATS[name].write)}"
        )
    name = read_as or find_format(source)
    count, out = 0, Path(out)
    if rebuilt is not None:
        if out.exists():
            raise UserError(f"{out}: exists already; choose another path")
        count = _begun(out)

    def counted(recording: Recording) -> Iterator[Episode]:
        nonlocal count
        for episode in recording.episodes:
            count += 1
            yield episode

    try:
        if rebuilt is not None:
            recording = rebuilt(name, Path(source), count)
        else:
            recording = read_store(Store.open(source)) if name == STORE else FORMATS[name].read(Path(source))
        about, named = recording.attributes, recording.named or recording.attributes.task
        if name != STORE:
            about = about.with_provenance(f"converted from {name}: {Path(source).name}")
        recording = Recording(about, checked(recording, source))
        if success_key is not None:
            recording = success_from(recording, success_key)
        recording, first = looked_at(recording)
        if not first and count:
            finish(out)
            return count
        recording = replace(recording, attributes=_completed(recording.attributes, first, source, known))
        found = task or (find_task(named) if named else None)
        if found is not None:
            strict = {"said": task is not None, "explicit": "observations" in known}
            recording = _as_task(recording, first, source, found, **strict)
        recording = replace(recording, episodes=counted(recording))
        if rebuilt is not None:
            go_on_writing(recording, out)
        elif writer is None:
            write_store(recording, out)
        else:
            with new_path(out) as partial:
                writer(recording, partial)
                if not count:
                    raise UserError(f"{source}: there is no episode in it")
    except DamagedError as error:
        raise UserError(str(error)) from error
    return count


def _begun(out: Path) -> int:
    """Episodes that an earlier call has written."""
    begun = unfinished(out)
    return Store.open(begun).num_episodes if begun.exists() else 0


def _completed(about: Attributes, first: Arrays, source: str | Path, known: Mapping[str, Any]) -> Attributes:
    """What the source says of itself and what is known beside it. Raises UserError where they contradict one another."""
    known = dict(known)
    if "absolute" in known:
        absolute = known.pop("absolute")
        if about.action.absolute not in (None, absolute):
            kind, other = ("absolute", "relative") if absolute else ("relative", "absolute")
            raise UserError(f"{source} says that its actions are {other}: leave --{kind} out")
        known["action"] = replace(about.action, absolute=absolute)
    if about.control_hz and known.get("control_hz") not in (None, about.control_hz):
        raise UserError(
            f"{source} says that it was recorded at {about.control_hz:g} Hz: leave --hz {known['control_hz']:g} out "
            "(dopr edit STORE OUT --hz HZ corrects a store, --rate HZ resamples it)"
        )
    for key in known.get("observations", ()):
        if key not in first or key == "action":
            raise UserError(f"--observations {key}: {source} has {', '.join(key for key in first if key != 'action')}")
    about = replace(about, **known)
    texts = [key for key in about.observations if key in first and first[key].dtype.kind not in "biuf"]
    if texts:
        LOG.warning("%s: %s is no number: kept as a key, and no observation", source, ", ".join(texts))
        about = replace(about, observations=tuple(key for key in about.observations if key not in texts))
    return about


def _as_task(
    recording: Recording,
    first: Arrays,
    source: str | Path,
    task: Task,
    *,
    said: bool,
    explicit: bool,
) -> Recording:
    """Demonstrations of a task that is ``said`` to be theirs, which is an error where it cannot be, or named in the file."""
    about = recording.attributes
    try:
        matched = as_task(recording, first, task)
    except UserError as error:
        if said:
            raise UserError(f"{source}: {error}") from None
        LOG.warning("%s: %s", source, error)
        return replace(recording, attributes=replace(about, task=task.id))
    if explicit and len(matched.attributes.observations) < len(about.observations):
        given = (*task.observations, *task.cameras)
        wrong = next(key for key in about.observations if key not in given and key != GENERIC)
        raise UserError(f"--observations {wrong}: {task.id} gives {', '.join(given)}")
    return matched


def checked(recording: Recording, source: str | Path) -> Iterator[Episode]:
    """The episodes, each made sure to be one and like the first. Raises UserError naming the source, the key and the episode."""
    known: Mapping[str, KeyInfo] = {}
    entries: dict[str, Any] = {}
    for index, episode in enumerate(recording.episodes):
        episode.arrays = {key: as_array(value) for key, value in episode.arrays.items()}
        check_episode(str(source), index, episode.arrays, known)
        _check_names(source, episode)
        for name, value in episode.meta.items():
            entry = as_array(value)
            first = entries.setdefault(name, entry)
            if entry.shape != first.shape or (entry.dtype.kind == "O") != (first.dtype.kind == "O"):
                raise UserError(
                    f"{source}: meta/{name}: is {entry.dtype}{list(entry.shape)}, the first episode's "
                    f"{first.dtype}{list(first.shape)} (episode {index})"
                )
        known = known or {key: KeyInfo(value.shape[1:], value.dtype) for key, value in episode.arrays.items()}
        yield episode


def _check_names(source: str | Path, episode: Episode) -> None:
    """Raise UserError for names that a store has no place for."""
    for names in (episode.arrays, episode.meta):
        for name in names:
            above = next((other for other in names if name.startswith(f"{other}/")), None)
            if above is not None:
                raise UserError(
                    f"{source}: {name!r} lies below {above!r}, which is an array itself: a store holds one of them"
                )
            if not all(part not in ("", ".", "..", "zarr.json") for part in name.split("/")) or not name.isprintable():
                raise UserError(f"{source}: {name!r} is no name of a key")
