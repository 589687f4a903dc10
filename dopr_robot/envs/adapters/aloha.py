"""gym-aloha: two ViperX arms insert a peg, or hand over a cube (Zhao et al., 2023)."""

from typing import Any

import gymnasium
import numpy as np

from dopr_robot.envs.adapters.adapter import Adapter, prepare_rendering
from dopr_robot.envs.registration import ActionSpec, TaskSpec, get_task, register_task

TASKS = {
    "gym_aloha/AlohaInsertion-v0": "grip peg and socket, one with each arm, and insert in mid-air",
    "gym_aloha/AlohaTransferCube-v0": "the right arm grips the cube and hands it over to the left",
}
HORIZON, REWARD = 300, 4.0
_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")


def register() -> None:
    """Add the tasks."""
    for task_id, description in TASKS.items():
        register_task(
            TaskSpec(
                id=task_id,
                kind="attain",
                control_hz=50,
                max_steps=HORIZON,
                description=f"{description}; success: the package's reward of {REWARD:g}",
                observations={"state": (14,), "top": (480, 640, 3)},
                action=ActionSpec(
                    meaning="joint position and gripper opening, scaled as the package does",
                    absolute=True,
                    units=(*("rad",) * 6, "share of the opening") * 2,
                    names=tuple(f"{side}_{joint}" for side in ("left", "right") for joint in _JOINTS),
                    low=(-1.0,) * 14,
                    high=(1.0,) * 14,
                ),
                entry_point="dopr_robot.envs.adapters.aloha:make",
                arguments={"task_id": task_id},
                package="gym_aloha",
                extra="aloha",
                source="github.com/huggingface/gym-aloha",
            )
        )


def make(
    task_id: str, *, max_steps: int = HORIZON, render_mode: str | None = None, width: int = 320, height: int = 240
) -> gymnasium.Env:
    """One environment of a task. The state holds the arms alone, so the camera's picture is always part of the observation."""
    prepare_rendering(render_mode, needed=True)
    import gym_aloha  # noqa: F401 - registers the ids

    env = gymnasium.make(
        task_id,
        obs_type="pixels_agent_pos",
        max_episode_steps=max_steps,
        visualization_width=width,
        visualization_height=height,
        disable_env_checker=True,
    )
    return Aloha(env, get_task(task_id))


class Aloha(Adapter):
    """The package's ``agent_pos`` is our ``state``."""

    def __init__(self, env: gymnasium.Env, task: TaskSpec) -> None:
        super().__init__(env, task)
        picture = gymnasium.spaces.Box(0, 255, task.observations["top"], np.uint8)
        self.observation_space = gymnasium.spaces.Dict({**self.observation_space.spaces, "top": picture})  # type: ignore[attr-defined]

    def judge(self, info: dict[str, Any], terminated: bool) -> dict[str, Any]:
        return {"success": bool(info.get("is_success", False))}

    def _arrays(self, observation: Any) -> dict[str, Any]:
        return {"state": observation["agent_pos"].astype("float32"), "top": observation["pixels"]["top"]}
