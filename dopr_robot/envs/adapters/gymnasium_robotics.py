"""Gymnasium-Robotics: Adroit's hand, the Franka kitchen, the Fetch arm, point mazes."""

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from dopr_robot.envs.adapters.adapter import Adapter, prepare_rendering
from dopr_robot.envs.registration import ActionSpec, TaskSpec, get_task, register_task

KITCHEN = ("microwave", "kettle", "light switch", "slide cabinet")
"""What the kitchen's demonstrations of D4RL do, in the package's own order and names."""

ADROIT = {
    "AdroitHandDoor-v1": (39, 28, "undo the latch and open the door"),
    "AdroitHandHammer-v1": (46, 26, "drive the nail into the board"),
    "AdroitHandPen-v1": (45, 24, "turn the pen to the wanted orientation"),
    "AdroitHandRelocate-v1": (39, 30, "bring the ball to the target"),
}
FETCH = {
    "FetchReach-v4": (10, "bring the gripper within 5 cm of the target"),
    "FetchPush-v4": (25, "push the block within 5 cm of the target"),
    "FetchSlide-v4": (25, "hit the puck so that it comes to lie within 5 cm of the target"),
    "FetchPickAndPlace-v4": (25, "bring the block within 5 cm of a target that may be in the air"),
}
MAZES = {"PointMaze_UMaze-v3": 300, "PointMaze_Medium-v3": 600, "PointMaze_Large-v3": 800}

_GOAL = "desired_goal"


def register() -> None:
    """Add the tasks."""
    for task_id, (size, joints, description) in ADROIT.items():
        _add(task_id, 100, 200, description, {"state": (size,)}, joints, "joint position, scaled to its range", True)
    kitchen = "bring microwave, kettle, light switch and slide cabinet to their goals, in any order; success: all four"
    _add("FrankaKitchen-v1", 12.5, 280, kitchen, {"state": (59,)}, 9, "joint velocity, scaled", False, stages=_stages())
    for task_id, (size, description) in FETCH.items():
        observations = {"state": (size,), _GOAL: (3,)}
        _add(task_id, 25, 50, description, observations, 4, "end-effector and gripper displacement", False)
    for task_id, steps in MAZES.items():
        observations = {"state": (4,), _GOAL: (2,)}
        _add(task_id, 10, steps, "roll the ball within 0.45 m of the goal", observations, 2, "force on the ball", True)


def _add(
    task_id: str,
    hertz: float,
    steps: int,
    description: str,
    observations: Mapping[str, tuple[int, ...]],
    size: int,
    meaning: str,
    absolute: bool,
    stages: tuple[str, ...] = (),
) -> None:
    register_task(
        TaskSpec(
            id=task_id,
            kind="attain",
            control_hz=hertz,
            max_steps=steps,
            description=description,
            observations=observations,
            action=ActionSpec(
                meaning=meaning,
                absolute=absolute,
                units="share of the range",
                names=tuple(f"action{index}" for index in range(size)),
                low=(-1.0,) * size,
                high=(1.0,) * size,
            ),
            entry_point="dopr_robot.envs.adapters.gymnasium_robotics:make",
            arguments={"task_id": task_id},
            stages=stages,
            package="gymnasium_robotics",
            extra="gymnasium-robotics",
            source="robotics.farama.org",
        )
    )


def _stages() -> tuple[str, ...]:
    return tuple(name.replace(" ", "_") for name in KITCHEN)


def make(
    task_id: str,
    *,
    max_steps: int | None = None,
    render_mode: str | None = None,
    width: int = 320,
    height: int = 240,
) -> gymnasium.Env:
    """One environment of a task."""
    prepare_rendering(render_mode)
    import gymnasium_robotics

    gymnasium.register_envs(gymnasium_robotics)
    spec = get_task(task_id)
    options: dict[str, Any] = {"tasks_to_complete": list(KITCHEN)} if spec.stages else {}
    if render_mode:
        options |= {"width": width, "height": height}
    env = gymnasium.make(
        task_id,
        max_episode_steps=max_steps or spec.max_steps,
        render_mode=render_mode,
        disable_env_checker=True,
        **options,
    )
    return Robotics(env, spec)


class Robotics(Adapter):
    """The package's four families: a plain vector (Adroit), or one with a goal beside it."""

    def observe(self, observation: Any) -> dict[str, Any]:
        if not isinstance(observation, dict):
            return {"state": observation}
        arrays = {"state": observation["observation"], _GOAL: observation[_GOAL]}
        return {key: arrays[key] for key in self.task.observations}

    def judge(self, info: dict[str, Any], terminated: bool) -> dict[str, Any]:
        if self.task.stages:
            done = info.get("episode_task_completions", [])
            stages = {stage: name in done for stage, name in zip(self.task.stages, KITCHEN, strict=True)}
            return {"success": all(stages.values()), **stages}
        return {"success": bool(np.any(info.get("success", info.get("is_success", False))))}
