"""Meta-World's 50 tasks of a Sawyer arm, with the package's scripted experts (Yu et al., 2019; v3 of the Farama Foundation)."""

import pickle
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray

from dopr_robot.envs.adapters.adapter import Adapter, Views
from dopr_robot.envs.adapters.metaworld_steps import quicken
from dopr_robot.envs.perturbations import PERTURBATIONS, perturbed
from dopr_robot.envs.registration import ActionSpec, TaskSpec, get_task, register_task

TASKS = {
    # name: share of 50 seeds on which the expert succeeds (benchmarks/expert_success.py)
    "assembly": 1.0,
    "basketball": 0.98,
    "bin-picking": 1.0,
    "box-close": 0.94,
    "button-press": 1.0,
    "button-press-topdown": 1.0,
    "button-press-topdown-wall": 1.0,
    "button-press-wall": 1.0,
    "coffee-button": 1.0,
    "coffee-pull": 1.0,
    "coffee-push": 1.0,
    "dial-turn": 1.0,
    "disassemble": 0.9,
    "door-close": 1.0,
    "door-lock": 1.0,
    "door-open": 0.94,
    "door-unlock": 1.0,
    "drawer-close": 1.0,
    "drawer-open": 1.0,
    "faucet-close": 1.0,
    "faucet-open": 1.0,
    "hammer": 1.0,
    "hand-insert": 0.98,
    "handle-press": 1.0,
    "handle-press-side": 1.0,
    "handle-pull": 1.0,
    "handle-pull-side": 0.9,
    "lever-pull": 1.0,
    "peg-insert-side": 0.9,
    "peg-unplug-side": 1.0,
    "pick-out-of-hole": 1.0,
    "pick-place": 1.0,
    "pick-place-wall": 1.0,
    "plate-slide": 1.0,
    "plate-slide-back": 1.0,
    "plate-slide-back-side": 1.0,
    "plate-slide-side": 1.0,
    "push": 0.98,
    "push-back": 1.0,
    "push-wall": 1.0,
    "reach": 1.0,
    "reach-wall": 1.0,
    "shelf-place": 0.94,
    "soccer": 0.92,
    "stick-pull": 0.9,
    "stick-push": 1.0,
    "sweep": 1.0,
    "sweep-into": 0.92,
    "window-close": 1.0,
    "window-open": 1.0,
}
WITHOUT_NOISE = {
    "basketball": 1.0,
    "box-close": 0.88,
    "disassemble": 0.92,
    "door-open": 0.96,
    "hand-insert": 1.0,
    "handle-pull-side": 1.0,
    "peg-insert-side": 0.92,
    "push": 1.0,
    "shelf-place": 0.96,
    "soccer": 0.88,
    "stick-pull": 0.86,
    "sweep-into": 0.92,
}
"""Where the expert fails on some seeds: its success without the noise. Below 1 the fault is the package's."""
GROUPS = {
    "easy": """button-press button-press-topdown button-press-topdown-wall button-press-wall coffee-button dial-turn door-close door-lock
        door-open door-unlock drawer-close drawer-open faucet-close faucet-open handle-press handle-press-side handle-pull
        handle-pull-side lever-pull peg-unplug-side plate-slide plate-slide-back plate-slide-back-side plate-slide-side reach reach-wall
        window-close window-open""",
    "medium": """basketball bin-picking box-close coffee-pull coffee-push hammer peg-insert-side push-wall soccer sweep sweep-into""",
    "hard": "assembly hand-insert pick-out-of-hole pick-place push push-back",
    "very-hard": "disassemble pick-place-wall shelf-place stick-pull stick-push",
}
"""How papers report them: Seo et al., "Masked World Models for Visual Control" (2022, arXiv 2206.14244), appendix."""
REPORTED = {
    "hand-insert": "issue 567: it does not complete the task",
    "peg-insert-side": "pull request 569: it succeeds in 82.4% of 1,000 episodes",
    "push": "issue 514: it fails under newer versions",
}
"""What others say of an expert, in the threads of Farama-Foundation/Metaworld."""
HORIZON = 500
CAMERAS = ("topview", "corner", "corner2", "corner3", "corner4", "behindGripper", "gripperPOV", "free")
UPSIDE_DOWN = ("corner", "corner2", "corner3", "corner4")
"""Cameras that hang upside down in the package."""


def register() -> None:
    """Add the tasks: ``metaworld/<name>-v3``."""
    group_of = {name: f"metaworld/{group}" for group, names in GROUPS.items() for name in names.split()}
    for name, success in TASKS.items():
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
                expert_success=success,
                expert_seeds=50,
                expert_fault=_fault(name),
                options=PERTURBATIONS,
                cameras=CAMERAS,
                opengl=True,
                groups=(group_of[name],),
                package="metaworld",
                extra="metaworld",
                source="github.com/Farama-Foundation/Metaworld",
            )
        )


def _fault(name: str) -> str:
    if name not in WITHOUT_NOISE:
        return ""
    share = WITHOUT_NOISE[name]
    seen = (
        "under the noise alone"
        if share == 1
        else f"without the noise too (it succeeds on {share:.0%} of the seeds then)"
    )
    return seen + (f"; reported in Farama-Foundation/Metaworld, {REPORTED[name]}" if name in REPORTED else "")


@perturbed
def make(name: str, *, max_steps: int = HORIZON, **views: Any) -> gymnasium.Env:
    """One environment of a task, seen as :class:`~dopr_robot.envs.adapters.adapter.Views` says; the goal is part of the observation."""
    seen, spec = Views(**views), get_task(f"metaworld/{name}")
    seen.check(spec)
    import metaworld

    env = metaworld.ALL_V3_ENVIRONMENTS[name](render_mode=seen.render_mode)
    quicken(env)
    return MetaWorld(gymnasium.wrappers.TimeLimit(env, min(max_steps, HORIZON)), spec, seen, pushed="hand")


class MetaWorld(Adapter):
    """``reset(seed=...)`` draws a task and sets it, as the package's benchmark MT1 does."""

    view = "corner2"

    def draw(self, camera: str, size: tuple[int, int]) -> NDArray[np.uint8]:
        picture = super().draw(camera, size)
        return np.ascontiguousarray(picture[::-1, ::-1]) if camera in UPSIDE_DOWN else picture

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        env: Any = self.unwrapped
        if seed is not None:
            env.seed(seed)  # the package's own reset ignores its seed
        # The package draws its tasks in a private function alone, 50 of them in two seconds: let a reset draw one, as that function does.
        env._freeze_rand_vec, env.seeded_rand_vec = False, True
        env.reset()
        drawn = {"rand_vec": env._last_rand_vec, "env_cls": type(env), "partially_observable": False}
        # All else is the package's: what the goal's being visible entails, and a state that owes nothing to the one before.
        env.set_task(Task(self.task.arguments["name"], pickle.dumps(drawn)))
        return super().reset(options=options)


class Task(NamedTuple):
    """What the package's ``set_task`` reads; its own type can not be imported before ``MUJOCO_GL`` is set."""

    env_name: str
    data: bytes


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
