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

An episode of robosuite without a shaped reward succeeded where its reward reached ``reward_scale``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dopr_robot.datasets.attributes import ActionAttributes, Attributes
from dopr_robot.datasets.episode import Episode
from dopr_robot.datasets.formats import hdf5
from dopr_robot.datasets.formats.format import FORMATS, Format, described, natural
from dopr_robot.datasets.recording import Recording
from dopr_robot.errors import UserError

NAME = "robomimic"
STEPS = ("actions", "rewards", "dones", "states")
BESIDE = ("action", "rewards", "dones", "states")
"""The store's keys of :data:`STEPS`."""
EXPECTED = "data/demo_<n> with actions and obs/<key>"
ROBOSUITE_NAME = "robosuite"
ROBOSUITE = 1
"""robomimic's number for robosuite in ``env_args["type"]``."""


def recognises(path: Path) -> bool:
    return {"actions", "obs"} <= hdf5.first_demonstration(path)


def read(path: Path) -> Recording:
    """Demonstrations in the order of their numbers."""
    with hdf5.open_hdf5(path) as file:
        data = hdf5.group(file, "data", EXPECTED)
        demos = sorted(data, key=natural)
        if not demos:
            raise UserError(f"{path}: found no demonstration in data; expected {EXPECTED}")
        keys, odd = _keys(path, data, demos)
        masks = _masks(path, file, demos)
        made_in = environment(data)
        full = made_in.full_reward
        carried = {
            "keys": keys,
            "masks": sorted(masks),
            "file": hdf5.attributes(file),
            "data": {name: value for name, value in hdf5.attributes(data).items() if name not in ("total", OWN)},
            "rest": hdf5.rest(file, {"data", "mask"}),
            "sparse": full or False,
        }
        own = hdf5.json_attribute(data, OWN)
        about = Attributes.from_json(own) if own else _described(made_in, keys)
    attributes = Attributes.from_json({**about.to_json(), "carried": {**about.carried, NAME: carried}})
    return Recording(attributes, _episodes(path, demos, keys, odd, masks, full), named=made_in.task)


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
        if not steps:
            raise UserError(f"{path}: actions: has no step (episode {demo})")
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


@dataclass(frozen=True)
class Environment:
    """What a file's ``env_args`` says of the environment, of the types that it should have; empty where it says nothing."""

    name: str = ""
    version: str = ""
    kind: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, value: object) -> Environment:
        """Raises UserError where it is no object."""
        if not isinstance(value, Mapping):
            raise UserError(f"env_args is {type(value).__name__}: a JSON object is expected")
        options, kind = value.get("env_kwargs"), value.get("type")
        if not isinstance(options, Mapping | None):
            raise UserError(f"env_kwargs of env_args is {type(options).__name__}: a JSON object is expected")
        return cls(
            str(value.get("env_name") or ""),
            str(value.get("env_version") or ""),
            kind if isinstance(kind, int) else None,
            dict(options or {}),
        )

    @property
    def is_robosuite(self) -> bool:
        return self.kind == ROBOSUITE

    @property
    def task(self) -> str | None:
        """``robosuite/<its own name>``, for :func:`dopr_robot.envs.recorded_task`."""
        return f"{ROBOSUITE_NAME}/{self.name}" if self.is_robosuite and self.name else None

    @property
    def control_hz(self) -> float | None:
        rate = self.options.get("control_freq")
        return float(rate) if isinstance(rate, int | float) and 0 < rate < float("inf") else None

    @property
    def full_reward(self) -> float | None:
        """The reward that means success: robosuite's without shaping; None where a reward means something else."""
        scale = self.options.get("reward_scale")
        if not self.is_robosuite or not self.options or self.options.get("reward_shaping", False):
            return None
        return float(scale) if isinstance(scale, int | float) and scale > 0 else 1.0


def environment(data: h5py.Group) -> Environment:
    """Of the group ``data``. Raises UserError where it is damaged."""
    value = hdf5.json_attribute(data, "env_args")
    return Environment() if value is None else Environment.from_json(value)


def _described(made_in: Environment, keys: Mapping[str, str]) -> Attributes:
    return Attributes(
        control_hz=made_in.control_hz,
        observations=tuple(sorted(key for key, name in keys.items() if name.startswith("obs/"))),
        action=controller_action(made_in.options.get("controller_configs")),
        simulator="robosuite" if made_in.is_robosuite else "",
        simulator_version=made_in.version,
        source=f"robomimic data set of {made_in.name}" if made_in.name else "robomimic data set",
    )


def controller_action(configs: Any) -> ActionAttributes:
    """What an action means to robosuite's controller, where its configuration says so (1.4's and 1.5's)."""
    if isinstance(configs, list) and configs:
        configs = configs[0]
    if not isinstance(configs, Mapping):
        return ActionAttributes()
    if "body_parts" in configs:
        parts = configs["body_parts"]
        configs = (
            next((part for part in parts.values() if isinstance(part, Mapping)), {})
            if isinstance(parts, Mapping)
            else {}
        )
    kind = str(configs.get("type", ""))
    meanings = {"OSC": "end-effector pose", "IK": "end-effector pose", "JOINT_POSITION": "joint position"}
    meaning = next((text for start, text in meanings.items() if kind.startswith(start)), kind.replace("_", " ").lower())
    if "control_delta" in configs:
        return ActionAttributes(meaning=meaning, absolute=not configs["control_delta"])
    if "input_type" in configs:
        return ActionAttributes(meaning=meaning, absolute=configs["input_type"] == "absolute")
    return ActionAttributes(meaning=meaning)


def _episodes(
    path: Path,
    demos: list[str],
    keys: Mapping[str, str],
    odd: list[str],
    masks: Mapping[str, set[str]],
    full_reward: float | None,
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
                    meta[name.removeprefix(f"{OWN}/")] = hdf5.from_json(hdf5.json_attribute(group, name))
                elif isinstance(value, str | np.generic):
                    meta[f"attribute/{name}"] = value
                else:
                    meta[f"attribute_json/{name}"] = json.dumps(hdf5.to_json(value))
            for name in odd:
                if name in group:
                    meta[f"dataset/{name}"] = json.dumps(hdf5.to_json(hdf5.read(group[name], name, demo)))
            if success is None and full_reward is not None and "rewards" in arrays:
                success = arrays["rewards"].max() >= full_reward
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
    group: h5py.Group, about: Attributes, episode: Episode, keys: Mapping[str, str], derived: bool, full_reward: float
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
    told = full_reward and "rewards" in arrays and bool(arrays["rewards"].max() >= full_reward) == episode.success
    if episode.success is not None and not told:
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
