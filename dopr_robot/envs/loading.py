"""What a task names as ``module:name``: its environment, its expert, its segments."""

from importlib import import_module
from typing import Any

import numpy as np

from dopr_robot.envs.faults import START_S, SimulatorError, ask, describe
from dopr_robot.envs.registration import TaskSpec, list_tasks
from dopr_robot.envs.rendering import load_mujoco
from dopr_robot.errors import UserError


def load(entry_point: str) -> Any:
    """What ``module:name`` names. Raises UserError where it can not be loaded."""
    module, _, name = entry_point.partition(":")
    try:
        return getattr(ask(import_module, module, seconds=START_S), name)
    except (AttributeError, SimulatorError) as error:
        cause = error.__cause__ or error
        if not isinstance(cause, ModuleNotFoundError):
            load_mujoco()  # where that is what failed, it says why
        raise UserError(f"{entry_point!r} can not be loaded ({describe(cause)}): it has to be module:name") from cause


def load_expert(spec: TaskSpec) -> Any:
    """The expert's class. Raises UserError where the task has none, or one without ``noise``: a replay reads it without making one."""
    if spec.expert is None:
        raise UserError(spec.without_expert)
    expert, size = load(spec.expert), len(spec.action.low)
    shape = np.asarray(getattr(expert, "noise", None)).shape
    if shape != (size,):
        has = f"noise of shape {list(shape)}" if shape else "no noise"
        raise UserError(
            f"{spec.expert} has {has}: the class names the standard deviation of the noise that is injected on each of the {size} "
            f"entries of an action (noise = np.full({size}, 0.05); zeros: none)"
        )
    return expert


def load_segments(spec: TaskSpec) -> Any:
    """The task's :class:`~dopr_robot.envs.segments.SegmentedTask`. Raises UserError, naming those that have one, where it has none."""
    if spec.segments is None:
        able = ", ".join(other.id for other in list_tasks() if other.segments)
        raise UserError(f"{spec.id} does not say how its demonstrations fall into segments (these do: {able})")
    return load(spec.segments)
