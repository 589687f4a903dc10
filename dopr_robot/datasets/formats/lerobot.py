"""LeRobot's data sets v2.1 and v3 (huggingface.co/docs/lerobot/lerobot-dataset-v3), in; :mod:`lerobot_writer` is the way out.

``meta/info.json`` says which features there are; numbers lie in parquet, images in parquet or in mp4. In the store:

==============================  ==================================================================
``observation.state``           ``data/state``; ``observation.images.top``: ``data/top``; declared as observations, texts apart
``action``                      ``data/action``
other features                  ``data/`` and the name, with ``_`` for dots
``next.success``                ``meta/success`` too: true at any step. ``next.done`` only says that an episode ends
the task's text                 ``meta/task``; ``data/task_index`` too where it changes within an episode
``timestamp``                   where it is not ``frame_index / fps``
frame, episode and global index follow from the order and are made again
==============================  ==================================================================
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dopr_robot.datasets.attributes import Attributes
from dopr_robot.datasets.episode import Episode
from dopr_robot.datasets.formats import hdf5
from dopr_robot.datasets.formats.format import FORMATS, Format
from dopr_robot.datasets.formats.lerobot_files import INDEX, NAME, OWN, Layout, Row, Table, entry, read_json, reading
from dopr_robot.datasets.formats.lerobot_pictures import Camera, pictures
from dopr_robot.datasets.formats.lerobot_writer import write
from dopr_robot.datasets.recording import Recording
from dopr_robot.errors import UserError

LOG = logging.getLogger(__name__)

NUMBER = re.compile(r"bool|u?int(8|16|32|64)|float(16|32|64)")
SUCCESS = "next.success"


def recognises(path: Path) -> bool:
    return (path / "meta" / "info.json").is_file()


def read(path: Path) -> Recording:
    """Raises UserError for another version, and where files or rows are missing or damaged."""
    layout = Layout(path)
    names = _names(_kept(layout))
    own = _Own.read(path)
    regular, one_task = _indices(layout)
    if not regular:
        names["timestamp"] = "timestamp"
    if not one_task:
        names["task_index"] = "task_index"
    robot = layout.info.get("robot_type")
    carried = {
        "names": names,
        "features": {name: layout.info["features"].get(name, {}) for name in names.values()},
        "robot_type": robot,
        **({} if one_task else {"tasks": [layout.tasks.get(n, "") for n in range(max(layout.tasks, default=-1) + 1)]}),
    }
    about = own.attributes
    if about is None:
        about = Attributes(
            control_hz=layout.fps,
            observations=tuple(sorted(key for key, name in names.items() if _is_observation(layout, name))),
            source="LeRobot data set" + (f", {robot}" if robot else ""),
        )
    about = Attributes.from_json({**about.to_json(), "carried": {**about.carried, NAME: carried}})
    return Recording(about, _episodes(layout, names, own, regular))


@dataclass
class _Own:
    """What :mod:`lerobot_writer` left beside LeRobot's files; LeRobot may have added episodes since, which are not in it."""

    place: str = ""
    attributes: Attributes | None = None
    scalars: frozenset[str] = frozenset()
    episodes: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def read(cls, root: Path) -> _Own:
        if not (root / OWN).is_file():
            return cls()
        place, found = f"{root}: {OWN}", read_json(root, OWN)
        try:
            attributes = Attributes.from_json(found.get("attributes"))
        except UserError as error:
            raise UserError(f"{place}: {error}") from None
        scalars = [entry(place, {"scalars": each}, "scalars", str) for each in entry(place, found, "scalars", list)]
        episodes = entry(place, found, "episodes", list)
        return cls(place, attributes, frozenset(scalars), tuple({"episodes": each} for each in episodes))

    def add_to(self, episode: Episode, number: int) -> None:
        """What this file knows of an episode, if it knows of it."""
        if number >= len(self.episodes):
            return
        kept = entry(self.place, self.episodes[number], "episodes", dict)
        with reading(f"{self.place}: meta", episode=number):
            episode.meta |= {
                name: hdf5.from_json(value) for name, value in entry(self.place, kept, "meta", dict).items()
            }
        episode.seed = None if kept.get("seed") is None else entry(self.place, kept, "seed", int)
        episode.success = None if kept.get("success") is None else entry(self.place, kept, "success", bool)


def _kept(layout: Layout) -> list[str]:
    """The features that a store has a place for; the others are named in a warning."""
    other = {
        name: feature.dtype
        for name, feature in layout.features.items()
        if feature.dtype not in ("string", "image", "video") and not NUMBER.fullmatch(feature.dtype)
    }
    for name, dtype in other.items():
        LOG.warning("%s: %s is left out: %r is neither numbers, texts nor pictures", layout.root, name, dtype[:60])
    return sorted(set(layout.features) - set(other))


def _is_observation(layout: Layout, name: str) -> bool:
    # A text is no input of a policy: it is kept beside the observations.
    return name.startswith("observation") and layout.features[name].dtype != "string"


def _names(features: Iterable[str]) -> dict[str, str]:
    """``{store's key: feature}``."""
    names: dict[str, str] = {}
    for name in features:
        key = name
        for prefix in ("observation.images.", "observation."):
            key = key.removeprefix(prefix) if key == name else key
        key = key.replace(".", "_")
        taken = key in names or key in INDEX or (key == "action" and name != "action")
        key = name.replace(".", "_") if taken else key
        while key in names:
            key += "_"
        names[key] = name
    return names


def _indices(layout: Layout) -> tuple[bool, bool]:
    """Whether every timestamp is ``frame_index / fps``, and whether no episode has two tasks."""
    regular = one_task = True
    for file in dict.fromkeys(row.data for row in layout.episodes):
        table = Table(layout.root, file, ("timestamp", "frame_index", "episode_index", "task_index"))
        time = table.numbers("timestamp", kinds="iuf")
        frame, episode, task = (table.numbers(name) for name in ("frame_index", "episode_index", "task_index"))
        regular = regular and bool((time == (frame / layout.fps).astype(np.float32)).all())
        one_task = one_task and all(len(np.unique(task[episode == each])) == 1 for each in np.unique(episode))
    return regular, one_task


def _episodes(layout: Layout, names: Mapping[str, str], own: _Own, regular: bool) -> Iterator[Episode]:
    cameras = {
        key: Camera(layout.root, name, layout.features[name], layout.fps)
        for key, name in names.items()
        if name not in INDEX and layout.features[name].dtype == "video"
    }
    opened: Path | None = None
    table: Any = None
    try:
        for row in layout.episodes:
            if row.data != opened:
                opened, table = row.data, Table(layout.root, row.data)
                owners = table.numbers("episode_index")
            rows = np.flatnonzero(owners == row.number)
            if len(rows) != row.length or not len(rows) or rows[-1] - rows[0] + 1 != row.length:
                raise UserError(
                    f"{table.place}: has {len(rows)} rows and meta/episodes {row.length} (episode {row.number})"
                )
            start = int(rows[0])
            times = _times(layout, table, start, row, regular)
            arrays = {
                key: cameras[key].read(row, times)
                if key in cameras
                else _array(layout, table, name, key in own.scalars, start, row)
                for key, name in names.items()
            }
            episode = _episode(layout, table, arrays, names, start, row)
            own.add_to(episode, row.number)
            yield episode
    finally:
        for camera in cameras.values():
            camera.close()


def _times(layout: Layout, table: Table, start: int, row: Row, regular: bool) -> NDArray[np.floating]:
    """When an episode's pictures were taken, s ``[T]``: by the column, as LeRobot has it, or by what it is the single precision of."""
    if regular:
        return table.numbers("frame_index", start, row.length) / layout.fps
    return table.numbers("timestamp", start, row.length, kinds="iuf").astype(np.float64)


def _array(layout: Layout, table: Table, name: str, scalar: bool, start: int, row: Row) -> NDArray[Any]:
    """One feature of one episode, ``[T, ...]``."""
    if name not in table.columns:
        raise UserError(f"{table.place}: {name}: is missing (episode {row.number})")
    if name in INDEX:
        return table.values(name, start, row.length)
    feature = layout.features[name]
    if feature.dtype == "image":
        return pictures(layout.root, table, name, feature, start, row)
    found, shape = table.values(name, start, row.length), () if scalar else feature.shape
    if found.size != row.length * math.prod(shape):
        raise UserError(
            f"{table.place}: {name}: is {list(found.shape[1:])} a step: {list(shape)} is expected (episode {row.number})"
        )
    return found.reshape(row.length, *shape)


def _episode(
    layout: Layout, table: Table, arrays: dict[str, NDArray[Any]], names: Mapping[str, str], start: int, row: Row
) -> Episode:
    tasks = np.unique(table.numbers("task_index", start, row.length))
    task = layout.tasks.get(int(tasks[0]), "") if len(tasks) == 1 else ""
    flags = [arrays[key] for key, name in names.items() if name == SUCCESS and arrays[key].dtype.kind in "biuf"]
    success = bool((flags[0] > 0).any()) if flags else None
    return Episode(arrays, success=success, meta={"task": task} if task else {})


FORMATS.register(NAME, Format("a folder with meta/info.json, parquet and mp4", recognises, read, write))
