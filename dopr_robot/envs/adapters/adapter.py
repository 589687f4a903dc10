"""What the adapters share: a simulator's environment under our contract."""

import os
import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dopr_robot.envs.cameras import CAMERA_SIZE, check_cameras, check_size
from dopr_robot.envs.registration import TaskSpec
from dopr_robot.envs.rendering import SceneRenderer, camera_names, choose_backend, load_mujoco
from dopr_robot.errors import UserError


@dataclass(frozen=True)
class Views:
    """What is to be seen of an environment; the keywords of every adapter.

    Attributes:
        cameras: of the pictures in an observation.
        camera_size: of these pictures: a side, or height and width, in pixels.
        render_mode: None, or ``"rgb_array"`` where ``render()`` is to give frames.
        width, height: of a frame, in pixels.
        camera: of a frame; None: the package's own view.
    """

    cameras: Sequence[str] = ()
    camera_size: int | tuple[int, int] = CAMERA_SIZE
    render_mode: str | None = None
    width: int = 320
    height: int = 240
    camera: str | None = None

    def check(self, task: TaskSpec, *, known: Sequence[str] | None = None, opengl: bool = True) -> None:
        """Before anything is loaded: names, sizes, and that there is an OpenGL where one is needed.

        Args:
            task: which.
            known: its cameras, where they are not the TaskSpec's.
            opengl: whether pictures need one.

        Raises:
            UserError: what is wrong.
        """
        check_size(self.camera_size)
        check_cameras(task, self.cameras, known)
        check_cameras(task, [] if self.camera is None else [self.camera], known)
        if self.render_mode not in (None, "rgb_array"):
            raise UserError(f"render_mode={self.render_mode!r}: simulators render to 'rgb_array' only")
        if not opengl:
            return
        if self.render_mode or self.cameras:
            name_backend()
        load_mujoco()


def name_backend() -> None:
    """Name the OpenGL that works here to the packages that are loaded from now on. Raises UserError where none does."""
    backend = choose_backend()
    os.environ["MUJOCO_GL"] = backend
    if backend in ("egl", "osmesa"):
        os.environ["PYOPENGL_PLATFORM"] = backend


class Adapter(gymnasium.Wrapper):
    """Dict observations in float32, pictures beside them, ``success`` in every info, actions checked and cut to their bounds.

    A subclass says what an observation is (:meth:`observe`) and what success (:meth:`judge`). A task that is attained ends with it; one
    that is sustained is a success until the simulator terminates it.

    Pictures are drawn from a copy of MuJoCo's state: the simulation does not see that somebody looks, and they are the same wherever the
    same state is drawn again. Another simulator overrides :meth:`draw` and :meth:`push`.

    Args:
        env: the simulator's, time limit included.
        task: what it is called here.
        views: what is to be seen of it.
        pushed: regular expression of the names of the bodies that a disturbance pushes.
        hidden: groups of geoms that are in no picture.
        plain: draw as :class:`~dopr_robot.envs.rendering.SceneRenderer` does; False: with the package's shadows.
    """

    derived: AbstractSet[str] = frozenset()
    """Observations that follow from the others."""

    def __init__(
        self,
        env: gymnasium.Env,
        task: TaskSpec,
        views: Views,
        *,
        pushed: str = "",
        hidden: Sequence[int] = (),
        plain: bool = True,
    ) -> None:
        super().__init__(env)
        self.task, self.views = task, views
        self.action_dtype = env.action_space.dtype
        low, high = (np.asarray(bound, np.float32) for bound in (task.action.low, task.action.high))
        self.action_space = spaces.Box(low, high, dtype=np.float32)
        self.picture_size = check_size(views.camera_size)
        picture = spaces.Box(0, 255, (*self.picture_size, 3), np.uint8)
        self.observation_space = spaces.Dict(
            {key: spaces.Box(-np.inf, np.inf, shape, np.float32) for key, shape in task.observations.items()}
            | dict.fromkeys(views.cameras, picture)
        )
        self._drawn_as: dict[str, Any] = {"hidden": hidden, "plain": plain}
        self._renderer: SceneRenderer | None = None
        self._shown: Any = None
        self._pushed = pushed

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

    @property
    def holder(self) -> Any:
        """What has MuJoCo's ``model`` and ``data``."""
        return self.unwrapped

    def physics(self) -> tuple[Any, Any]:
        """MuJoCo's model and data."""
        return self.holder.model, self.holder.data

    @property
    def view(self) -> str:
        """The camera of ``render()``, where none is asked for: the one that follows the robot, as Gymnasium has it."""
        return "track" if "track" in camera_names(self.physics()[0]) else "free"

    @property
    def free_view(self) -> Mapping[str, Any] | None:
        """How the package's own viewer sets MuJoCo's free camera."""
        return getattr(getattr(self.holder, "mujoco_renderer", None), "default_cam_config", None)

    def draw(self, camera: str, size: tuple[int, int]) -> NDArray[np.uint8]:
        """A picture ``[H, W, 3]``, upright."""
        import mujoco

        model, data = self.physics()
        if self._renderer is None or self._renderer.model is not model:  # a package may build its model anew
            if self._renderer is not None:
                self._renderer.close()
            self._renderer = SceneRenderer(model, free=self.free_view, **self._drawn_as)
            self._shown = mujoco.MjData(model)
        shown = self._shown
        shown.qpos[:] = data.qpos
        if model.nmocap:
            shown.mocap_pos[:], shown.mocap_quat[:] = data.mocap_pos, data.mocap_quat
        for part in (mujoco.mj_kinematics, mujoco.mj_comPos, mujoco.mj_camlight, mujoco.mj_flex, mujoco.mj_tendon):
            part(model, shown)
        return self._renderer.frame(shown, size, camera)

    @cached_property
    def pushed(self) -> list[str]:
        """Names of the bodies that :meth:`push` pushes."""
        model = self.physics()[0]
        names = (model.body(index).name for index in range(model.nbody))
        return [name for name in names if re.fullmatch(self._pushed, name) and name]

    def push(self, forces: NDArray[np.float64]) -> None:
        """Push the bodies with forces ``[bodies, 3]``, in newtons, until the next call."""
        model, data = self.physics()
        for name, force in zip(self.pushed, forces, strict=True):
            data.xfrc_applied[model.body(name).id, :3] = force

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """The package's; ``info["initial_state"]`` is what tells one episode from another, whatever is seen of it."""
        observation, info = self.env.reset(seed=seed, options=options)
        arrays = self._arrays(observation)
        state = np.concatenate([arrays[key].ravel() for key in sorted({*self.task.observations} - self.derived)])
        return arrays, {**self.judge(info, False), "initial_state": state}

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

    def render(self) -> Any:
        return self.draw(self.views.camera or self.view, (self.views.height, self.views.width))

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
        super().close()

    def _arrays(self, observation: Any) -> dict[str, Any]:
        seen = {key: np.asarray(value, np.float32) for key, value in self.observe(observation).items()}
        return seen | {camera: self.draw(camera, self.picture_size) for camera in self.views.cameras}
