"""Tasks: Gymnasium environments with demonstrations' experts. Importing this registers every task and loads no simulator."""

from dopr_robot.envs import specs
from dopr_robot.envs.adapters import aloha, gymnasium_mujoco, gymnasium_robotics, metaworld, pusht, robosuite
from dopr_robot.envs.demonstrations import Demonstration, Expert, demonstrations, measure_expert
from dopr_robot.envs.registration import (
    TASKS,
    ActionSpec,
    TaskSpec,
    get_task,
    list_tasks,
    load_expert,
    load_segments,
    make,
    make_vec,
    recorded_task,
    register_task,
)

specs.register()
for _adapter in (aloha, gymnasium_mujoco, gymnasium_robotics, metaworld, pusht, robosuite):
    _adapter.register()

__all__ = [
    "TASKS",
    "ActionSpec",
    "Demonstration",
    "Expert",
    "TaskSpec",
    "demonstrations",
    "get_task",
    "list_tasks",
    "load_expert",
    "load_segments",
    "make",
    "make_vec",
    "measure_expert",
    "recorded_task",
    "register_task",
]
