"""Gymnasium-Robotics: Adroit's hand, the Franka kitchen, the Fetch arm, point mazes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from dopr_robot.envs.adapters.adapter import Adapter, Views
from dopr_robot.envs.perturbations import PERTURBATIONS, perturbed
from dopr_robot.envs.registration import ActionSpec, TaskSpec, get_task, register_task
from dopr_robot.errors import UserError

KITCHEN = ("microwave", "kettle", "light switch", "slide cabinet")
"""What the kitchen's demonstrations of D4RL do, in the package's own order and names."""

ADROIT = {
    "AdroitHandDoor-v1": (39, 28, "undo the latch and open the door"),
    "AdroitHandHammer-v1": (46, 26, "drive the nail into the board"),
    "AdroitHandPen-v1": (45, 24, "turn the pen to the wanted orientation"),
    "AdroitHandRelocate-v1": (39, 30, "bring the ball to the target"),
}
STARTS = {
    "Door": ("door_body_pos",),
    "Hammer": ("board_pos",),
    "Pen": ("desired_orien",),
    "Relocate": ("obj_pos", "target_pos"),
}
"""What ``set_env_state`` of the hand's tasks takes beside positions and velocities; DAPG's files have more."""
FETCH = {
    "FetchReach-v4": (10, "bring the gripper within 5 cm of the target"),
    "FetchPush-v4": (25, "push the block within 5 cm of the target"),
    "FetchSlide-v4": (25, "hit the puck so that it comes to lie within 5 cm of the target"),
    "FetchPickAndPlace-v4": (25, "bring the block within 5 cm of a target that may be in the air"),
}
MAZES = {"PointMaze_UMaze-v3": 300, "PointMaze_Medium-v3": 600, "PointMaze_Large-v3": 800}

PUSHED = "palm|panda0_link7|robot0:gripper_link|particle"
"""What a disturbance pushes: the hand, or the ball."""

_GOAL = "desired_goal"
_ADROIT_CAMERAS, _CAPS = ("fixed", "vil_camera"), ("left_cap", "right_cap")
_FETCH = ("head_camera_rgb", "gripper_camera_rgb", "external_camera_0", "lidar")


def register() -> None:
    """Add the tasks."""
    for task_id, (size, joints, description) in ADROIT.items():
        cameras = (*_ADROIT_CAMERAS, *(f"view_{view}" for view in range(1, 6) if "Pen" in task_id))
        meaning = "joint position, scaled to its range"
        start = ("qpos", "qvel", *STARTS[task_id.removeprefix("AdroitHand").removesuffix("-v1")])
        _add(task_id, 100, 200, description, {"state": (size,)}, joints, meaning, True, cameras, start=start)
    kitchen = "bring microwave, kettle, light switch and slide cabinet to their goals, in any order; success: all four"
    _add("FrankaKitchen-v1", 12.5, 280, kitchen, {"state": (59,)}, 9, "joint velocity, scaled", False, _CAPS, _stages())
    for task_id, (size, description) in FETCH.items():
        observations = {"state": (size,), _GOAL: (3,)}
        _add(task_id, 25, 50, description, observations, 4, "end-effector and gripper displacement", False, _FETCH)
    for task_id, steps in MAZES.items():
        observations = {"state": (4,), _GOAL: (2,)}
        _add(task_id, 10, steps, "roll the ball within 0.45 m of the goal", observations, 2, "force on the ball", True)


def _add(
    task_id: str,
    hertz: float,
    steps: int,
    description: str,
    observations: Mapping[str, tuple[int, ...]],
    size: int,
    meaning: str,
    absolute: bool,
    cameras: tuple[str, ...] = (),
    stages: tuple[str, ...] = (),
    start: tuple[str, ...] = (),
) -> None:
    register_task(
        TaskSpec(
            id=task_id,
            kind="attain",
            control_hz=hertz,
            max_steps=steps,
            description=description,
            observations=observations,
            action=ActionSpec(
                meaning=meaning,
                absolute=absolute,
                units="share of the range",
                names=tuple(f"action{index}" for index in range(size)),
                low=(-1.0,) * size,
                high=(1.0,) * size,
            ),
            entry_point="dopr_robot.envs.adapters.gymnasium_robotics:make",
            arguments={"task_id": task_id},
            options=PERTURBATIONS,
            cameras=(*cameras, "free"),
            opengl=True,
            stages=stages,
            start=start,
            extensible=True,
            package="gymnasium_robotics",
            extra="gymnasium-robotics",
            source="robotics.farama.org",
        )
    )


def _stages() -> tuple[str, ...]:
    return tuple(name.replace(" ", "_") for name in KITCHEN)


@perturbed
def make(task_id: str, *, max_steps: int | None = None, **views: Any) -> gymnasium.Env:
    """One environment of a task, seen as :class:`~dopr_robot.envs.adapters.adapter.Views` says."""
    seen, spec = Views(**views), get_task(task_id)
    seen.check(spec)
    import gymnasium_robotics

    gymnasium.register_envs(gymnasium_robotics)
    options: dict[str, Any] = {"tasks_to_complete": list(KITCHEN)} if spec.stages else {}
    env = gymnasium.make(
        task_id,
        max_episode_steps=max_steps or spec.max_steps,
        render_mode=seen.render_mode,
        disable_env_checker=True,
        **options,
    )
    model = getattr(env.unwrapped, "tmp_xml_file_path", None)
    if model is not None:  # a maze's, which the package leaves in the temporary folder
        Path(model).unlink(missing_ok=True)
    return Robotics(env, spec, seen, pushed=PUSHED)


class Robotics(Adapter):
    """The package's four families: a plain vector (Adroit), or one with a goal beside it."""

    @property
    def holder(self) -> Any:
        """Mazes and the kitchen have an environment of the robot inside."""
        whole: Any = self.unwrapped
        return getattr(whole, "point_env", None) or getattr(whole, "robot_env", None) or whole

    def neutral(self, observation: Any) -> NDArray[np.float64]:
        """Adroit's actions are positions of the joints: the ones where they are. Elsewhere nothing moves without an action."""
        if not self.task.action.absolute or not hasattr(self.holder, "act_mean"):
            return np.zeros(len(self.task.action.low))
        mean, half = self.holder.act_mean, self.holder.act_rng
        return (self.holder.data.qpos[: len(mean)] - mean) / half

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As the package's; of ``initial_state_dict`` it gets the parts that it takes."""
        given = (options or {}).get("initial_state_dict")
        if given is not None:
            state = {part: np.asarray(given[part], np.float64) for part in self.task.start if part in given}
            space: Any = self.unwrapped._state_space if self.task.start else None  # type: ignore[attr-defined]
            if space is None or not space.contains(state):
                wanted = ", ".join(f"{part} {list(each.shape)}" for part, each in space.items()) if space else "nothing"
                raise UserError(f"{self.task.id} does not begin in the recorded state: it takes {wanted}")
            options = {**(options or {}), "initial_state_dict": state}
        return super().reset(seed=seed, options=options)

    def observe(self, observation: Any) -> dict[str, Any]:
        if not isinstance(observation, dict):
            return {"state": observation}
        arrays = {"state": observation["observation"], _GOAL: observation[_GOAL]}
        return {key: arrays[key] for key in self.task.observations}

    def judge(self, info: dict[str, Any], terminated: bool) -> dict[str, Any]:
        if self.task.stages:
            done = info.get("episode_task_completions", [])
            stages = {stage: name in done for stage, name in zip(self.task.stages, KITCHEN, strict=True)}
            return {"success": all(stages.values()), **stages}
        return {"success": bool(np.any(info.get("success", info.get("is_success", False))))}
