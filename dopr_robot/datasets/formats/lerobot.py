"""LeRobot's data sets v2.1 and v3 (huggingface.co/docs/lerobot/lerobot-dataset-v3), in; :mod:`lerobot_writer` is the way out.

``meta/info.json`` says which features there are; numbers lie in parquet, images in parquet or in mp4. In the store:

==============================  ==================================================================
``observation.state``           ``data/state``; ``observation.images.top``: ``data/top``; declared as observations
``action``                      ``data/action``
other features                  ``data/`` and the name, with ``_`` for dots
the task's text                 ``meta/task``; ``data/task_index`` too where it changes within an episode
``timestamp``                   where it is not ``frame_index / fps``
frame, episode and global index follow from the order and are made again
==============================  ==================================================================
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dopr_robot.datasets.attributes import Attributes
from dopr_robot.datasets.formats.format import FORMATS, Format, content, inside, one_line, some
from dopr_robot.datasets.formats.lerobot_writer import INDEX, NAME, OWN, parquet, pictures, video, write
from dopr_robot.datasets.recording import Episode, Recording
from dopr_robot.errors import UserError

EXPECTED = "meta/info.json of LeRobot v2.1 or v3, with data/ and, for videos, videos/"
V21 = {
    "data": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    "video": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
}
V3 = {
    "data": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    "video": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}


def recognises(path: Path) -> bool:
    return (path / "meta" / "info.json").is_file()


@dataclass
class _Layout:
    """What ``meta/`` says: features by name, tasks by index, and one row an episode."""

    root: Path
    info: Mapping[str, Any]
    version: str
    tasks: dict[int, str]
    episodes: list[dict[str, Any]]

    @property
    def fps(self) -> float:
        return float(self.info["fps"])

    def path(self, kind: str, episode: int, key: str = "") -> Path:
        """The file of an episode's numbers (``"data"``) or of one of its videos (``"video"``)."""
        row = self.episodes[episode]
        place = f"videos/{key}" if kind == "video" else "data"
        try:
            name = (self.info.get(f"{kind}_path") or (V3 if self.version == "v3" else V21)[kind]).format(
                episode_chunk=episode // int(self.info.get("chunks_size") or 1000),
                episode_index=row["episode_index"],
                video_key=key,
                chunk_index=row.get(f"{place}/chunk_index", 0),
                file_index=row.get(f"{place}/file_index", 0),
            )
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise UserError(f"{self.root}: meta/info.json: {kind}_path cannot be understood ({error!r})") from None
        return inside(self.root, name)


def read(path: Path) -> Recording:
    """Raises UserError for another version, and where files or rows are missing."""
    layout = _layout(path)
    features = {name: each for name, each in layout.info["features"].items() if name not in INDEX}
    names = _names(features)
    own = _own(path)
    regular, one_task = _indices(layout)
    if not regular:
        names["timestamp"] = "timestamp"
    if not one_task:
        names["task_index"] = "task_index"
    carried = {
        "names": names,
        "features": {name: layout.info["features"].get(name, {}) for name in names.values()},
        "robot_type": layout.info.get("robot_type"),
        **({} if one_task else {"tasks": [layout.tasks.get(n, "") for n in range(max(layout.tasks, default=-1) + 1)]}),
    }
    about = Attributes.from_json(own["attributes"]) if own else None
    if about is None:
        robot = layout.info.get("robot_type")
        about = Attributes(
            control_hz=layout.fps,
            observations=tuple(sorted(key for key, name in names.items() if name.startswith("observation"))),
            source="LeRobot data set" + (f", {robot}" if robot else ""),
        )
    about = Attributes.from_json({**about.to_json(), "carried": {**about.carried, NAME: carried}})
    return Recording(about, _episodes(layout, names, own))


def _layout(root: Path) -> _Layout:
    info = _json(root, "meta/info.json")
    version = str(info.get("codebase_version"))
    if not version.startswith(("v2.1", "v3.")):
        raise UserError(f"{root}: found codebase_version {version} in meta/info.json; expected v2.1 or v3.0")
    if not isinstance(info.get("features"), dict) or not isinstance(info.get("fps"), int | float) or info["fps"] <= 0:
        raise UserError(f"{root}: found {some(sorted(info))} in meta/info.json; expected features and fps among them")
    if version.startswith("v3."):
        files = sorted((root / "meta" / "episodes").glob("*/*.parquet"))
        rows: list[dict[str, Any]] = []
        for file in files:
            table = parquet().read_table(file)
            rows += table.select([name for name in table.column_names if not name.startswith("stats/")]).to_pylist()
        found = _table(root, "meta/tasks.parquet") if (root / "meta" / "tasks.parquet").is_file() else []
        tasks = {int(row["task_index"]): str(row.get("task", row.get("__index_level_0__", ""))) for row in found}
    else:
        rows = _lines(root, "meta/episodes.jsonl")
        tasks = {int(row["task_index"]): str(row["task"]) for row in _lines(root, "meta/tasks.jsonl")}
    for row in rows:
        if not {"episode_index", "length"} <= set(row):
            raise UserError(f"{root}: found {some(sorted(row))} in meta/episodes; expected episode_index and length")
    rows.sort(key=lambda row: row["episode_index"])
    if not rows:
        raise UserError(f"{root}: found no episode in meta/episodes; expected {EXPECTED}")
    return _Layout(root, info, version[:2] if version.startswith("v3") else version, tasks, rows)


def _json(root: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads((root / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{root}: found {content(root)}; expected {EXPECTED}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{root}: {name} is no JSON ({error})") from None
    if not isinstance(found, dict):
        raise UserError(f"{root}: {name} is a {type(found).__name__}: an object was expected")
    return found


def _lines(root: Path, name: str) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in (root / name).read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise UserError(f"{root}: {name} is missing") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{root}: {name} is no JSON ({error})") from None


def _own(root: Path) -> dict[str, Any] | None:
    return _json(root, OWN) if (root / OWN).is_file() else None


def _table(root: Path, name: str, columns: list[str] | None = None) -> list[dict[str, Any]]:
    try:
        return parquet().read_table(root / name, columns=columns).to_pylist()
    except (OSError, ValueError) as error:
        raise UserError(f"{root}: {name}: cannot be read as parquet ({one_line(error)})") from error


def _names(features: Mapping[str, Any]) -> dict[str, str]:
    """``{store's key: feature}``."""
    names: dict[str, str] = {}
    for name in sorted(features):
        key = name
        for prefix in ("observation.images.", "observation."):
            key = key.removeprefix(prefix) if key == name else key
        key = key.replace(".", "_")
        names[name.replace(".", "_") if key in names or (key == "action" and name != "action") else key] = name
    return names


def _indices(layout: _Layout) -> tuple[bool, bool]:
    """Whether every timestamp is ``frame_index / fps``, and whether no episode has two tasks."""
    regular = one_task = True
    for file in dict.fromkeys(layout.path("data", episode) for episode in range(len(layout.episodes))):
        table = _read_parquet(layout.root, file, ["timestamp", "frame_index", "episode_index", "task_index"])
        time, frame, episode, task = (_numbers(table, name, file, layout.root) for name in table.column_names)
        regular = regular and bool((time == (frame / layout.fps).astype(np.float32)).all())
        one_task = one_task and all(len(np.unique(task[episode == each])) == 1 for each in np.unique(episode))
    return regular, one_task


def _read_parquet(root: Path, file: Path, columns: list[str] | None = None) -> Any:
    place = f"{root}: {file.relative_to(root)}"
    if not file.is_file():
        raise UserError(f"{place}: is missing")
    try:
        table = parquet().read_table(file, columns=columns)
    except (OSError, ValueError) as error:
        raise UserError(f"{place}: cannot be read as parquet ({one_line(error)})") from error
    missing = sorted(set(columns or ["episode_index"]) - set(table.column_names))
    if missing:
        raise UserError(
            f"{place}: found the columns {some(table.column_names)}; expected {', '.join(missing)} among them"
        )
    return table.select(columns) if columns else table


def _numbers(table: Any, name: str, file: Path, root: Path) -> NDArray[Any]:
    """A column of numbers, lists of them, or texts, flat."""
    import pyarrow as pa

    column = table.column(name)
    array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    while True:
        if isinstance(array, pa.ExtensionArray):
            array = array.storage
        if array.null_count:
            raise UserError(f"{root}: {file.relative_to(root)}: {name}: has empty entries")
        if not (
            pa.types.is_list(array.type)
            or pa.types.is_large_list(array.type)
            or pa.types.is_fixed_size_list(array.type)
        ):
            break
        array = array.flatten()
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        return np.array(array.to_pylist(), object)
    return array.to_numpy(zero_copy_only=False)


def _episodes(layout: _Layout, names: Mapping[str, str], own: Mapping[str, Any] | None) -> Iterator[Episode]:
    features = layout.info["features"]
    videos = {
        key: _Video(layout, name) for key, name in names.items() if features.get(name, {}).get("dtype") == "video"
    }
    scalars = set(own["scalars"]) if own else set()
    opened: Path | None = None
    table: Any = None
    try:
        for index, row in enumerate(layout.episodes):
            number, length = int(row["episode_index"]), int(row["length"])
            file = layout.path("data", index)
            if file != opened:
                opened, table = file, _read_parquet(layout.root, file)
                owners = _numbers(table, "episode_index", file, layout.root)
            rows = np.flatnonzero(owners == number)
            place = f"{layout.root}: {file.relative_to(layout.root)}"
            if len(rows) != length or not length or rows[-1] - rows[0] + 1 != length:
                raise UserError(f"{place}: has {len(rows)} rows and meta/episodes {length} (episode {number})")
            part = table.slice(rows[0], length)
            arrays = {}
            for key, name in names.items():
                if key in videos:
                    arrays[key] = videos[key].read(index, length)
                    continue
                if name not in part.column_names:
                    raise UserError(
                        f"{place}: {name}: is missing (found: {some(part.column_names)}) (episode {number})"
                    )
                if features[name]["dtype"] == "image":
                    arrays[key] = pictures(layout.root, part.column(name).to_pylist(), f"{place}: {name}", number)
                    continue
                flat = _numbers(part, name, file, layout.root)
                shape = () if name in INDEX or key in scalars else tuple(features[name].get("shape") or ())
                if flat.size != length * int(np.prod(shape)):
                    raise UserError(
                        f"{place}: {name}: has {flat.size} numbers for {length} steps of {list(shape)} (episode {number})"
                    )
                arrays[key] = flat.reshape(length, *shape)
            tasks = np.unique(_numbers(part, "task_index", file, layout.root))
            yield _episode(layout, index, arrays, [layout.tasks.get(int(task), "") for task in tasks], own)
    finally:
        for each in videos.values():
            each.close()


def _episode(
    layout: _Layout, index: int, arrays: dict[str, NDArray[Any]], tasks: list[str], own: Mapping[str, Any] | None
) -> Episode:
    meta: dict[str, Any] = {"task": tasks[0]} if len(tasks) == 1 and tasks[0] else {}
    if own:
        from dopr_robot.datasets.formats import hdf5

        kept = own["episodes"][index]
        meta |= {name: hdf5.from_json(value) for name, value in kept["meta"].items()}
        return Episode(arrays, kept["seed"], kept["success"], meta)
    done = arrays.get("next_success")
    return Episode(arrays, success=None if done is None else bool(np.any(done)), meta=meta)


class _Video:
    """The frames of one camera, episode after episode, decoded once from start to end."""

    def __init__(self, layout: _Layout, name: str) -> None:
        about = layout.info["features"][name]
        if (about.get("info") or {}).get("video.is_depth_map") or (about.get("info") or {}).get("is_depth_map"):
            raise UserError(f"{layout.root}: {name} is a video of depth: only colour was expected")
        self.layout, self.name = layout, name
        self.opened: Path | None = None
        self.frames: Iterator[NDArray[np.uint8]] = iter(())
        self.position = 0

    def read(self, index: int, length: int) -> NDArray[np.uint8]:
        """``[length, H, W, 3]`` of an episode."""
        row = self.layout.episodes[index]
        file = self.layout.path("video", index, self.name)
        first = round(float(row.get(f"videos/{self.name}/from_timestamp", 0.0)) * self.layout.fps)
        if file != self.opened or first < self.position:
            self.close()
            self.opened, self.position = file, 0
            self.frames = _decoded(self.layout.root, file, int(row["episode_index"]))
        found = []
        for frame in self.frames:
            self.position += 1
            if self.position > first:
                found.append(frame)
            if len(found) == length:
                return np.stack(found)
        raise UserError(
            f"{self.layout.root}: {file.relative_to(self.layout.root)}: has {self.position} frames and "
            f"{first + length} were expected (episode {row['episode_index']})"
        )

    def close(self) -> None:
        close = getattr(self.frames, "close", None)
        if close is not None:
            close()


def _decoded(root: Path, file: Path, episode: int) -> Iterator[NDArray[np.uint8]]:
    av = video()
    place = f"{root}: {file.relative_to(root)}"
    if not file.is_file():
        raise UserError(f"{place}: is missing (episode {episode})")
    with _reading(place, episode), av.open(str(file)) as container:
        if not container.streams.video:
            raise UserError(f"{place}: has no video in it (episode {episode})")
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


@contextmanager
def _reading(place: str, episode: int) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{place}: cannot be decoded ({one_line(error)}) (episode {episode})") from error


FORMATS.register(NAME, Format("a folder with meta/info.json, parquet and mp4", recognises, read, write))
