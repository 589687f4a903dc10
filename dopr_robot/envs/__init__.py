"""Tasks: Gymnasium environments, and what each says of itself. Importing this registers every task and loads no simulator."""

from typing import Any

from dopr_robot.deprecation import moved
from dopr_robot.envs import specs
from dopr_robot.envs.adapters import aloha, gymnasium_mujoco, gymnasium_robotics, metaworld, pusht, robosuite
from dopr_robot.envs.contract import check_start
from dopr_robot.envs.expert import Expert, RememberingExpert
from dopr_robot.envs.faults import SimulatorError
from dopr_robot.envs.loading import load_expert, load_segments
from dopr_robot.envs.making import make, make_vec
from dopr_robot.envs.perturbations import PERTURBATIONS, perturbed
from dopr_robot.envs.registration import (
    FAMILIES,
    TASKS,
    ActionSpec,
    TaskSpec,
    get_task,
    list_tasks,
    matching_tasks,
    names_several,
    recorded_task,
    register_task,
)
from dopr_robot.envs.segments import Arrays, Floats, Segment, SegmentedTask, poses
from dopr_robot.envs.task import Task
from dopr_robot.envs.unregistered import PREFIX, unregistered_task

specs.register()
for _adapter in (aloha, gymnasium_mujoco, gymnasium_robotics, metaworld, pusht, robosuite):
    _adapter.register()
FAMILIES[PREFIX] = unregistered_task

__all__ = [
    "FAMILIES",
    "PERTURBATIONS",
    "TASKS",
    "ActionSpec",
    "Arrays",
    "Expert",
    "Floats",
    "RememberingExpert",
    "Segment",
    "SegmentedTask",
    "SimulatorError",
    "Task",
    "TaskSpec",
    "check_start",
    "get_task",
    "list_tasks",
    "load_expert",
    "load_segments",
    "make",
    "make_vec",
    "matching_tasks",
    "names_several",
    "perturbed",
    "poses",
    "recorded_task",
    "register_task",
]

_FORMER = {name: f"dopr_robot.collection.{name}" for name in ("Demonstration", "demonstrations", "measure_expert")}


def __getattr__(name: str) -> Any:
    if name in _FORMER:
        return moved(f"{__name__}.{name}", _FORMER[name], gone_in="0.3")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
