"""PushT of gym-pusht: push a T-shaped block onto its outline (Chi et al., 2023; Florence et al., 2021).

The observations are the human demonstrations': ``state``, the pusher's x and y, the block's x, y and angle in [0, 2 pi), and
``keypoint``, nine points of the block, where the angle's jump from 2 pi to 0 is not seen; in pixels of a 512 x 512 table. The action is
the pusher's absolute target.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dopr_robot.envs.adapters.adapter import Adapter, Views
from dopr_robot.envs.perturbations import PERTURBATIONS, perturbed
from dopr_robot.envs.registration import ActionSpec, TaskSpec, register_task

# In the block's own frame, in pixels: means over the demonstrations' 25,650 steps, over which they spread by 0.03.
KEYPOINTS = np.array(
    [
        [9.27, 90.02],
        [-60.99, -1.19],
        [60.91, -1.39],
        [-0.27, 25.54],
        [-14.06, 122.81],
        [39.00, 32.86],
        [-39.95, 32.73],
        [-16.82, 62.87],
        [23.54, -1.70],
    ]
)

SPEC = TaskSpec(
    id="gym_pusht/PushT-v0",
    kind="attain",
    control_hz=10,
    max_steps=300,
    description="push the T onto its outline; success: 95 % of the outline covered; score: coverage as a share of these 95 %, at most 1, "
    "whose largest of an episode Diffusion Policy and LeRobot report",
    observations={"state": (5,), "keypoint": (9, 2)},
    action=ActionSpec("end-effector position", True, "pixel", ("x", "y"), (0.0, 0.0), (512.0, 512.0)),
    entry_point="dopr_robot.envs.adapters.pusht:make_pusht",
    metrics={"coverage": "max", "score": "max"},
    shares=("coverage", "score"),
    options={
        **PERTURBATIONS,
        "disturbance": "standard deviation of a random change of the pusher's speed along both axes at every control step, in pixels/s",
    },
    cameras=("image",),
    package="gym_pusht",
    extra="pusht",
    in_process=True,
    extensible=True,
    source="github.com/huggingface/gym-pusht",
)


def register() -> None:
    """Add the task."""
    register_task(SPEC)


@perturbed
def make_pusht(
    *, max_steps: int = SPEC.max_steps, camera_size: int | tuple[int, int] = 96, **views: Any
) -> gymnasium.Env:
    """One PushT, seen as :class:`~dopr_robot.envs.adapters.adapter.Views` says, at the size of the human demonstrations."""
    seen = Views(camera_size=camera_size, **views)
    seen.check(SPEC, opengl=False)
    import gym_pusht  # noqa: F401 - registers the id

    env = gymnasium.make(
        SPEC.id,
        obs_type="state",
        max_episode_steps=max_steps,
        render_mode="rgb_array",
        visualization_width=seen.width,
        visualization_height=seen.height,
        disable_env_checker=True,
    )
    return PushT(env, seen)


class PushT(Adapter):
    """The demonstrations' state, and their picture."""

    pushed = ["pusher"]
    derived = frozenset({"keypoint"})

    def __init__(self, env: gymnasium.Env, views: Views) -> None:
        super().__init__(env, SPEC, views)
        self.action_dtype = np.dtype(np.float64)
        low, high = env.observation_space.low, env.observation_space.high  # type: ignore[attr-defined]
        # The block can be pushed over the table's edge, which the package's own bounds do not allow for.
        margin = np.array([512, 512, 512, 512, 0])
        bounds = (low - margin).astype(np.float32), (high + margin).astype(np.float32)
        state = spaces.Box(*bounds, dtype=np.float32)
        self.observation_space = spaces.Dict({**self.observation_space.spaces, "state": state})  # type: ignore[attr-defined]
        self._kick = np.zeros(2)

    def observe(self, observation: Any) -> dict[str, Any]:
        x, y, angle = observation[2:]
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        return {"state": observation, "keypoint": KEYPOINTS @ turn.T + (x, y)}

    def draw(self, camera: str, size: tuple[int, int]) -> NDArray[np.uint8]:
        inside: Any = self.unwrapped
        return inside._get_img(inside._draw(), width=size[1], height=size[0])

    def render(self) -> Any:
        return self.env.render()  # with the action marked

    def push(self, forces: NDArray[np.float64]) -> None:
        self._kick = forces[0, :2]

    def neutral(self, observation: Any) -> Any:
        """Where the pusher is."""
        return observation["state"][:2]

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        pusher = self.unwrapped.agent  # type: ignore[attr-defined]
        pusher.velocity += tuple(map(float, self._kick))
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, _settled(reward), terminated, truncated, info

    def judge(self, info: dict[str, Any], terminated: bool) -> dict[str, Any]:
        covered = _settled(info.get("coverage", 0.0))
        enough: float = self.unwrapped.success_threshold  # type: ignore[attr-defined]
        return {"success": bool(info["is_success"]), "coverage": covered, "score": min(covered / enough, 1.0)}


def _settled(area: float) -> float:
    """A figure made of areas, without the digits that differ from run to run.

    The package sums over a Python set of shapes, whose order depends on memory addresses: the last bit is not the seed's.
    """
    return round(float(area), 9)
