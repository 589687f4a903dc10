"""What the adapters share: a simulator's environment under our contract."""

import os
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from dopr_robot.envs.registration import TaskSpec
from dopr_robot.envs.rendering import choose_backend, load_mujoco
from dopr_robot.errors import UserError


class Adapter(gymnasium.Wrapper):
    """Dict observations in float32, ``success`` in every info, actions checked and cut to their bounds.

    A subclass says what an observation is (:meth:`observe`) and what success (:meth:`judge`). A task that is attained ends with it; one
    that is sustained is a success until the simulator terminates it.

    Args:
        env: the simulator's, time limit included.
        task: what it is called here.
    """

    def __init__(self, env: gymnasium.Env, task: TaskSpec) -> None:
        super().__init__(env)
        self.task = task
        model = getattr(env.unwrapped, "model", None)
        if model is not None and hasattr(
            model, "vis"
        ):  # what a software renderer cannot afford, see dopr_robot.envs.rendering
            model.vis.quality.offsamples = model.vis.quality.shadowsize = 0
        self.action_dtype = env.action_space.dtype
        low, high = (np.asarray(bound, np.float32) for bound in (task.action.low, task.action.high))
        self.action_space = spaces.Box(low, high, dtype=np.float32)
        self.observation_space = spaces.Dict(
            {key: spaces.Box(-np.inf, np.inf, shape, np.float32) for key, shape in task.observations.items()}
        )

    @property
    def spec(self) -> None:  # type: ignore[override]
        """None: it is not from Gymnasium's registry that this environment could be made again, see ``task``."""
        return None

    def observe(self, observation: Any) -> dict[str, Any]:
        """The arrays of an observation."""
        return {"state": observation}

    def judge(self, info: dict[str, Any], terminated: bool) -> dict[str, Any]:
        """``success`` and further entries of our info."""
        if self.task.kind == "sustain":
            return {"success": not terminated} | ({"cause": "the simulator ended the episode"} if terminated else {})
        return {"success": bool(info.get("success", False))}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return self._arrays(observation), self.judge(info, False)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        action = np.asarray(action, np.float32)
        space = self.action_space
        assert isinstance(space, spaces.Box)
        if action.shape != space.shape:
            raise UserError(f"the action has shape {list(action.shape)}, {self.task.id} expects {list(space.shape)}")
        if not np.isfinite(action).all():
            raise UserError(f"the action is not finite: {action}")
        action = np.clip(action, space.low, space.high).astype(self.action_dtype)
        observation, reward, terminated, truncated, info = self.env.step(action)
        ours = self.judge(info, bool(terminated))
        ended = bool(terminated) or (self.task.kind == "attain" and ours["success"])
        return self._arrays(observation), float(reward), ended, bool(truncated), ours

    def _arrays(self, observation: Any) -> dict[str, Any]:
        return {key: np.asarray(value, np.float32) for key, value in self.observe(observation).items()}


def prepare_rendering(render_mode: str | None, needed: bool = False) -> None:
    """Let the simulator that is about to be imported make its OpenGL contexts as this machine can, in the process that calls.

    Raises:
        UserError: a mode that is no picture, no OpenGL works, or MuJoCo can not be loaded with the one that is asked for.
    """
    if render_mode not in (None, "rgb_array"):
        raise UserError(f"render_mode={render_mode!r}: simulators render to 'rgb_array' only")
    if render_mode or needed:
        backend = choose_backend()
        os.environ["MUJOCO_GL"] = backend
        if backend in ("egl", "osmesa"):
            os.environ["PYOPENGL_PLATFORM"] = backend
    load_mujoco()
