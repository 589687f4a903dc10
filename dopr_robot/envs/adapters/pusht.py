"""PushT of gym-pusht: push a T-shaped block onto its outline (Chi et al., 2023; Florence et al., 2021).

The observation is the human demonstrations' ``state``: the pusher's x and y, the block's x, y and angle in [0, 2 pi); pixels of a
512 x 512 table. The action is the pusher's absolute target.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from dopr_robot.envs.adapters.adapter import Adapter
from dopr_robot.envs.registration import ActionSpec, TaskSpec, register_task

SPEC = TaskSpec(
    id="gym_pusht/PushT-v0",
    kind="attain",
    control_hz=10,
    max_steps=300,
    description="push the T onto its outline; success: 95 % of the outline covered",
    observations={"state": (5,)},
    action=ActionSpec("end-effector position", True, "pixel", ("x", "y"), (0.0, 0.0), (512.0, 512.0)),
    entry_point="dopr_robot.envs.adapters.pusht:make_pusht",
    metrics={"coverage": "max"},
    package="gym_pusht",
    extra="pusht",
    in_process=True,
    source="github.com/huggingface/gym-pusht",
)


def register() -> None:
    """Add the task."""
    register_task(SPEC)


def make_pusht(
    *, max_steps: int = SPEC.max_steps, render_mode: str | None = None, width: int = 240, height: int = 240
) -> gymnasium.Env:
    """One PushT with our contract; ``width`` and ``height`` are those of the rendered frame."""
    import gym_pusht  # noqa: F401 - registers the id

    env = gymnasium.make(
        SPEC.id,
        obs_type="state",
        max_episode_steps=max_steps,
        render_mode=render_mode or "rgb_array",
        visualization_width=width,
        visualization_height=height,
        disable_env_checker=True,
    )
    return PushT(env)


class PushT(Adapter):
    """The demonstrations' state."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env, SPEC)
        self.action_dtype = np.dtype(np.float64)
        low, high = env.observation_space.low, env.observation_space.high  # type: ignore[attr-defined]
        # The block can be pushed over the table's edge, which the package's own bounds do not allow for.
        margin = np.array([512, 512, 512, 512, 0])
        bounds = (low - margin).astype(np.float32), (high + margin).astype(np.float32)
        self.observation_space = spaces.Dict({"state": spaces.Box(*bounds, dtype=np.float32)})

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, _settled(reward), terminated, truncated, info

    def judge(self, info: dict[str, Any], terminated: bool) -> dict[str, Any]:
        return {"success": bool(info["is_success"]), "coverage": _settled(info.get("coverage", 0.0))}


def _settled(area: float) -> float:
    """A figure made of areas, without the digits that differ from run to run.

    The package sums over a Python set of shapes, whose order depends on memory addresses: the last bit is not the seed's.
    """
    return round(float(area), 9)
