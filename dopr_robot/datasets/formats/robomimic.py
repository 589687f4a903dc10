"""robomimic's HDF5 (robomimic.github.io/docs/datasets/overview.html), in and out.

``data/demo_<n>`` holds ``actions``, ``obs/<key>`` and, mostly, ``rewards``, ``dones``, ``states``, ``next_obs/<key>``; the attribute
``env_args`` of ``data`` describes the environment; ``mask/<name>`` lists demonstrations. In the store:

===================  ===========================================================================
``obs/<key>``        ``data/<key>``, declared as an observation
``actions``          ``data/action``
``next_obs/<key>``,  ``data/`` and the same name
``rewards``, ...
``mask/<name>``      ``meta/mask/<name>``, a bool an episode, which filtering and merging keep right
attributes of demos  ``meta/<name>``; their names are ``meta/name``
all else             the attribute ``carried``
===================  ===========================================================================
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dopr_robot.datasets.attributes import ActionAttributes, Attributes
from dopr_robot.datasets.formats import hdf5
from dopr_robot.datasets.formats.format import FORMATS, Format, described, natural
from dopr_robot.datasets.recording import Episode, Recording
from dopr_robot.errors import UserError

NAME = "robomimic"
STEPS = ("actions", "rewards", "dones", "states")
EXPECTED = "data/demo_<n> with actions and obs/<key>"
ROBOSUITE = 1
"""robomimic's number for robosuite in ``env_args["type"]``."""


def recognises(path: Path) -> bool:
    if not any(name.startswith("data/demo") for name in hdf5.names(path)):
        return False
    with hdf5.open_hdf5(path) as file:
        demo = file[f"data/{min(file['data'], key=natural)}"]
        return isinstance(demo, h5py.Group) and "actions" in demo and "obs" in demo


def read(path: Path) -> Recording:
    """Demonstrations in the order of their numbers."""
    with hdf5.open_hdf5(path) as file:
        data = hdf5.group(file, "data", EXPECTED)
        demos = sorted(data, key=natural)
        if not demos:
            raise UserError(f"{path}: found no demonstration in data; expected {EXPECTED}")
        keys, odd = _keys(path, data, demos)
        masks = _masks(path, file, demos)
        sparse = OWN not in data.attrs and _sparse(data)
        carried = {
            "keys": keys,
            "masks": sorted(masks),
            "file": hdf5.attributes(file),
            "data": {name: value for name, value in hdf5.attributes(data).items() if name not in ("total", OWN)},
            "rest": hdf5.rest(file, {"data", "mask"}),
            "sparse": sparse,
        }
        own = json.loads(data.attrs[OWN]) if OWN in data.attrs else None
        about = Attributes.from_json(own) if own else _described(data, keys)
    attributes = Attributes.from_json({**about.to_json(), "carried": {**about.carried, NAME: carried}})
    return Recording(attributes, _episodes(path, demos, keys, odd, masks, sparse))


OWN = "demonstrations"
"""The attribute in which an export keeps what the store says about itself."""


def _keys(path: Path, data: h5py.Group, demos: list[str]) -> tuple[dict[str, str], list[str]]:
    """``{store's key: data set}`` for what has a row a step, and the data sets that have not."""
    rows: dict[str, bool] = {}
    for demo in demos:
        group = hdf5.group(data, demo, EXPECTED)
        found = hdf5.datasets(group)
        if "actions" not in found or not any(name.startswith("obs/") for name in found):
            raise UserError(
                f"{path}: found {', '.join(sorted(found)) or 'nothing'} in data/{demo}; expected {EXPECTED}"
            )
        steps = hdf5.length(found["actions"])
        for name, dataset in found.items():
            fits = hdf5.length(dataset) == steps
            if not fits and (name in STEPS or name.startswith(("obs/", "next_obs/"))):
                raise UserError(
                    f"{path}: {name}: has {hdf5.length(dataset)} steps and actions {steps} (episode {demo})"
                )
            rows[name] = rows.get(name, True) and fits
    keys: dict[str, str] = {}
    for name in sorted(
        (name for name, per_step in rows.items() if per_step), key=lambda name: not name.startswith("obs/")
    ):
        key = "action" if name == "actions" else name.removeprefix("obs/")
        keys[name if key in keys or (key == "action" and name != "actions") else key] = name
    return keys, sorted(name for name, per_step in rows.items() if not per_step)


def _masks(path: Path, file: h5py.File, demos: list[str]) -> dict[str, set[str]]:
    if "mask" not in file:
        return {}
    masks = {}
    for name, dataset in hdf5.datasets(hdf5.group(file, "mask", "lists of demonstrations")).items():
        members = [
            entry.decode() if isinstance(entry, bytes) else str(entry) for entry in hdf5.read(dataset, name, None)
        ]
        strangers = sorted(set(members) - set(demos))
        if strangers:
            raise UserError(f"{path}: mask/{name}: lists {strangers[0]!r}, which is not in data")
        masks[name] = set(members)
    return masks


def _environment(data: h5py.Group) -> Mapping[str, Any]:
    try:
        found = json.loads(data.attrs.get("env_args", "{}"))
    except (TypeError, json.JSONDecodeError) as error:
        raise UserError(f"{data.file.filename}: attribute env_args of data is no JSON ({error})") from None
    return found if isinstance(found, Mapping) else {}


def _sparse(data: h5py.Group) -> bool:
    """Whether a reward of 1 means success: robosuite's without shaping."""
    about = _environment(data)
    return about.get("type") == ROBOSUITE and not about.get("env_kwargs", {}).get("reward_shaping", True)


def _described(data: h5py.Group, keys: Mapping[str, str]) -> Attributes:
    about = _environment(data)
    options = about.get("env_kwargs") or {}
    rate = options.get("control_freq")
    return Attributes(
        control_hz=rate if isinstance(rate, int | float) and rate > 0 else None,
        observations=tuple(sorted(key for key, name in keys.items() if name.startswith("obs/"))),
        action=controller_action(options.get("controller_configs")),
        simulator="robosuite" if about.get("type") == ROBOSUITE else "",
        simulator_version=str(about.get("env_version") or ""),
        source=f"robomimic data set of {about['env_name']}" if about.get("env_name") else "robomimic data set",
    )


def controller_action(configs: Any) -> ActionAttributes:
    """What an action means to robosuite's controller, where its configuration says so (1.4's and 1.5's)."""
    if isinstance(configs, list) and configs:
        configs = configs[0]
    if not isinstance(configs, Mapping):
        return ActionAttributes()
    if "body_parts" in configs:
        configs = next((part for part in configs["body_parts"].values() if isinstance(part, Mapping)), {})
    kind = str(configs.get("type", ""))
    meanings = {"OSC": "end-effector pose", "IK": "end-effector pose", "JOINT_POSITION": "joint position"}
    meaning = next((text for start, text in meanings.items() if kind.startswith(start)), kind.replace("_", " ").lower())
    if "control_delta" in configs:
        return ActionAttributes(meaning=meaning, absolute=not configs["control_delta"])
    if "input_type" in configs:
        return ActionAttributes(meaning=meaning, absolute=configs["input_type"] == "absolute")
    return ActionAttributes(meaning=meaning)


def _episodes(
    path: Path, demos: list[str], keys: Mapping[str, str], odd: list[str], masks: Mapping[str, set[str]], sparse: bool
) -> Iterator[Episode]:
    with hdf5.open_hdf5(path) as file:
        for demo in demos:
            group = file[f"data/{demo}"]
            missing = [name for name in keys.values() if name not in group]
            if missing:
                raise UserError(f"{path}: {missing[0]}: is missing (episode {demo})")
            arrays = {key: hdf5.read(group[name], name, demo) for key, name in keys.items()}
            meta: dict[str, Any] = {
                "name": demo,
                **{f"mask/{name}": demo in members for name, members in masks.items()},
            }
            about = dict(group.attrs)
            seed, success = about.pop("seed", None), about.pop("success", None)
            for name, value in about.items():
                if name == "num_samples":
                    continue
                if name.startswith(f"{OWN}/"):
                    meta[name.removeprefix(f"{OWN}/")] = hdf5.from_json(json.loads(value))
                elif isinstance(value, str | np.generic):
                    meta[f"attribute/{name}"] = value
                else:
                    meta[f"attribute_json/{name}"] = json.dumps(hdf5.to_json(value))
            for name in odd:
                if name in group:
                    meta[f"dataset/{name}"] = json.dumps(hdf5.to_json(hdf5.read(group[name], name, demo)))
            if success is None and sparse and "rewards" in arrays:
                success = arrays["rewards"].max() >= 1
            yield Episode(arrays, None if seed is None else int(seed), None if success is None else bool(success), meta)


def write(recording: Recording, out: Path) -> None:
    """A file that robomimic opens.

    A recording that did not come from robomimic gets ``dones`` (1 at the last step) and ``rewards`` (1 there where the
    episode succeeded), as robomimic's own conversion makes them, and an ``env_args`` that names the task.
    """
    about = recording.attributes
    carried = about.carried.get(NAME) or {}
    keys: Mapping[str, str] = carried.get("keys", {})
    masks: dict[str, list[str]] = {name: [] for name in carried.get("masks", [])}
    used: Counter[str] = Counter()
    steps = 0
    with h5py.File(out, "w") as file:
        data = file.create_group("data")
        for index, episode in enumerate(recording.episodes):
            name = str(episode.meta.get("name", ""))
            if not name.startswith("demo_") or not name[5:].isdigit() or used[name]:
                name = next(f"demo_{n}" for n in range(index, index + len(used) + 1) if not used[f"demo_{n}"])
            used[name] += 1
            steps += _write_demo(
                data.create_group(name), about, episode, keys, "file" not in carried, carried.get("sparse", False)
            )
            for entry, value in episode.meta.items():
                if entry.startswith("mask/") and value:
                    masks.setdefault(entry.removeprefix("mask/"), []).append(name)
        hdf5.write_attributes(file, carried.get("file", {}))
        data.attrs["total"] = steps
        data.attrs["env_args"] = json.dumps({"env_name": about.task or "", "type": 2, "env_kwargs": {}})
        hdf5.write_attributes(data, carried.get("data", {}))
        data.attrs[OWN] = json.dumps(described(about, NAME))
        for name, members in masks.items():
            file[f"mask/{name}"] = np.array(members, "S")
        for name, value in carried.get("rest", {}).items():
            file[name] = hdf5.from_json(value)


def _write_demo(
    group: h5py.Group, about: Attributes, episode: Episode, keys: Mapping[str, str], derived: bool, rewards_tell: bool
) -> int:
    arrays = dict(episode.arrays)
    if "action" not in arrays:
        raise UserError(
            f"robomimic needs an action and there is none (keys: {', '.join(arrays)}): dopr edit --rename KEY=action"
        )
    steps = len(arrays["action"])
    observations = about.observations or [key for key in arrays if key != "action"]
    for key, value in arrays.items():
        name = keys.get(key) or ("actions" if key == "action" else f"obs/{key}" if key in observations else key)
        hdf5.write_dataset(group, name, value)
    if derived:
        last = np.arange(steps) == steps - 1
        if "dones" not in group:
            group["dones"] = last.astype(np.int64)
        if "rewards" not in group:
            group["rewards"] = (last & bool(episode.success)).astype(np.float64)
    group.attrs["num_samples"] = steps
    if episode.seed is not None:
        group.attrs["seed"] = episode.seed
    if episode.success is not None and not rewards_tell:
        group.attrs["success"] = episode.success
    for name, value in episode.meta.items():
        kind, _, rest = name.partition("/")
        if kind == "attribute" and not (isinstance(value, str) and not value):
            group.attrs[rest] = value
        elif kind == "attribute_json" and value:
            group.attrs[rest] = hdf5.from_json(json.loads(value))
        elif kind == "dataset" and value:
            group[rest] = hdf5.from_json(json.loads(value))
        elif kind not in ("mask", "attribute", "attribute_json", "dataset") and str(value) != group.name.split("/")[-1]:
            group.attrs[f"{OWN}/{name}"] = json.dumps(hdf5.to_json(value))
    return steps


FORMATS.register(NAME, Format("HDF5 with data/demo_<n>/obs and actions", recognises, read, write))
