"""Demonstrations as those of a task: names, rate and the action's meaning taken over, contradictions refused."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, Protocol

from numpy.typing import NDArray

from dopr_robot.datasets.attributes import ActionAttributes
from dopr_robot.datasets.editing import rename_keys
from dopr_robot.datasets.recording import Recording
from dopr_robot.errors import UserError
from dopr_robot.images import camera_of

LOG = logging.getLogger(__name__)
GENERIC = "observation"
"""What readers call the one observation of a file that gives it no name."""


class ActionFacts(Protocol):
    """What a task says of its action, as :class:`dopr_robot.envs.ActionSpec` does."""

    @property
    def meaning(self) -> str: ...
    @property
    def absolute(self) -> bool: ...
    @property
    def units(self) -> str | tuple[str, ...]: ...
    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def low(self) -> tuple[float, ...]: ...
    @property
    def high(self) -> tuple[float, ...]: ...


class Task(Protocol):
    """What a task says, as :class:`dopr_robot.envs.TaskSpec` does, without the simulator."""

    @property
    def id(self) -> str: ...
    @property
    def control_hz(self) -> float: ...
    @property
    def observations(self) -> Mapping[str, tuple[int, ...]]: ...
    @property
    def cameras(self) -> tuple[str, ...]: ...
    @property
    def options(self) -> Mapping[str, str]: ...
    @property
    def action(self) -> ActionFacts: ...


def as_task(recording: Recording, first: Mapping[str, NDArray[Any]], task: Task) -> Recording:
    """The recording, whose first episode's arrays are ``first``, as demonstrations of a task.

    The one observation of a file that names none becomes the task's, where their shapes agree; observations that the task does not give
    stay as keys and are observations no longer. The task's control rate, and its action's meaning and bounds, are taken over. What a
    file says of itself stays where the task's environment may be another than its own (the option ``env_args``).

    Raises:
        UserError: the shapes of an observation or of the action, the control rate, or whether actions are absolute, contradict the task.
    """
    names = _names(first, task)
    if names:
        recording = rename_keys(recording, list(first), names=names)
    about = recording.attributes
    loose = "env_args" in task.options
    if about.control_hz and not loose and not math.isclose(about.control_hz, task.control_hz, rel_tol=1e-3):
        raise UserError(
            f"recorded at {about.control_hz:g} Hz and {task.id} runs at {task.control_hz:g} Hz: leave the task (and --hz) out, "
            f"then dopr edit STORE OUT --rate {task.control_hz:g} --task {task.id}"
        )
    shapes = {names.get(key, key): value.shape[1:] for key, value in first.items()}
    if not loose:
        for key, shape in {**task.observations, "action": (len(task.action.names),)}.items():
            if key in shapes and tuple(shapes[key]) != tuple(shape):
                raise UserError(
                    f"{key} is of shape {list(shapes[key])} and {task.id} has {list(shape)}: another task's, or of other options"
                )
    declared = list(about.observations) or [key for key in shapes if key != "action"]
    given = tuple(key for key in declared if key in {*task.observations, *task.cameras})
    if not given:
        known = ", ".join(f"{key} {list(shape)}" for key, shape in task.observations.items())
        LOG.warning(
            "%s gives %s, and none of %s: dopr edit STORE OUT --rename KEY=NAME before training",
            task.id,
            known,
            ", ".join(declared) or "no observation",
        )
    about = replace(
        about,
        task=task.id,
        options=about.options if about.task == task.id else {},
        control_hz=about.control_hz or task.control_hz,
        observations=given or about.observations,
        action=_action(about.action, task, _size(first) if loose else None),
    )
    return Recording(about, recording.episodes)


def _size(arrays: Mapping[str, NDArray[Any]]) -> int:
    """Of an action; 0 where it is no vector."""
    shape = arrays["action"].shape if "action" in arrays else ()
    return shape[1] if len(shape) == 2 else 0


def looked_at(recording: Recording) -> tuple[Recording, Mapping[str, NDArray[Any]]]:
    """The recording, and the arrays of its first episode, none where there is no episode."""
    episodes = iter(recording.episodes)
    first = next(episodes, None)
    if first is None:
        return Recording(recording.attributes, ()), {}
    return Recording(recording.attributes, itertools.chain([first], episodes)), first.arrays


def _names(first: Mapping[str, NDArray[Any]], task: Task) -> dict[str, str]:
    """The task's names for what a file calls otherwise: the observation that it gives no name, and pictures of the task's cameras."""
    names: dict[str, str] = {}
    for key, value in first.items():
        camera = camera_of(key, task.cameras) if value.ndim == 4 else None
        if camera is not None and camera not in {*first, *names.values()}:
            names[key] = camera
    if GENERIC not in first or GENERIC in task.observations:
        return names
    fitting = [
        key
        for key, shape in task.observations.items()
        if key not in first and tuple(shape) == tuple(first[GENERIC].shape[1:])
    ]
    return names | ({GENERIC: fitting[0]} if len(fitting) == 1 else {})


def _action(said: ActionAttributes, task: Task, size: int | None) -> ActionAttributes:
    """The task's action, or what a file with an environment of its own (one with a size) says, completed where the two agree."""
    theirs = ActionAttributes(**{field.name: getattr(task.action, field.name) for field in fields(ActionAttributes)})
    if said.absolute in (None, theirs.absolute):
        if size is None:
            return theirs
        own = {field.name: getattr(said, field.name) for field in fields(ActionAttributes)}
        return (
            replace(theirs, **{k: v for k, v in own.items() if v not in ("", (), None)})
            if size == len(theirs.names)
            else said
        )
    if size is not None and said.meaning:  # a controller of its own, with bounds of its own
        return said
    kinds = {True: "absolute", False: "relative"}
    raise UserError(
        f"actions are said to be {kinds[said.absolute is True]}, and {task.id}'s are {kinds[task.action.absolute]} "
        f"({task.action.meaning}): leave --{kinds[said.absolute is True]} or the task out"
    )
