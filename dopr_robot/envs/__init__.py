"""Tasks: Gymnasium environments with demonstrations' experts. Importing this registers every task and loads no simulator."""

from dopr_robot.envs.adapters import pusht
from dopr_robot.envs.registration import (
    TASKS,
    ActionSpec,
    TaskSpec,
    get_task,
    list_tasks,
    load_expert,
    make,
    make_vec,
    register_task,
)

pusht.register()

__all__ = [
    "TASKS",
    "ActionSpec",
    "TaskSpec",
    "get_task",
    "list_tasks",
    "load_expert",
    "make",
    "make_vec",
    "register_task",
]
