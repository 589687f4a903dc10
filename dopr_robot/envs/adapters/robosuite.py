"""robosuite's tasks, and whatever environment a robomimic file's metadata names."""

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium
import numpy as np
from numpy.typing import NDArray

from dopr_robot.envs.adapters import robosuite_steps
from dopr_robot.envs.adapters.adapter import Adapter, Views
from dopr_robot.envs.perturbations import PERTURBATIONS, perturbed
from dopr_robot.envs.registration import ActionSpec, TaskSpec, get_task, register_task
from dopr_robot.envs.rendering import FREE, camera_names
from dopr_robot.envs.segments import Arrays, Segment, SegmentedTask, poses
from dopr_robot.errors import UserError, errors_only

_ONE_ARM = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
_TWO_ARMS = (*_ONE_ARM, "robot1_eef_pos", "robot1_eef_quat", "robot1_gripper_qpos")
_SIZES = {"pos": 3, "quat": 4, "qpos": 2}

TASKS = {
    # name here: robosuite's name, size of the object's observation, longest horizon in the literature, what success is
    "Lift": ("Lift", 10, 400, "lift the cube 4 cm above the table"),
    "Can": ("PickPlaceCan", 14, 400, "bring the can into its bin"),
    "Square": ("NutAssemblySquare", 14, 400, "put the square nut over its peg"),
    "ToolHang": ("ToolHang", 44, 700, "put the frame together and hang the tool on it"),
    "Transport": ("TwoArmTransport", 41, 700, "two arms fetch a hammer, hand it over and bin the trash"),
}
EXPERTS = {
    "Lift": ("robosuite_experts", 1.0, 100, 47.5),
    "Can": ("robosuite_experts", 1.0, 100, 107.7),
    "Square": ("robosuite_experts", 0.99, 100, 103.5),
    "ToolHang": ("robosuite_toolhang", 0.95, 100, 364.5),
    "Transport": ("robosuite_transport", 1.0, 100, 304.4),
}
"""The scripted experts: module, success, on how many seeds, and the mean length of the successful episodes
(benchmarks/expert_success.py --first 1000; ToolHang --first 1400, Transport --first 2000)."""

HANDS = r"robot\d+_(right|left)_hand"
COLLISION = 0
"""The group of geoms that collide, which robosuite does not draw."""


def _cameras(name: str, arms: int) -> list[str]:
    """Of a task, as robosuite names them."""
    around = ["agentview", "frontview", "birdview", *(["sideview"] if name != "Can" else [])]
    around += ["shouldercamera0", "shouldercamera1"] if arms == 2 else []
    return around + [f"robot{arm}_{view}" for arm in range(arms) for view in ("eye_in_hand", "robotview")]


def register() -> None:
    """Add the tasks: ``robosuite/<name>-v0``."""
    for name, (package_name, size, steps, description) in TASKS.items():
        arms = 2 if name == "Transport" else 1
        module, success, seeds, length = EXPERTS[name]
        keys = _TWO_ARMS if arms == 2 else _ONE_ARM
        names = [f"{axis}{arm}" for arm in range(arms) for axis in ("x", "y", "z", "roll", "pitch", "yaw", "gripper")]
        register_task(
            TaskSpec(
                id=f"robosuite/{name}-v0",
                kind="attain",
                control_hz=20,
                max_steps=steps,
                description=f"{description}; success as the package checks it",
                observations={"object": (size,)} | {key: (_SIZES[key.rsplit("_", 1)[-1]],) for key in keys},
                action=ActionSpec(
                    meaning="end-effector displacement and turn (OSC_POSE), and gripper",
                    absolute=False,
                    units=(*("5 cm",) * 3, *("0.5 rad",) * 3, "closed") * arms,
                    names=tuple(names),
                    low=(-1.0,) * 7 * arms,
                    high=(1.0,) * 7 * arms,
                ),
                entry_point="dopr_robot.envs.adapters.robosuite:make",
                arguments={"task_id": f"robosuite/{name}-v0", "package_name": package_name},
                options={
                    "env_args": "environment metadata of a robomimic file (a JSON object): its name and keywords",
                    **PERTURBATIONS,
                },
                cameras=(*_cameras(name, arms), FREE),
                opengl=True,
                extensible=True,
                expert=f"dopr_robot.envs.adapters.{module}:{name}Expert",
                expert_success=success,
                expert_seeds=seeds,
                expert_steps=length,
                segments="dopr_robot.envs.adapters.robosuite:LiftSegments" if name == "Lift" else None,
                package="robosuite",
                extra="robosuite",
                source="robosuite.ai; horizons of robomimic.github.io",
            )
        )


@perturbed
def make(
    task_id: str,
    package_name: str,
    *,
    env_args: Mapping[str, Any] | None = None,
    max_steps: int | None = None,
    **views: Any,
) -> gymnasium.Env:
    """One environment: the task's own, or the one that ``env_args`` describes (``{"env_name": ..., "env_kwargs": {...}}``), seen as
    :class:`~dopr_robot.envs.adapters.adapter.Views` says."""
    seen, spec = Views(**views), get_task(task_id)
    seen.check(spec, known=(*seen.cameras, *filter(None, [seen.camera])) if env_args else None)
    logging.getLogger("robosuite_logs").addFilter(errors_only)
    import robosuite

    described = dict(env_args or {})
    name = str(described.get("env_name", package_name))
    options = dict(described.get("env_kwargs", {})) or _defaults(name)
    if name not in robosuite.ALL_ENVIRONMENTS:
        raise UserError(
            f"robosuite {robosuite.__version__} has no environment {name!r} (it has: {', '.join(sorted(robosuite.ALL_ENVIRONMENTS))})"
        )
    options["controller_configs"] = _composite(options)
    options |= {
        "has_renderer": False,
        "has_offscreen_renderer": False,
        "use_camera_obs": False,
        "ignore_done": True,
        "hard_reset": False,
        "seed": 0,  # of what is drawn while the model is built (the two-arm tasks' hammer): one for all copies
    }
    env = Robosuite(robosuite.make(name, **options), seen.render_mode)
    adapted = RobosuiteAdapter(
        gymnasium.wrappers.TimeLimit(env, max_steps or spec.max_steps), spec, seen, pushed=HANDS, hidden=[COLLISION]
    )
    if env_args:  # an environment of its own has cameras of its own
        seen.check(spec, known=(*camera_names(adapted.physics()[0]), FREE))
    return adapted


def _defaults(name: str) -> dict[str, Any]:
    robots = ["Panda", "Panda"] if name.startswith("TwoArm") else ["Panda"]
    return {"robots": robots, "control_freq": 20, "reward_shaping": False}


def _composite(options: Mapping[str, Any]) -> Any:
    """The controllers in the form of robosuite 1.5; what a file of 1.4 says is kept for every arm."""
    from robosuite.controllers import load_composite_controller_config
    from robosuite.controllers.composite.composite_controller_factory import refactor_composite_controller_config

    configs = options.get("controller_configs")
    robots = options["robots"] if isinstance(options["robots"], list) else [options["robots"]]
    if configs is None:
        return load_composite_controller_config(controller="BASIC", robot=robots[0])
    if isinstance(configs, Mapping) and "body_parts" not in configs:
        return refactor_composite_controller_config(dict(configs), robots[0], ["right"])
    return configs


class Robosuite(gymnasium.Env):
    """robosuite's environment as a Gymnasium one; its randomness comes from the seed."""

    def __init__(self, env: Any, render_mode: str | None) -> None:
        self.env = env
        self.render_mode = render_mode
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": round(env.control_freq)}
        low, high = env.action_spec
        self.action_space = gymnasium.spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
        self.observation_space = gymnasium.spaces.Dict(
            {
                key: gymnasium.spaces.Box(-np.inf, np.inf, np.shape(value), np.float64)
                for key, value in env.observation_spec().items()
            }
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.env.rng = np.random.default_rng(seed)
            for sampler in _samplers(getattr(self.env, "placement_initializer", None)):
                sampler.rng = self.env.rng
            for thing in (self.env.model.mujoco_arena, *self.env.model.mujoco_objects):
                if hasattr(thing, "rng"):  # it draws its orientation, or the dirt on its table
                    thing.rng = self.env.rng
        return self.env.reset(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = robosuite_steps.step(self.env, action)
        return self.current(), reward, False, False, {"success": bool(self.env._check_success())}

    def current(self) -> dict[str, Any]:
        """What the sensors say of the state that the simulator is in now.

        What robosuite's own step returns is of the state after the *first* of its 25 substeps, when it reads its sensors: up to 13 mm
        behind for a hand that moves, while pictures and the observations of a replayed file are of the last.
        """
        import mujoco

        sim = self.env.sim
        # Positions alone: the solver, whose next step would begin otherwise, is left out.
        mujoco.mj_fwdPosition(sim.model._model, sim.data._data)
        return self.env._get_observations(force_update=True)

    def recall(self, state: NDArray[Any]) -> tuple[dict[str, Any], bool]:
        """Put the simulator into a recorded state ``[1 + nq + nv]``: what is observed there, and whether it is a success."""
        self.env.sim.set_state_from_flattened(state)
        return self.current(), bool(self.env._check_success())

    def close(self) -> None:
        self.env.close()


def _samplers(sampler: Any) -> list[Any]:
    """A placement sampler and those inside it."""
    if sampler is None:
        return []
    return [sampler, *(inner for part in getattr(sampler, "samplers", {}).values() for inner in _samplers(part))]


class RobosuiteAdapter(Adapter):
    """robosuite's ``object-state`` under robomimic's name, ``object``."""

    view = "agentview"

    def physics(self) -> tuple[Any, Any]:
        sim = self.unwrapped.env.sim  # type: ignore[attr-defined]
        return sim.model._model, sim.data._data

    def recall(self, state: NDArray[Any]) -> tuple[dict[str, Any], bool]:
        """What the task shows in a recorded state ``[1 + nq + nv]``, pictures included, and whether it is a success."""
        observation, success = self.unwrapped.recall(state)  # type: ignore[attr-defined]
        return self._arrays(observation), success

    def observe(self, observation: Any) -> dict[str, Any]:
        return {key: observation["object-state" if key == "object" else key] for key in self.task.observations}


class LiftSegments(SegmentedTask):
    """All of an episode is relative to the cube. A target is where the source's hand was: its controller need not have been ours."""

    keys: ClassVar = {"object": (10,), "robot0_eef_pos": (3,), "robot0_eef_quat": (4,), "action": (7,)}
    segments = (Segment("cube", symmetry=4),)
    noise = np.array([0.05] * 6 + [0.0])
    gripper = slice(6, 7)
    reach, turn = 0.008, 0.05
    lead = 3
    """OSC_POSE's spring (kp 150, damping ratio 1) trails a steady target by 2 / sqrt(kp) = 0.163 s, 3.3 control steps."""

    scale = np.array([0.05] * 3 + [0.5] * 3)
    """Metres and radians of an action's unit, in OSC_POSE's defaults."""

    def observe(self) -> Arrays:
        return self.env.observation

    def hand(self, arrays: Arrays) -> NDArray[np.float64]:
        return _poses(arrays["robot0_eef_pos"], arrays["robot0_eef_quat"])

    def objects(self, arrays: Arrays) -> dict[str, NDArray[np.float64]]:
        return {"cube": _poses(arrays["object"][:, :3], arrays["object"][:, 3:7])}

    def action(self, target: NDArray[np.float64], gripper: NDArray[np.float64]) -> NDArray[np.float64]:
        from scipy.spatial.transform import Rotation  # here, since listing the tasks loads this module

        hand = self.hand(self.observe())
        turn = Rotation.from_matrix(target[:, :3, :3] @ hand[:, :3, :3].transpose(0, 2, 1)).as_rotvec()
        move = np.concatenate([target[:, :3, 3] - hand[:, :3, 3], turn], axis=1) / self.scale
        return np.concatenate([np.clip(move, -1.0, 1.0), gripper], axis=1)


def _poses(positions: NDArray[Any], quaternions: NDArray[Any]) -> NDArray[np.float64]:
    """From quaternions ``[n, 4]`` in robosuite's order, x, y, z, w; of a copy that was never reset they are zero."""
    from scipy.spatial.transform import Rotation

    quaternions = np.where(quaternions.any(1, keepdims=True), quaternions, [0.0, 0.0, 0.0, 1.0])
    return poses(positions.astype(np.float64), Rotation.from_quat(quaternions).as_matrix())
