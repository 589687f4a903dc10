"""LeRobot's data set v3, out: parquet and mp4, nothing of the numbers or the pixels lost.

Images are written as H.264 of RGB without loss, which every reader built on ffmpeg decodes. What LeRobot has no place for
(seeds, what the store says about itself) is in ``meta/demonstrations.json``, which LeRobot does not look at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dopr_robot.datasets.attributes import Attributes
from dopr_robot.datasets.episode import Episode
from dopr_robot.datasets.formats import hdf5
from dopr_robot.datasets.formats.format import described
from dopr_robot.datasets.formats.lerobot_files import INDEX, NAME, OWN, parquet
from dopr_robot.datasets.formats.lerobot_pictures import av
from dopr_robot.datasets.recording import Recording
from dopr_robot.errors import UserError

CHUNK = 1000
"""Files in a folder."""
DATA_BYTES, VIDEO_BYTES = 100 * 2**20, 200 * 2**20
"""Size above which the next file is begun; LeRobot's own."""


def write(recording: Recording, out: Path) -> None:
    """Raises UserError where the control rate is unknown or a key cannot be a feature."""
    about = recording.attributes
    if about.control_hz is None:
        raise UserError("LeRobot needs frames a second and the control rate is unknown: --hz HZ")
    _Writer(about, out).write(recording)


class _Writer:
    def __init__(self, about: Attributes, out: Path) -> None:
        self.about, self.out = about, out
        assert about.control_hz is not None
        self.fps: int | float = int(about.control_hz) if float(about.control_hz).is_integer() else about.control_hz
        self.carried: Mapping[str, Any] = about.carried.get(NAME) or {}
        self.tasks: list[str] = list(self.carried.get("tasks") or [])
        self.names: dict[str, str] = {}
        self.features: dict[str, dict[str, Any]] = {}
        self.scalars: list[str] = []
        self.rows: list[dict[str, Any]] = []
        self.kept: list[dict[str, Any]] = []
        self.totals: dict[str, _Moments] = {}
        self.steps = 0

    def write(self, recording: Recording) -> None:
        (self.out / "meta").mkdir(parents=True)
        data = _DataFiles(self.out)
        videos: dict[str, _VideoFiles] = {}
        try:
            for index, episode in enumerate(recording.episodes):
                if not index:
                    self._describe(episode.arrays)
                    videos = {
                        key: _VideoFiles(self.out, name, Fraction(self.fps).limit_denominator(10_000))
                        for key, name in self.names.items()
                        if self.features[name]["dtype"] == "video"
                    }
                self._episode(index, episode, data, videos)
        finally:
            data.close()
            for each in videos.values():
                each.close()
        if self.rows:
            self._meta()

    def _describe(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        known: Mapping[str, str] = self.carried.get("names", {})
        observations = set(self.about.observations) or set(arrays) - {"action"}
        for key, value in arrays.items():
            image = value.dtype == np.uint8 and value.ndim == 4 and value.shape[-1] == 3
            name = key.replace("/", ".")
            if key in observations:
                name = f"observation.images.{name}" if image else f"observation.{name}"
            name = known.get(key, name)
            self.names[key] = name
            if name in INDEX:
                continue
            was = self.carried.get("features", {}).get(name, {})
            shape = list(value.shape[1:])
            if not shape:
                self.scalars.append(key)
                shape = [1]
            dtype = "string" if value.dtype.kind in "OUT" else str(value.dtype)
            feature: dict[str, Any] = {"dtype": "video" if image else dtype, "shape": shape, "names": was.get("names")}
            if image:
                feature["names"] = ["height", "width", "channels"]
                feature["info"] = {
                    "video.height": shape[0],
                    "video.width": shape[1],
                    "video.codec": "h264",
                    "video.pix_fmt": "gbrp",
                    "video.is_depth_map": False,
                    "video.fps": self.fps,
                    "video.channels": 3,
                    "has_audio": False,
                }
            elif key == "action" and feature["names"] is None and self.about.action.names:
                feature["names"] = list(self.about.action.names)
            self.features[name] = feature
        for name in INDEX:
            kind = "float32" if name == "timestamp" else "int64"
            self.features[name] = {"dtype": kind, "shape": [1], "names": None}

    def _episode(self, index: int, episode: Episode, data: _DataFiles, videos: Mapping[str, _VideoFiles]) -> None:
        length = len(next(iter(episode.arrays.values())))
        task = str(episode.meta.get("task", "")) or self.about.task or ""
        if task not in self.tasks and "task_index" not in episode.arrays:
            self.tasks.append(task)
        frame = np.arange(length)
        task_index = episode.arrays.get("task_index")
        if task_index is None:
            task_index = np.full(length, self.tasks.index(task), np.int64)
        columns: dict[str, NDArray[Any]] = {
            "timestamp": episode.arrays.get("timestamp", (frame / self.fps).astype(np.float32)),
            "frame_index": frame,
            "episode_index": np.full(length, index),
            "index": self.steps + frame,
            "task_index": task_index,
        }
        row: dict[str, Any] = {
            "episode_index": index,
            "tasks": [self.tasks[n] for n in np.unique(task_index)],
            "length": length,
            "dataset_from_index": self.steps,
            "dataset_to_index": self.steps + length,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
        }
        for key, value in episode.arrays.items():
            if key in videos:
                row |= videos[key].add(value)
            elif self.names[key] not in INDEX:
                columns[self.names[key]] = value
        row |= data.add({name: columns[name] for name in (*self.features,) if name in columns}, self.features)
        for key, value in episode.arrays.items():
            if value.dtype.kind in "fiub" and self.names[key] not in INDEX:
                found = _Moments.of(value, key in videos)
                row |= {f"stats/{self.names[key]}/{which}": entry for which, entry in found.as_lists().items()}
                self.totals[self.names[key]] = found.merged(self.totals.get(self.names[key]))
        self.rows.append(row)
        others = {name: hdf5.to_json(value) for name, value in episode.meta.items() if name != "task"}
        self.kept.append({"seed": episode.seed, "success": episode.success, "meta": others})
        self.steps += length

    def _meta(self) -> None:
        import pyarrow as pa

        episodes = self.out / "meta" / "episodes" / "chunk-000"
        episodes.mkdir(parents=True)
        parquet().write_table(pa.Table.from_pylist(self.rows), episodes / "file-000.parquet")
        # LeRobot reads it with pandas and takes the texts for the index.
        tasks = pa.table({"task_index": pa.array(range(len(self.tasks)), pa.int64()), "task": self.tasks})
        index: dict[str, Any] = {
            "index_columns": ["task"],
            "column_indexes": [],
            "columns": [],
            "pandas_version": "2.0.0",
        }
        columns = [("task_index", "int64", "int64"), ("task", "unicode", "object")]
        index["columns"] = [
            {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
            for name, kind, numpy in columns
        ]
        parquet().write_table(
            tasks.replace_schema_metadata({"pandas": json.dumps(index)}), self.out / "meta" / "tasks.parquet"
        )
        _dump(self.out / "meta" / "stats.json", {name: found.as_lists() for name, found in self.totals.items()})
        has_video = any(feature["dtype"] == "video" for feature in self.features.values())
        info = {
            "codebase_version": "v3.0",
            "robot_type": self.carried.get("robot_type"),
            "total_episodes": len(self.rows),
            "total_frames": self.steps,
            "total_tasks": len(self.tasks),
            "chunks_size": CHUNK,
            "data_files_size_in_mb": DATA_BYTES // 2**20,
            "video_files_size_in_mb": VIDEO_BYTES // 2**20,
            "fps": self.fps,
            "splits": {"train": f"0:{len(self.rows)}"},
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4" if has_video else None,
            "features": self.features,
        }
        _dump(self.out / "meta" / "info.json", info)
        own = {"attributes": described(self.about, NAME), "scalars": self.scalars, "episodes": self.kept}
        _dump(self.out / OWN, own)


class _DataFiles:
    """Parquet, a row group an episode, in files of a bounded size."""

    def __init__(self, out: Path) -> None:
        self.out, self.number = out, -1
        self.writer: Any = None
        self.size = 0

    def add(self, columns: Mapping[str, NDArray[Any]], features: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
        import pyarrow as pa

        table = pa.table({name: _column(value) for name, value in columns.items()})
        if self.writer is None or self.size > DATA_BYTES:
            self.close()
            self.number, self.size = self.number + 1, 0
            path = self.out / "data" / f"chunk-{self.number // CHUNK:03d}" / f"file-{self.number % CHUNK:03d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            self.writer = parquet().ParquetWriter(path, table.schema)
        self.writer.write_table(table, row_group_size=max(1, len(table)))
        self.size += table.nbytes
        return {"data/chunk_index": self.number // CHUNK, "data/file_index": self.number % CHUNK}

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def _column(value: NDArray[Any]) -> Any:
    """A column: numbers, or lists of a fixed size of them, ``[T, a, b]`` a list of lists."""
    import pyarrow as pa

    if value.dtype.kind in "OUT":
        return pa.array([str(entry) for entry in value.ravel()])
    shape = value.shape[1:]
    column = pa.array(np.ascontiguousarray(value).ravel())
    if shape in ((), (1,)):
        return column
    for size in reversed(shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, size).cast(pa.list_(column.type))
    return pa.FixedSizeListArray.from_arrays(column, shape[0]) if len(shape) == 1 else _lists(column, shape[0])


def _lists(column: Any, size: int) -> Any:
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(column, size).cast(pa.list_(column.type))


class _VideoFiles:
    """H.264 without loss, many episodes a file."""

    def __init__(self, out: Path, name: str, fps: Fraction) -> None:
        self.out, self.name, self.fps = out, name, fps
        self.number, self.frames = -1, 0
        self.container: Any = None
        self.stream: Any = None
        self.path = out

    def add(self, images: NDArray[np.uint8]) -> dict[str, Any]:
        if self.container is None or self.path.stat().st_size > VIDEO_BYTES:
            self.close()
            self.number, self.frames = self.number + 1, 0
            name = f"chunk-{self.number // CHUNK:03d}/file-{self.number % CHUNK:03d}.mp4"
            self.path = self.out / "videos" / self.name / name
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.container = av().open(str(self.path), "w")
            # A key frame every other frame: training reads frames in any order.
            options = {"crf": "0", "preset": "veryfast", "g": "2", "bf": "0"}
            self.stream = self.container.add_stream("libx264rgb", rate=self.fps, options=options)
            self.stream.height, self.stream.width, self.stream.pix_fmt = *images.shape[1:3], "rgb24"
        first = self.frames
        for image in images:
            frame = av().VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = self.frames, 1 / self.fps
            self.container.mux(self.stream.encode(frame))
            self.frames += 1
        place = f"videos/{self.name}"
        return {
            f"{place}/chunk_index": self.number // CHUNK,
            f"{place}/file_index": self.number % CHUNK,
            f"{place}/from_timestamp": float(first / self.fps),
            f"{place}/to_timestamp": float(self.frames / self.fps),
        }

    def close(self) -> None:
        if self.container is not None:
            self.container.mux(self.stream.encode(None))
            self.container.close()
            self.container = None


class _Moments:
    """Count, extremes, mean and deviation of a feature; of an image by channel, in [0, 1], as LeRobot has them."""

    def __init__(self, low: NDArray, high: NDArray, mean: NDArray, squares: NDArray, weight: int, count: int) -> None:
        self.low, self.high, self.mean, self.squares, self.weight, self.count = low, high, mean, squares, weight, count

    @classmethod
    def of(cls, value: NDArray[Any], image: bool) -> _Moments:
        count = len(value)
        if image:
            value = np.moveaxis(value, -1, 1).astype(np.float64) / 255
            axes: Any = (0, 2, 3)
        else:
            value, axes = value.astype(np.float64).reshape(count, *(value.shape[1:] or (1,))), 0
        low, high, mean = (each(value, axis=axes, keepdims=True)[0] for each in (np.min, np.max, np.mean))
        squares = ((value - mean) ** 2).sum(axes, keepdims=True)[0]
        return cls(low, high, mean, squares, value.size // max(1, low.size), count)

    def merged(self, other: _Moments | None) -> _Moments:
        if other is None:
            return self
        weight = self.weight + other.weight
        delta = self.mean - other.mean
        squares = self.squares + other.squares + delta**2 * (self.weight * other.weight / weight)
        mean = other.mean + delta * (self.weight / weight)
        low, high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        return _Moments(low, high, mean, squares, weight, self.count + other.count)

    def as_lists(self) -> dict[str, Any]:
        deviation = np.sqrt(self.squares / max(1, self.weight))
        found = {"min": self.low, "max": self.high, "mean": self.mean, "std": deviation}
        return {**{name: value.tolist() for name, value in found.items()}, "count": [self.count]}


def _dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
