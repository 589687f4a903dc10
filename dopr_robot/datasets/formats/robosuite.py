"""robosuite's raw HDF5 (robosuite.ai/docs/algorithms/demonstrations.html), in: states and actions, observations rebuilt by replay.

``data/demo_<n>`` holds ``states [T, 1 + nq + nv]``, ``actions [T, A]`` and the attribute ``model_file``; ``env_info`` of ``data`` says
how the environment was made. It is made again, every recorded state is set in it, and what its sensors then say are the
observations, named as robomimic names them (``robot0_*`` and ``object``).

Versions: where robosuite is the one that recorded, its recorded model is loaded. Another version may name its bodies
otherwise; then its own model is used, with the recorded sizes of what it shares, and only if every joint is there in the same order
and every body of the same name lies where the recorded model puts it.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from dopr_robot.datasets.attributes import Attributes
from dopr_robot.datasets.episode import Episode
from dopr_robot.datasets.formats import hdf5
from dopr_robot.datasets.formats.format import FORMATS, Format, natural, one_line
from dopr_robot.datasets.formats.robomimic import NAME as ROBOMIMIC
from dopr_robot.datasets.formats.robomimic import ROBOSUITE, Environment, controller_action, environment
from dopr_robot.datasets.recording import Recording
from dopr_robot.errors import MissingExtraError, UserError, errors_only

NAME = "robosuite"
EXPECTED = "data/demo_<n> with states, actions and the attribute model_file"
MODEL = "attribute/model_file"
"""Where an episode's ``meta`` holds its model's XML."""
TOLERANCE = 1e-6
"""Metres by which a body may lie elsewhere than in the recorded model."""


def recognises(path: Path) -> bool:
    found = hdf5.first_demonstration(path)
    return {"actions", "states"} <= found and "obs" not in found


def read(path: Path) -> Recording:
    """Raises MissingExtraError without robosuite, UserError where its version cannot replay the file."""
    recording, made_in = recorded(path), environment_of(path)
    env = _make(path, made_in.name, made_in.options)
    about = replace(recording.attributes, control_hz=float(env.control_freq), observations=tuple(sorted(_observe(env))))
    return replace(recording, attributes=about, episodes=_replayed(path, env, made_in.version, recording.episodes))


def recorded(path: Path) -> Recording:
    """What the file itself holds: states, actions and models, and no observation. Raises as :func:`read`."""
    with hdf5.open_hdf5(path) as file:
        data = hdf5.group(file, "data", EXPECTED)
        demos = sorted(data, key=natural)
        for demo in demos:
            found = hdf5.datasets(hdf5.group(data, demo, EXPECTED))
            if not {"states", "actions"} <= set(found) or "model_file" not in data[demo].attrs:
                raise UserError(f"{path}: found {', '.join(found) or 'nothing'} in data/{demo}; expected {EXPECTED}")
            _check_demo(path, demo, found["states"], found["actions"], data[demo].attrs["model_file"])
        if not demos:
            raise UserError(f"{path}: found no demonstration in data; expected {EXPECTED}")
    made_in, installed = environment_of(path), _installed()
    env_args = {
        "env_name": made_in.name,
        "env_version": installed,
        "type": ROBOSUITE,
        "env_kwargs": dict(made_in.options),
    }
    about = Attributes(
        control_hz=made_in.control_hz,
        action=controller_action(made_in.options.get("controller_configs")),
        simulator="robosuite",
        simulator_version=installed,
        source=f"robosuite {made_in.version or '(version unknown)'}, {made_in.name}",
        carried={ROBOMIMIC: {"data": {"env_args": json.dumps(env_args)}}},
    ).with_provenance(rebuilt_in())
    return Recording(about, _recorded(path, demos), named=made_in.task)


def _recorded(path: Path, demos: list[str]) -> Iterator[Episode]:
    with hdf5.open_hdf5(path) as file:
        for demo in demos:
            group = file[f"data/{demo}"]
            arrays = {
                "action": hdf5.read(group["actions"], "actions", demo),
                "states": hdf5.read(group["states"], "states", demo),
            }
            yield Episode(arrays, meta={"name": demo, MODEL: str(group.attrs["model_file"])})


def rebuilt_in() -> str:
    """The line of provenance. Raises MissingExtraError without robosuite."""
    return f"observations rebuilt from the recorded states in robosuite {_installed()}"


def count(path: Path) -> int:
    """Demonstrations in a file of robosuite or robomimic."""
    with hdf5.open_hdf5(path) as file:
        return len(hdf5.group(file, "data", EXPECTED))


def _installed() -> str:
    try:
        return version("robosuite")
    except PackageNotFoundError:
        raise MissingExtraError("rebuilding observations by replay", "robosuite") from None


def _check_demo(path: Path, demo: str, states: h5py.Dataset, actions: h5py.Dataset, model: object) -> None:
    """Raise UserError for what cannot be replayed."""
    for name, found in (("states", states), ("actions", actions)):
        if found.ndim != 2 or found.dtype.kind not in "fiu":
            raise UserError(
                f"{path}: {name}: is {found.dtype}{list(found.shape)}: a vector a step is expected (episode {demo})"
            )
    if len(states) != len(actions) or not len(actions):
        raise UserError(f"{path}: states: has {len(states)} steps and actions {len(actions)} (episode {demo})")
    if not str(model).lstrip().startswith("<"):
        raise UserError(
            f"{path}: attribute model_file is {str(model)[:60]!r}: the model's XML is expected, not its name (episode {demo})"
        )


def environment_of(path: Path) -> Environment:
    """As robosuite (``env_info``) or as robomimic's conversion (``env_args``) wrote it. Raises UserError where neither is there."""
    with hdf5.open_hdf5(path) as file:
        data = hdf5.group(file, "data", EXPECTED)
        if "env_args" in data.attrs:
            found = environment(data)
        else:
            options = hdf5.json_attribute(data, "env_info")
            if not isinstance(options, Mapping):
                raise UserError(
                    f"{path}: found the attributes {', '.join(sorted(data.attrs)) or 'nothing'} of data; "
                    "expected env_info or env_args as JSON"
                )
            name = str(options.get("env_name", data.attrs.get("env", "")))
            found = Environment(
                name,
                str(data.attrs.get("repository_version", "")),
                options={key: value for key, value in options.items() if key != "env_name"},
            )
    return replace(found, kind=ROBOSUITE)


def _make(path: Path, name: str, options: Mapping[str, Any]) -> Any:
    """The environment, without cameras."""
    logging.getLogger("robosuite_logs").addFilter(errors_only)
    try:
        import robosuite
    except ImportError:
        raise MissingExtraError("rebuilding observations by replay", "robosuite") from None
    options = dict(options)
    configs = options.get("controller_configs")
    blind = {"has_renderer": False, "has_offscreen_renderer": False, "use_camera_obs": False, "ignore_done": True}
    try:
        if isinstance(configs, Mapping) and "body_parts" not in configs and not _installed().startswith("1.4"):
            from robosuite.controllers.composite import composite_controller_factory as factory

            robots = options["robots"] if isinstance(options["robots"], list) else [options["robots"]]
            options["controller_configs"] = factory.refactor_composite_controller_config(configs, robots[0], ["right"])
        env = robosuite.make(name, **{**options, **blind})
        env.reset()
    except Exception as error:  # whatever a simulator raises at a name or keyword that it does not know
        raise UserError(f"{path}: robosuite {_installed()} cannot make {name!r} ({one_line(error)})") from error
    return env


def _replayed(path: Path, env: Any, version: str, episodes: Iterable[Episode]) -> Iterator[Episode]:
    for episode in episodes:
        load_model(env, episode, version, str(path))
        observed, success = [], False
        for state in episode.arrays["states"]:
            env.sim.set_state_from_flattened(state)
            env.sim.forward()
            observed.append(_observe(env))
            success = success or bool(env._check_success())
        arrays = {key: np.stack([each[key] for each in observed]) for key in observed[0]}
        yield replace(episode, arrays={**arrays, **episode.arrays}, success=success)


def load_model(env: Any, episode: Episode, version: str, source: str) -> None:
    """Make robosuite's environment ready for an episode's states: with the recorded model, where that version is the installed one;
    else with its own and the sizes of the recorded one.

    Raises:
        UserError: the models differ in more than that; the message names ``source`` and the episode.
    """
    model, states, demo = str(episode.meta[MODEL]), episode.arrays["states"], episode.meta["name"]
    installed = _installed()
    place = (
        f"{source}: states: cannot be replayed: robosuite {version or 'of unknown version'} recorded them and {installed} is "
        "installed"
    )
    try:
        if version.split(".")[:2] == installed.split(".")[:2]:
            env.reset_from_xml_string(env.edit_model_xml(model))
            env.sim.reset()
            reason = ""
        else:
            env.reset()
            reason = _difference(env, model, states[0])
    except Exception as error:  # whatever a simulator raises at a model that is none
        raise UserError(
            f"{source}: attribute model_file cannot be loaded ({one_line(error)}) (episode {demo})"
        ) from error
    if reason:
        raise UserError(f"{place}, whose model differs: {reason} (episode {demo})")
    if env.sim.get_state().flatten().shape != states.shape[1:]:
        raise UserError(f"{place}, whose state has {len(env.sim.get_state().flatten())} numbers (episode {demo})")


def _observe(env: Any) -> dict[str, NDArray[Any]]:
    found = env._get_observations(force_update=True)
    chosen = {key: value for key, value in found.items() if key.startswith("robot") and not key.endswith("-state")}
    if "object-state" in found:
        chosen["object"] = found["object-state"]
    return {key: np.array(value) for key, value in chosen.items()}


def _difference(env: Any, model: str, state: NDArray[Any]) -> str:
    """Why the environment's own model is not the recorded one, or "" where it is."""
    from robosuite.utils.binding_utils import MjSim

    # 1.5 moved the meshes of what robots stand on.
    xml = env.edit_model_xml(model).replace("/assets/mounts/", "/assets/bases/")
    try:
        other = MjSim.from_xml_string(xml)
    except ValueError as error:
        return f"the recorded model cannot be loaded ({one_line(error)})"
    joints, theirs = ([_plain(name) for name in sim.model.joint_names] for sim in (env.sim, other))
    if joints != theirs:
        return f"its joints are {', '.join(joints)} and the recorded ones {', '.join(theirs)}"
    for sim in (env.sim, other):
        sim.set_state_from_flattened(state)
        sim.forward()
    shared = set(env.sim.model.body_names) & set(other.model.body_names)
    for name in sorted(shared):
        distance = np.abs(env.sim.data.get_body_xpos(name) - other.data.get_body_xpos(name)).max()
        if distance > TOLERANCE:
            return f"{name} lies {distance:.3g} m elsewhere"
    if len(shared) < 2:
        return "no body has a recorded one's name"
    _take_sizes(env.sim.model._model, other.model._model)
    return ""


def _take_sizes(model: Any, recorded: Any) -> None:
    """Give primitive shapes the sizes and places that they have in the recorded model: robosuite draws some anew for every episode (Lift's
    cube), and a picture shows them."""
    own = {model.geom(index).name: index for index in range(model.ngeom)}
    for theirs in range(recorded.ngeom):
        name = recorded.geom(theirs).name
        ours = own.get(name) if name else None
        primitive = recorded.geom_dataid[theirs] < 0  # no mesh
        if ours is not None and primitive and model.geom_type[ours] == recorded.geom_type[theirs]:
            for field in ("size", "pos", "quat", "rbound", "aabb"):
                getattr(model, f"geom_{field}")[ours] = getattr(recorded, f"geom_{field}")[theirs]


def _plain(joint: str) -> str:
    """1.5 put the arm's side into the names of a gripper's joints."""
    return re.sub(r"^(gripper\d+)_(right|left)_", r"\1_", joint)


FORMATS.register(NAME, Format("HDF5 with data/demo_<n>/states and actions, no observations", recognises, read))
