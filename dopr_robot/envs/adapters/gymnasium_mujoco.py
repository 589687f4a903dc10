"""Gymnasium's MuJoCo tasks that end when the robot falls: success is not to have fallen, and the return says how well.

HalfCheetah has no fall: there the return alone tells.
"""

from typing import Any

import gymnasium

from dopr_robot.envs.adapters.adapter import Adapter, Views
from dopr_robot.envs.perturbations import PERTURBATIONS, perturbed
from dopr_robot.envs.registration import ActionSpec, TaskSpec, bare_name, get_task, register_task

TASKS = {
    # id: observation, names of the action, bound of the action, control steps a second, what fails
    "Humanoid-v5": (348, 17, 0.4, 1 / 0.015, "the torso leaves heights from 1 to 2 m"),
    "Ant-v5": (105, 8, 1.0, 20.0, "the torso leaves heights from 0.2 to 1 m"),
    "HalfCheetah-v5": (17, 6, 1.0, 20.0, ""),
    "Walker2d-v5": (17, 6, 1.0, 125.0, "the torso leaves heights from 0.8 to 2 m or leans 1 rad"),
    "Hopper-v5": (11, 3, 1.0, 125.0, "the torso sinks below 0.7 m or leans 0.2 rad"),
    "InvertedPendulum-v5": (4, 1, 3.0, 25.0, "the pole leans 0.2 rad"),
    "InvertedDoublePendulum-v5": (9, 1, 1.0, 20.0, "the tip sinks below 1 m"),
}
LOCOMOTION = "forward speed, a share for being up, less the cost of control"
REWARDS = {
    "Humanoid-v5": f"{LOCOMOTION} and of contacts",
    "Ant-v5": f"{LOCOMOTION} and of contacts",
    "HalfCheetah-v5": "forward speed less the cost of control",
    "Walker2d-v5": LOCOMOTION,
    "Hopper-v5": LOCOMOTION,
    "InvertedDoublePendulum-v5": "a share for being up, less distance and speed",
}
"""What the reward of a step pays; where it is 1 for every step not fallen, the survival says it all."""
HORIZON = 1000


def register() -> None:
    """Add the tasks."""
    for task_id, (size, joints, bound, hertz, failure) in TASKS.items():
        learned = not task_id.startswith("Inverted")
        register_task(
            TaskSpec(
                id=task_id,
                kind="sustain",
                control_hz=hertz,
                max_steps=HORIZON,
                description=(
                    f"do not fall while the reward pays for speed or for standing; failed once {failure}"
                    if failure
                    else "run forward; it can not fall, and the return says how well it runs"
                ),
                observations={"state": (size,)},
                action=ActionSpec(
                    meaning="joint torque" if not task_id.startswith("Inverted") else "force on the cart",
                    absolute=True,
                    units="share of the motor's strength",
                    names=tuple(f"motor{index}" for index in range(joints)),
                    low=(-bound,) * joints,
                    high=(bound,) * joints,
                ),
                entry_point="dopr_robot.envs.adapters.gymnasium_mujoco:make",
                arguments={"task_id": task_id},
                expert=f"dopr_robot.envs.adapters.gymnasium_experts:{bare_name(task_id)}Expert" if learned else None,
                reward=REWARDS.get(task_id, ""),
                options=PERTURBATIONS,
                cameras=("free",) if task_id.startswith("Inverted") else ("track", "free"),
                opengl=True,
                extensible=True,
                source="gymnasium.farama.org/environments/mujoco",
            )
        )


@perturbed
def make(task_id: str, *, max_steps: int = HORIZON, **views: Any) -> gymnasium.Env:
    """One environment of a task, seen as :class:`~dopr_robot.envs.adapters.adapter.Views` says."""
    seen, spec = Views(**views), get_task(task_id)
    seen.check(spec)
    env = gymnasium.make(task_id, max_episode_steps=max_steps, render_mode=seen.render_mode, disable_env_checker=True)
    return Adapter(env, spec, seen, pushed="torso|pole2?")
