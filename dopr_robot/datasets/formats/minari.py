"""Minari's HDF5 (minari.farama.org/content/dataset_standards), in.

A data set's folder (or its ``data``, or ``main_data.hdf5`` itself) with ``episode_<n>`` groups: ``actions [T, ...]``,
``observations [T + 1, ...]`` (an array, or a group for a Dict space), ``rewards``, ``terminations``, ``truncations`` and
``infos``. The entry after the last action belongs to no step: it is kept as ``meta/final/<key>``. ``metadata.json`` is
kept in the attribute ``carried``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dopr_robot.datasets.attributes import Attributes
from dopr_robot.datasets.episode import Episode
from dopr_robot.datasets.formats import hdf5
from dopr_robot.datasets.formats.adroit import START
from dopr_robot.datasets.formats.format import FORMATS, Format, content, natural
from dopr_robot.datasets.recording import Recording
from dopr_robot.errors import UserError

NAME = "minari"
INITIAL = "options/initial_state_dict/"
"""Attributes of an episode: what ``reset`` was given as its initial state, as the sets of the Adroit hand were."""
EXPECTED = "episode_<n> with actions and observations in data/main_data.hdf5"


def recognises(path: Path) -> bool:
    file = _file(path)
    if file is None:
        return _other_form(path) is not None
    return any(name.startswith("episode_") for name in hdf5.names(file))


def read(path: Path) -> Recording:
    file_path = _file(path)
    if file_path is None:
        form = _other_form(path)
        if form:
            raise UserError(
                f"{path}: is Minari's {form} form, and its HDF5 form is read: create it again with data_format='hdf5' "
                "(minari.load_dataset, then minari.create_dataset_from_buffers)"
            )
        raise UserError(f"{path}: found {content(path)}; expected {EXPECTED}")
    about = _metadata(file_path)
    with hdf5.open_hdf5(file_path) as file:
        names = sorted((name for name in file if name.startswith("episode_")), key=natural)
        if not names:
            raise UserError(f"{file_path}: found {content(file_path)}; expected {EXPECTED}")
        first = hdf5.datasets(hdf5.group(file, names[0], EXPECTED))
        observations = [_key(name) for name in first if name.split("/")[0] == "observations"]
        carried = {"metadata": about, "file": hdf5.attributes(file)}
    attributes = Attributes(
        task=_environment(about),
        observations=tuple(observations),
        source=str(about.get("dataset_id") or "Minari data set"),
        carried={NAME: carried},
    )
    return Recording(attributes, _episodes(file_path, names))


def _file(path: Path) -> Path | None:
    """``main_data.hdf5`` of a data set that is named by its folder, its data folder or itself."""
    candidates = (path, path / "main_data.hdf5", path / "data" / "main_data.hdf5")
    return next((each for each in candidates if hdf5.is_hdf5(each)), None)


def _other_form(path: Path) -> str | None:
    """``arrow`` or ``parquet``, where a data set's metadata say so."""
    try:
        forms = [_metadata(folder / "main_data.hdf5").get("data_format") for folder in (path, path / "data")]
    except UserError:
        return None
    return next((form for form in forms if form in ("arrow", "parquet")), None)


def _metadata(file: Path) -> dict[str, Any]:
    where = file.parent / "metadata.json"
    if not where.is_file():
        return {}
    try:
        found = json.loads(where.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: is no JSON ({error})") from None
    return found if isinstance(found, dict) else {}


def _environment(about: Mapping[str, Any]) -> str | None:
    """The Gymnasium id of the environment that was recorded."""
    spec = about.get("env_spec")
    if isinstance(spec, str):
        try:
            spec = json.loads(spec)
        except json.JSONDecodeError:
            return None
    return str(spec["id"]) if isinstance(spec, Mapping) and spec.get("id") else None


def _key(name: str) -> str:
    head, _, tail = name.partition("/")
    if head == "observations":
        return tail or "observation"
    return "action" if name == "actions" else name


def _episodes(path: Path, names: list[str]) -> Iterator[Episode]:
    with hdf5.open_hdf5(path) as file:
        for name in names:
            found = hdf5.datasets(hdf5.group(file, name, EXPECTED))
            if "actions" not in found:
                kind = (
                    "a group (a Dict or Tuple space)" if any(key.startswith("actions/") for key in found) else "missing"
                )
                raise UserError(f"{path}: actions: is {kind}: one array is expected (episode {name})")
            steps = hdf5.length(found["actions"])
            if not steps:
                raise UserError(f"{path}: actions: has no step (episode {name})")
            meta: dict[str, Any] = {"name": name}
            arrays = {}
            for place, dataset in found.items():
                value, key = hdf5.read(dataset, place, name), _key(place)
                if hdf5.length(dataset) not in (steps, steps + 1):
                    raise UserError(
                        f"{path}: {place}: has {hdf5.length(dataset)} steps and actions {steps} (episode {name})"
                    )
                arrays[key] = value[:steps]
                if len(value) > steps:
                    meta[f"final/{key}"] = (
                        value[steps] if value.ndim > 1 or value.dtype.kind != "O" else str(value[steps])
                    )
            seed = file[name].attrs.get("seed")
            for entry, value in file[name].attrs.items():
                if entry.startswith(INITIAL) and isinstance(value, np.ndarray | np.generic):
                    meta[f"{START}/{entry.removeprefix(INITIAL)}"] = value
                elif entry not in ("seed", "total_steps"):
                    meta[f"attribute/{entry}"] = (
                        value if isinstance(value, str | np.generic) else json.dumps(hdf5.to_json(value))
                    )
            success = _ever(found.get("infos/success", found.get("infos/is_success")), name)
            known = isinstance(seed, int | np.integer) and seed >= 0
            yield Episode(arrays, int(seed) if known else None, success, meta)


def _ever(flags: h5py.Dataset | None, episode: str) -> bool | None:
    """Whether the infos of an episode ever say so: a task is attained once it is; None where they say nothing."""
    if flags is None or flags.ndim != 1 or flags.dtype.kind not in "biuf":
        return None
    return bool((hdf5.read(flags, flags.name, episode) > 0).any())


FORMATS.register(NAME, Format("HDF5 with episode_<n>/actions and observations", recognises, read))
