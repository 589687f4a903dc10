"""What an environment has to keep to, looked at where it comes in and at every call, so that nothing behind has to doubt it."""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from dopr_robot.envs.faults import ask, note_stops
from dopr_robot.envs.registration import TaskSpec
from dopr_robot.errors import UserError

E = TypeVar("E", gymnasium.Env, VectorEnv)


def admit(env: E, task: TaskSpec) -> E:
    """The environment, held to the contract from here on.

    What it does wrong is told as :func:`~dopr_robot.envs.faults.ask` does, and a ``success`` in every info is made sure of; ``is_success``,
    as other packages call it, is taken for it.

    Raises:
        UserError: observations that are no Dict, or actions that are no Box of the task's size; later, an info without success.
    """
    batched = isinstance(env, VectorEnv)
    seen = env.single_observation_space if isinstance(env, VectorEnv) else env.observation_space
    acted = env.single_action_space if isinstance(env, VectorEnv) else env.action_space
    need_dict(seen, task.id)
    if not isinstance(acted, spaces.Box) or acted.shape != (len(task.action.low),):
        raise UserError(f"{task.id} takes actions {acted}: its TaskSpec says a Box of {len(task.action.low)} numbers")
    note_stops()

    def judged(info: Mapping[str, Any], mask: NDArray[np.bool_] | None) -> dict[str, Any]:
        return _batched_success(info, mask, task) if batched else _success(info, task)

    def reset(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*, seed: Any = None, options: dict[str, Any] | None = None) -> Any:
            mask = (options or {}).get("reset_mask")
            observation, info = ask(function, seed=seed, options=options)
            return observation, judged(info, mask)

        return call

    def step(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(action: Any) -> Any:
            observation, *ended, info = ask(function, action)
            return observation, *ended, judged(info, None)

        return call

    def other(function: Callable[..., Any]) -> Callable[..., Any]:
        return wraps(function)(lambda *args, **kwargs: ask(function, *args, **kwargs))

    for name, held in (("reset", reset), ("step", step), ("render", other), ("render_copies", other), ("close", other)):
        if name != "render_copies" or hasattr(env, name):  # which Gymnasium does not ask for
            setattr(env, name, held(getattr(env, name)))
    return env


def need_dict(space: spaces.Space, whose: str) -> None:
    """Raise UserError where observations are no Dict."""
    if not isinstance(space, spaces.Dict):
        raise UserError(f'{whose} observes {space}: it has to be a Dict of arrays, such as {{"state": ...}}')


def check_start(env: VectorEnv, task: TaskSpec, seed: int) -> None:
    """Refuse a task whose episode is not decided by its seed: reset twice with it, it has to begin alike.

    Raises:
        UserError: it begins otherwise; the message names what differs.
    """
    seeds: Any = [seed] * env.num_envs
    (first, before), (again, after) = env.reset(seed=seeds), env.reset(seed=seeds)
    difference = _difference(start_of(first, before), start_of(again, after))
    if difference:
        raise UserError(
            f"{task.id} begins differently at two resets with seed {seed} ({difference}): an episode has to depend on its seed alone "
            "(draw from self.np_random after super().reset(seed=seed))"
        )


def start_of(observation: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """What an episode begins from; without pictures where there is something else, since some renderers differ in a pixel."""
    arrays = {key: np.array(value) for key, value in observation.items()}
    plain = {key: value for key, value in arrays.items() if value.ndim < 4 or value.dtype != np.uint8}
    if "initial_state" in info:
        plain["initial_state"] = np.array(info["initial_state"])
    return plain or arrays


def _difference(first: Mapping[str, NDArray[Any]], second: Mapping[str, NDArray[Any]]) -> str | None:
    for key, value in first.items():
        other = second[key]
        same = np.array_equal(value, other, equal_nan=value.dtype.kind == "f")
        if not same and value.shape == other.shape and value.dtype.kind in "fiub":
            where = np.unravel_index(np.argmax(value != other), value.shape)
            entry = f"{key}[{', '.join(map(str, map(int, where[1:])))}]" if len(where) > 1 else key
            return f"{entry}: {value[where]:.6g}, then {other[where]:.6g}"
        if not same:
            return key
    return None


def _success(info: Mapping[str, Any], task: TaskSpec) -> dict[str, Any]:
    """A single environment's info with ``success``, a bool."""
    told = info.get("success", info.get("is_success"))
    if told is None:
        raise _without(task)
    return {**info, "success": bool(told)}


def _batched_success(info: Mapping[str, Any], mask: NDArray[np.bool_] | None, task: TaskSpec) -> dict[str, Any]:
    """A vector environment's info with ``success``, ``bool [N]``, told by every copy (of ``mask``)."""
    name = "success" if "success" in info else "is_success"
    if name not in info:
        raise _without(task)
    told = np.asarray(info[name])
    tells = np.asarray(info.get(f"_{name}", np.ones(told.shape, bool)))
    if not tells[... if mask is None else mask].all():
        raise _without(task)
    return {**info, "success": told.astype(bool), "_success": tells}


def _without(task: TaskSpec) -> UserError:
    return UserError(
        f"{task.id} gives no success in info: a bool at every reset and step ({task.kind}: {_MEANS[task.kind]})"
    )


_MEANS = {"attain": "whether the goal is reached now", "sustain": "whether it has not failed yet"}
