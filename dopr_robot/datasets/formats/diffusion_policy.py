"""Diffusion Policy's zarr (v2, a folder or a zip), in and out.

The layout is the store's own: ``data/<key> [steps, ...]`` and ``meta/episode_ends``. In: arrays beside ``episode_ends`` are kept
where they have an entry an episode. Out: the same, for its ``ReplayBuffer``; seeds, success and whatever else belongs to an
episode stand beside ``episode_ends``, and the root's attribute ``demonstrations`` keeps what the store says about itself.
A slash in a key becomes two underscores, since ``ReplayBuffer`` reads one level.
"""

from __future__ import annotations

import shutil
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
import zarr.storage
from numpy.typing import NDArray

from dopr_robot.datasets.attributes import GROUP_KEY, Attributes
from dopr_robot.datasets.episode import UNKNOWN, Episode
from dopr_robot.datasets.formats.format import FORMATS, Format, check_archive, described
from dopr_robot.datasets.recording import Recording, read_store
from dopr_robot.datasets.store import Store
from dopr_robot.errors import DamagedError, UserError

NAME = "diffusion_policy"
CHUNK_BYTES = 2 * 1024 * 1024


def recognises(path: Path) -> bool:
    try:
        Store.open(path, whole_part=True)
    except (UserError, DamagedError):
        return False
    return True


def read(path: Path) -> Recording:
    check_archive(path)
    store = Store.open(path)
    recording = read_store(store)
    about = store.attributes
    names: dict[str, str] = (about.carried.get(NAME) or {}).get("names", {})
    if about == Attributes():
        about = replace(about, source="Diffusion Policy data set")
    return Recording(about, _renamed(recording, names) if names else recording.episodes)


def _renamed(recording: Recording, names: dict[str, str]) -> Iterator[Episode]:
    for episode in recording.episodes:
        episode.arrays = {names.get(key, key): value for key, value in episode.arrays.items()}
        episode.meta = {names.get(key, key): value for key, value in episode.meta.items()}
        yield episode


def write(recording: Recording, out: Path) -> None:
    """A folder, or a zip where ``out`` ends in .zip."""
    # Members of a zip cannot be replaced: it is packed from a folder at the end.
    zipped = out.suffix == ".zip"
    folder = out.with_name(f"{out.name}.unpacked") if zipped else out
    try:
        _write_folder(recording, folder)
        if zipped:
            with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:  # its chunks are compressed already
                for file in sorted(folder.rglob("*")):
                    if file.is_file():
                        archive.write(file, file.relative_to(folder))
    finally:
        if zipped:
            shutil.rmtree(folder, ignore_errors=True)


def _write_folder(recording: Recording, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        group = zarr.create_group(zarr.storage.LocalStore(folder), zarr_format=2)
        data, meta = group.create_group("data"), group.create_group("meta")
        names: dict[str, str] = {}
        buffers: dict[str, _Rows] = {}
        ends: list[int] = []
        entries: dict[str, list[Any]] = {"seed": [], "success": []}
        for index, episode in enumerate(recording.episodes):
            for key, value in episode.arrays.items():
                name = _flat(key, names)
                if name not in buffers:
                    buffers[name] = _Rows(data, name, value)
                buffers[name].add(value)
            ends.append((ends[-1] if ends else 0) + len(next(iter(episode.arrays.values()))))
            entries["seed"].append(UNKNOWN if episode.seed is None else episode.seed)
            entries["success"].append(np.int8(UNKNOWN if episode.success is None else episode.success))
            for key, value in episode.meta.items():
                name = _flat(key, names)
                entries.setdefault(name, [np.zeros_like(value) if not isinstance(value, str) else ""] * index).append(
                    value
                )
            for values in entries.values():
                if len(values) <= index:
                    values.append("" if isinstance(values[0], str) else np.zeros_like(values[0]))
        for rows in buffers.values():
            rows.flush()
        meta.create_array("episode_ends", data=np.array(ends, np.int64))
        for name, values in entries.items():
            array = np.array(values)
            if array.dtype.kind in "UTO":
                texts = meta.create_array(name, shape=array.shape, dtype=str, chunks=array.shape)
                texts[:] = array.astype(object)
            elif not (name in ("seed", "success") and (array == UNKNOWN).all()):
                meta.create_array(name, data=array)
        about = recording.attributes
        carried = {**about.carried, NAME: {"names": {name: key for key, name in names.items() if name != key}}}
        group.attrs[GROUP_KEY] = described(replace(about, carried=carried), "")


def _flat(key: str, names: dict[str, str]) -> str:
    names.setdefault(key, key.replace("/", "__"))
    return names[key]


class _Rows:
    """An array that grows a whole chunk at a time, so that none is written twice."""

    def __init__(self, group: zarr.Group, name: str, first: NDArray[Any]) -> None:
        text = first.dtype.kind == "O"
        row = max(1, first[0].nbytes if not text else 64)
        self.chunk = max(1, CHUNK_BYTES // row)
        self.array = group.create_array(
            name,
            shape=(0, *first.shape[1:]),
            dtype=str if text else first.dtype,
            chunks=(self.chunk, *(max(1, n) for n in first.shape[1:])),
        )
        self.waiting: list[NDArray[Any]] = []
        self.count = 0

    def add(self, rows: NDArray[Any]) -> None:
        self.waiting.append(rows)
        self.count += len(rows)
        if self.count >= self.chunk:
            self.flush(self.count - self.count % self.chunk)

    def flush(self, count: int | None = None) -> None:
        if not self.waiting:
            return
        rows = np.concatenate(self.waiting)
        now, later = rows[:count], rows[len(rows) if count is None else count :]
        start = self.array.shape[0]
        self.array.resize((start + len(now), *self.array.shape[1:]))
        self.array[start:] = now
        self.waiting, self.count = [later], len(later)


FORMATS.register(NAME, Format("zarr with data/<key> and meta/episode_ends", recognises, read, write))
