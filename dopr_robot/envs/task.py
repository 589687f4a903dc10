"""A task with what varies it, as one value: what a store says of itself travels into the run, its checkpoint and its records."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from dopr_robot.envs.cameras import check_cameras, check_size
from dopr_robot.envs.making import make_vec
from dopr_robot.envs.registration import TaskSpec, get_task
from dopr_robot.envs.rendering import choose_backend
from dopr_robot.errors import UnknownNameError, UserError

VIEWS = ("cameras", "camera_size")
"""Options of every task that has cameras. They change no episode: what reads pictures says which, and how large."""


@dataclass(frozen=True)
class Task:
    """A task and its options, checked when made; JSON values only.

    >>> Task("Stack", {"cubes": 3})
    Task(id='dopr_robot/Stack-v0', options={'cubes': 3})

    Args:
        id: a name that :func:`~dopr_robot.envs.get_task` knows; becomes the Gymnasium id.
        options: keywords of the environment that the TaskSpec names, and of :data:`VIEWS`.

    Raises:
        UnknownNameError: no such task, option or camera; the message names the closest.
        UserError: a value that JSON has not, or no size of a picture. Types and ranges are the
            environment's to check, when it is made.
    """

    id: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        spec = get_task(self.id)
        known = (*spec.options, *(VIEWS if spec.cameras else ()))
        for name in self.options:
            if name not in known:
                if not known:
                    raise UserError(f"{spec.id} takes no options: leave {name!r} out")
                raise UnknownNameError(f"option of {spec.id}:", str(name), known)
        found = {name: _plain(value, name) for name, value in self.options.items()}
        if "cameras" in found:
            theirs = (
                found["cameras"] if "env_args" in found else None
            )  # an environment of its own has cameras of its own
            check_cameras(spec, found["cameras"], theirs)
        if "camera_size" in found:
            check_size(found["camera_size"])
        object.__setattr__(self, "id", spec.id)
        object.__setattr__(self, "options", found)

    @property
    def spec(self) -> TaskSpec:
        """What the registry says of it."""
        return get_task(self.id)

    @property
    def varied(self) -> dict[str, Any]:
        """The options that change what happens: all but :data:`VIEWS`."""
        return varied(self.options)

    def given(self, options: Mapping[str, Any]) -> "Task":
        """The same task with options over its own."""
        return Task(self.id, {**self.options, **options})

    def seen_by(self, observations: Mapping[str, tuple[int, ...]]) -> "Task":
        """The same task with the cameras that a policy reads, at the size at which it reads them.

        Args:
            observations: shape of one step of every observation that the policy reads.

        Raises:
            UnknownNameError: a camera that the task does not have.
            UserError: pictures of several sizes, or of another than ``camera_size`` says.
        """
        pictures = {key: shape for key, shape in observations.items() if len(shape) == 3}
        wanted = {key: shape for key, shape in pictures.items() if key not in self.spec.observations}
        if not wanted or not self.spec.cameras:
            return Task(self.id, self.varied)
        sizes = {tuple(shape[:2]) for shape in wanted.values()}
        if len(sizes) > 1:
            said = ", ".join(f"{key} {height} x {width}" for key, (height, width, _) in wanted.items())
            raise UserError(f"the policy reads pictures of several sizes ({said}), {self.id} draws all in one")
        size = sizes.pop()
        asked = self.options.get("camera_size")
        if asked is not None and check_size(asked) != size:
            raise UserError(
                f"camera_size={asked} and the policy reads pictures of {size[0]} x {size[1]}: leave camera_size out"
            )
        side = size[0] if size[0] == size[1] else list(size)
        return Task(self.id, {**self.varied, "cameras": list(wanted), "camera_size": side})

    def check_drawing(self) -> None:
        """Raise UserError, before anything is loaded, where pictures are observed and no OpenGL works that would draw them."""
        if self.options.get("cameras") and self.spec.opengl:
            choose_backend()

    @property
    def copies_per_core(self) -> int | None:
        """Most copies that a core is given where nobody says how many; None: no limit.

        A simulator that draws holds what it draws in every copy: robosuite's Lift 340 MB with two cameras and 160 MB without. More than
        a few side by side gain nothing either, since those of one process are stepped one after another.
        """
        return 4 if self.spec.in_workers and "cameras" in self.options else None

    def make_vec(self, num_envs: int, **kwargs: Any) -> VectorEnv:
        """``num_envs`` copies of it, as :func:`~dopr_robot.envs.make_vec`; ``kwargs`` are further keywords."""
        return make_vec(self.id, num_envs, **{**self.options, **kwargs})

    def __str__(self) -> str:
        return in_words(self.id, self.options)


def varied(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options without :data:`VIEWS`."""
    return {name: value for name, value in options.items() if name not in VIEWS}


def in_words(task: str | None, options: Mapping[str, Any] | None) -> str:
    """A task and its options where people read; "" for none.

    >>> in_words("dopr_robot/Stack-v0", {"cubes": 3})
    'dopr_robot/Stack-v0 cubes=3'
    """
    return " ".join([task, *words(options or {})]) if task else ""


def words(options: Mapping[str, Any]) -> list[str]:
    """Options as ``--option`` takes them.

    >>> words({"cubes": 3, "cameras": ["overview"]})
    ['cubes=3', 'cameras=["overview"]']
    """
    return [f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in options.items()]


def _plain(value: Any, name: str) -> Any:
    """The value as JSON has it. Raises UserError, naming the option, where JSON has none."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        return {str(key): _plain(each, f"{name}.{key}") for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, name) for each in value]
    if value is not None and not isinstance(value, str | bool | int | float):
        raise UserError(f"{name}={value!r} has to be a number, a text, or a list or mapping of these")
    return value
