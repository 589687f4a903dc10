"""gym-aloha: two ViperX arms insert a peg, or hand over a cube (Zhao et al., 2023)."""

from contextlib import suppress
from typing import Any

import gymnasium
import numpy as np

from dopr_robot.envs.adapters.adapter import Adapter, Views, name_backend
from dopr_robot.envs.perturbations import PERTURBATIONS, perturbed
from dopr_robot.envs.registration import ActionSpec, TaskSpec, get_task, register_task
from dopr_robot.errors import UserError

TASKS = {
    "gym_aloha/AlohaInsertion-v0": "grip peg and socket, one with each arm, and insert in mid-air",
    "gym_aloha/AlohaTransferCube-v0": "the right arm grips the cube and hands it over to the left",
}
HORIZON, REWARD = 300, 4.0
CAMERAS = ("top", "angle", "front_close", "left_wrist", "right_wrist", "left_pillar", "right_pillar", "free")
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
                observations={"state": (14,)},
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
                options=PERTURBATIONS,
                cameras=CAMERAS,
                opengl=True,
                extensible=True,
                package="gym_aloha",
                extra="aloha",
                source="github.com/huggingface/gym-aloha",
            )
        )


@perturbed
def make(
    task_id: str,
    *,
    max_steps: int = HORIZON,
    camera_size: int | tuple[int, int] = (480, 640),
    **views: Any,
) -> gymnasium.Env:
    """One environment of a task, seen as :class:`~dopr_robot.envs.adapters.adapter.Views` says, at the size of the published data sets."""
    seen, spec = Views(camera_size=camera_size, **views), get_task(task_id)
    seen.check(spec)
    with suppress(UserError):
        name_backend()  # dm_control takes the one that is named when it is loaded, or a window, which a server has not
    import gym_aloha  # noqa: F401 - registers the ids

    env = gymnasium.make(task_id, obs_type="pixels_agent_pos", max_episode_steps=max_steps, disable_env_checker=True)
    return Aloha(env, spec, seen, pushed=r"vx300s_(left|right)/gripper_link", plain=False)


class Aloha(Adapter):
    """The package's ``agent_pos`` is our ``state``. Shadows are drawn: published demonstrations have them."""

    view = "top"

    def __init__(self, env: gymnasium.Env, task: TaskSpec, views: Views, **options: Any) -> None:
        super().__init__(env, task, views, **options)
        inside = self.unwrapped._env.task  # type: ignore[attr-defined]
        nothing = {"top": np.zeros((1, 1, 3), np.uint8)}

        def get_observation(physics: Any) -> dict[str, Any]:
            """The package's own draws three pictures of 640 x 480, whatever is asked for."""
            return {"qpos": inside.get_qpos(physics), "images": nothing}

        inside.get_observation = get_observation

    def physics(self) -> tuple[Any, Any]:
        inside = self.unwrapped._env.physics  # type: ignore[attr-defined]
        return inside.model.ptr, inside.data.ptr

    def observe(self, observation: Any) -> dict[str, Any]:
        return {"state": observation["agent_pos"]}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """The observation is of the arms alone; what tells one episode from another is in ``info["initial_state"]``."""
        observation, info = super().reset(seed=seed, options=options)
        _, data = self.physics()
        return observation, {**info, "initial_state": np.concatenate([data.qpos, data.qvel])}

    def neutral(self, observation: Any) -> Any:
        """The posture, which the action has the numbers of."""
        return observation["state"]

    def judge(self, info: dict[str, Any], terminated: bool) -> dict[str, Any]:
        return {"success": bool(info.get("is_success", False))}
