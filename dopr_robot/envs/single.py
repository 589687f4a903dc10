"""The single environment: the batched one with one copy, so that both are the same to the bit."""

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from dopr_robot.envs.batched import BatchedMujocoEnv


class MujocoEnv(gymnasium.Env):
    """One copy of a task; a subclass names the batched class. Keywords are the batched class's."""

    batched: ClassVar[type[BatchedMujocoEnv]]

    def __init__(self, **kwargs: Any) -> None:
        self.vector = self.batched(1, autoreset_mode=AutoresetMode.DISABLED, **kwargs)
        self.render_mode = self.vector.render_mode
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": self.vector.metadata["render_fps"]}
        self.observation_space = self.vector.single_observation_space
        self.action_space = self.vector.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        observation, info = self.vector.reset(seed=seed if seed is None else [seed])
        return _first(observation), _first(info)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.vector.step(np.asarray(action)[None])
        return _first(observation), float(reward[0]), bool(terminated[0]), bool(truncated[0]), _first(info)

    def render(self) -> Any:
        return self.vector.render()[0]

    def close(self) -> None:
        self.vector.close()


def _first(arrays: dict[str, Any]) -> dict[str, Any]:
    """The one copy's entries, without the masks that say which copies have one."""
    single = {key: value[0] for key, value in arrays.items() if not key.startswith("_")}
    return {key: bool(value) if isinstance(value, np.bool_) else value for key, value in single.items()}
