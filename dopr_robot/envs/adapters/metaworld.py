"""Meta-World's 50 tasks of a Sawyer arm, with the package's scripted experts (Yu et al., 2019; v3 of the Farama Foundation)."""

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from dopr_robot.envs.adapters.adapter import Adapter, prepare_rendering
from dopr_robot.envs.registration import ActionSpec, TaskSpec, get_task, register_task

TASKS = [
    "assembly",
    "basketball",
    "bin-picking",
    "box-close",
    "button-press",
    "button-press-topdown",
    "button-press-topdown-wall",
    "button-press-wall",
    "coffee-button",
    "coffee-pull",
    "coffee-push",
    "dial-turn",
    "disassemble",
    "door-close",
    "door-lock",
    "door-open",
    "door-unlock",
    "drawer-close",
    "drawer-open",
    "faucet-close",
    "faucet-open",
    "hammer",
    "hand-insert",
    "handle-press",
    "handle-press-side",
    "handle-pull",
    "handle-pull-side",
    "lever-pull",
    "peg-insert-side",
    "peg-unplug-side",
    "pick-out-of-hole",
    "pick-place",
    "pick-place-wall",
    "plate-slide",
    "plate-slide-back",
    "plate-slide-back-side",
    "plate-slide-side",
    "push",
    "push-back",
    "push-wall",
    "reach",
    "reach-wall",
    "shelf-place",
    "soccer",
    "stick-pull",
    "stick-push",
    "sweep",
    "sweep-into",
    "window-close",
    "window-open",
]
HORIZON = 500


def register() -> None:
    """Add the tasks: ``metaworld/<name>-v3``."""
    for name in TASKS:
        register_task(
            TaskSpec(
                id=f"metaworld/{name}-v3",
                kind="attain",
                control_hz=80,
                max_steps=HORIZON,
                description=f"{name.replace('-', ' ')}; success as the package's reward defines it; objects and goal vary with the seed",
                observations={"state": (39,)},
                action=ActionSpec(
                    meaning="end-effector displacement and gripper effort",
                    absolute=False,
                    units=("cm", "cm", "cm", "share of the effort"),
                    names=("x", "y", "z", "gripper"),
                    low=(-1.0,) * 4,
                    high=(1.0,) * 4,
                ),
                entry_point="dopr_robot.envs.adapters.metaworld:make",
                arguments={"name": f"{name}-v3"},
                expert="dopr_robot.envs.adapters.metaworld:ScriptedExpert",
                package="metaworld",
                extra="metaworld",
                source="github.com/Farama-Foundation/Metaworld",
            )
        )


def make(
    name: str, *, max_steps: int = HORIZON, render_mode: str | None = None, width: int = 320, height: int = 240
) -> gymnasium.Env:
    """One environment of a task; the goal is part of the observation."""
    prepare_rendering(render_mode)
    import metaworld

    options: dict[str, Any] = {"camera_name": "corner2", "width": width, "height": height} if render_mode else {}
    env = metaworld.ALL_V3_ENVIRONMENTS[name](render_mode=render_mode, **options)
    env._partially_observable = False
    # What the package's own benchmarks set before they hand over a task; here the seed chooses objects and goal.
    env._freeze_rand_vec = False
    env._set_task_called = True
    env.seeded_rand_vec = True
    return MetaWorld(gymnasium.wrappers.TimeLimit(env, min(max_steps, HORIZON)), get_task(f"metaworld/{name}"))


class MetaWorld(Adapter):
    """``reset(seed=...)`` decides the episode: the package's own ignores it. Its cameras hang upside down."""

    def render(self) -> Any:
        return np.ascontiguousarray(self.env.render()[::-1, ::-1])  # type: ignore[index, call-overload]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.unwrapped.seed(seed)  # type: ignore[attr-defined]
        observation, info = super().reset(options=options)
        return observation, info


class ScriptedExpert:
    """The package's own policy of the task; it reads the observation."""

    noise = np.full(4, 0.1)

    def __init__(self, env: Any) -> None:
        from metaworld.policies import ENV_POLICY_MAP

        self.env = env
        self.policy = ENV_POLICY_MAP[env.task.arguments["name"]]()

    def act(self) -> NDArray[np.float64]:
        """Clean actions, ``[N, 4]``."""
        states = self.env.observation["state"].astype(np.float64)
        return np.clip(np.stack([self.policy.get_action(state) for state in states]), -1.0, 1.0)
