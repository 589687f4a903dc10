"""N copies of a MuJoCo task, stepped by C++ threads.

To write a task, subclass :class:`BatchedMujocoEnv`, set ``task``, and give five hooks. All of them see arrays over copies:

- ``make_model(**options) -> mujoco.MjModel``: built once; keywords of the environment that the core does not know are the options.
- ``initial(rng) -> Initial``: one episode's start, drawn from ``rng`` alone. Its ``variables`` (a goal, a path) are kept for the
  episode in ``self.variables[name]``, ``[N, ...]``.
- ``observe() -> {key: [N, ...]}``: from ``self.qpos``, ``self.qvel``, ``self.sensor(name)``, ``self.variables``, ``self.elapsed``.
- ``control(action [N, A]) -> [N, nu]``: actuator values, held during a control step.
- ``judge() -> Verdict``: success and failure now.

Further hooks may stay as they are: ``decorate(scene, copy)`` adds drawings (a goal, a path) to a rendered scene, ``measure()`` figures to
``info``, ``remember(copies)`` keeps in ``variables`` what an episode has come to so far, ``neutral()`` is done while a delayed first
action is on its way. ``pushed`` names the body that a disturbance pushes.
The single environment is the same code with one copy, see :mod:`dopr_robot.envs.single`.
"""

import os
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import mujoco
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from mujoco.rollout import Rollout
from numpy.typing import NDArray

from dopr_robot.envs.cameras import CAMERA_SIZE, check_cameras, check_size
from dopr_robot.envs.perturbations import PERTURBATIONS, Distortion, Perturbations
from dopr_robot.envs.pushes import Pushes
from dopr_robot.envs.registration import TaskSpec
from dopr_robot.envs.rendering import SceneRenderer, choose_backend
from dopr_robot.errors import UserError

STATE = mujoco.mjtState.mjSTATE_FULLPHYSICS
UNSTABLE = "the simulation became unstable"

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Initial:
    """Start of an episode: generalised positions and velocities, and what the task keeps for the episode."""

    qpos: Floats
    qvel: Floats
    variables: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """Of every copy: has it succeeded, has it failed, and why (empty text: no cause)."""

    success: Bools
    failed: Bools
    cause: Sequence[str]


class BatchedMujocoEnv(VectorEnv):
    """Base of our tasks: a ``gymnasium.vector.VectorEnv`` on ``mujoco.rollout``.

    An episode is a function of its seed and its actions alone, to the bit: every control step begins from the copy's full physics
    state and a solver without memory, so neither the number of copies nor threads nor neighbours show in it. Sensors are those of the
    beginning of the last physics step, one timestep (a few milliseconds) before the state, at every step alike.

    Args:
        num_envs: copies.
        max_steps: control steps after which an episode is truncated; None: the task's longest horizon.
        autoreset_mode: as Gymnasium defines it; with ``DISABLED``, a finished copy stands still until it is reset by
            ``reset(seed=[...], options={"reset_mask": bool[N]})``.
        render_mode: None or ``"rgb_array"``.
        width, height, camera: of the rendered frames.
        threads: of the physics; None: one a core.
        cameras, camera_size: pictures beside the state, see :mod:`dopr_robot.envs.cameras`.
        obs, image_size: the same as old records have it: keys of the observation, ``state`` and cameras, and ``(H, W)``.
        **options: the task's own, as its TaskSpec lists them, and :data:`dopr_robot.envs.perturbations.PERTURBATIONS`.

    Raises:
        UserError: an option that the task does not have, or a value out of its range.
    """

    task: ClassVar[TaskSpec]
    pushed: ClassVar[str]
    default_disturbance: ClassVar[float] = 0.0

    def __init__(
        self,
        num_envs: int = 1,
        *,
        max_steps: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        width: int = 320,
        height: int = 240,
        camera: str | None = None,
        threads: int | None = None,
        cameras: Sequence[str] = (),
        camera_size: int | tuple[int, int] = CAMERA_SIZE,
        obs: Sequence[str] | None = None,
        image_size: tuple[int, int] = (96, 96),
        **options: Any,
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise UserError(f"render_mode={render_mode!r}: {self.task.id} renders to 'rgb_array' only")
        for name in options:
            if name not in self.task.options:
                raise UserError(f"{self.task.id} has no option {name!r} (it has: {', '.join(self.task.options)})")
        told = {name: options.pop(name) for name in PERTURBATIONS if name in options}
        told = {name: value for name, value in told.items() if value is not None}  # old records say null
        self.perturbations = Perturbations(**{"disturbance": self.default_disturbance, **told})
        vectors = dict(self.task.observations)
        if obs is not None:
            cameras, camera_size = [key for key in obs if key not in vectors], image_size
            vectors = {key: shape for key, shape in vectors.items() if key in obs}
        self.cameras, size = check_cameras(self.task, cameras), check_size(camera_size)
        self.perturbations.need_pictures(self.cameras)
        if self.cameras:
            choose_backend()
        self.num_envs = num_envs
        self.max_steps = self.task.max_steps if max_steps is None else max_steps
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.render_mode = render_mode
        self.metadata = {
            "render_modes": ["rgb_array"],
            "render_fps": round(self.task.control_hz),
            "autoreset_mode": self.autoreset_mode,
        }
        self.model = self.make_model(**options)
        steps = 1.0 / (self.task.control_hz * self.model.opt.timestep)
        self.substeps = round(steps)
        assert abs(steps - self.substeps) < 1e-6, f"{self.task.id}: the control period is no multiple of the timestep"
        threads = min(threads or os.cpu_count() or 1, num_envs)
        self._datas = [mujoco.MjData(self.model) for _ in range(threads)]
        self._rollout = Rollout(nthread=threads if threads > 1 else 0)
        self._renderer: SceneRenderer | None = None
        self._frame = ((height, width), camera)
        force = self.perturbations.disturbance
        self._pushes = Pushes(self.model, self.pushed, force) if force else None

        self.physics = np.zeros((num_envs, mujoco.mj_stateSize(self.model, STATE)))
        self.sensors = np.zeros((num_envs, self.model.nsensordata))
        self.elapsed = np.zeros(num_envs, np.int64)
        self.variables: dict[str, NDArray[Any]] = {}
        self._rngs: list[np.random.Generator] = [np.random.default_rng() for _ in range(num_envs)]
        self._waiting = np.ones(num_envs, bool)  # finished, or never reset
        ends = self.model.sensor_adr + self.model.sensor_dim
        self._sensor_at = {
            self.model.sensor(index).name: slice(start, end)
            for index, (start, end) in enumerate(zip(self.model.sensor_adr, ends, strict=True))
        }
        low, high = (np.asarray(bound, np.float32) for bound in (self.task.action.low, self.task.action.high))
        self.single_action_space = spaces.Box(low, high, dtype=np.float32)
        self.single_observation_space = spaces.Dict(
            {key: spaces.Box(-np.inf, np.inf, shape, np.float32) for key, shape in vectors.items()}
            | {key: spaces.Box(0, 255, (*size, 3), np.uint8) for key in self.cameras}
        )
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._unseen = np.ones(num_envs, bool)  # copies that have moved since they were last observed
        self._noise = {key: np.zeros((num_envs, *shape)) for key, shape in vectors.items()}
        self._images = {key: np.zeros((num_envs, *size, 3), np.uint8) for key in self.cameras}
        self._distortions: list[dict[str, Distortion]] = [{} for _ in range(num_envs)]
        self._delayed = np.zeros((num_envs, self.perturbations.action_delay, len(low)))

    # What a task writes

    @abstractmethod
    def make_model(self, **options: Any) -> mujoco.MjModel: ...

    @abstractmethod
    def initial(self, rng: np.random.Generator) -> Initial: ...

    @abstractmethod
    def observe(self) -> dict[str, NDArray[Any]]: ...

    @abstractmethod
    def control(self, action: Floats) -> Floats: ...

    @abstractmethod
    def judge(self) -> Verdict: ...

    def measure(self) -> dict[str, NDArray[Any]]:
        """Further figures of every copy for ``info``."""
        return {}

    def remember(self, copies: Bools) -> None:
        """Bring ``variables`` of the copies that were just stepped, ``bool [N]``, up to date."""

    def neutral(self) -> Floats:
        """Actions ``[N, A]`` that leave every copy as it is, as well as an action can."""
        return np.zeros(self.action_space.shape or ())

    def decorate(self, scene: Any, copy: int) -> None:
        """Draw what is not in the model into a rendered scene."""

    # What a task reads

    @property
    def qpos(self) -> Floats:
        """Generalised positions, ``[N, nq]``."""
        return self.physics[:, 1 : 1 + self.model.nq]

    @property
    def qvel(self) -> Floats:
        """Generalised velocities, ``[N, nv]``."""
        return self.physics[:, 1 + self.model.nq : 1 + self.model.nq + self.model.nv]

    def sensor(self, name: str) -> Floats:
        """Readings of a sensor of the model, ``[N, dim]``."""
        return self.sensors[:, self._sensor_at[name]]

    # Gymnasium

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Start episodes: all, or those of ``options["reset_mask"]``; without a seed a copy's own generator goes on.

        ``info`` holds ``success`` and ``initial_state``, the physics state and the task's variables, ``[N, S]``.
        """
        mask = np.ones(self.num_envs, bool)
        if options and "reset_mask" in options:
            mask = np.asarray(options["reset_mask"])
            if mask.dtype != bool or mask.shape != (self.num_envs,):
                raise UserError(f"reset_mask has to be bool [{self.num_envs}], not {mask.dtype} {list(mask.shape)}")
        seeds: Sequence[int | None]
        if seed is None:
            seeds = [None] * self.num_envs
        elif isinstance(seed, int | np.integer):
            seeds = [int(seed) + copy for copy in range(self.num_envs)]
        else:
            seeds = seed
        if len(seeds) != self.num_envs:
            raise UserError(f"{len(seeds)} seeds for {self.num_envs} copies: give one a copy")
        for copy in map(int, np.flatnonzero(mask)):
            self._start(copy, seeds[copy])
        info = self._info(self.judge())
        info |= {"initial_state": self._initial_state(), "_initial_state": mask}
        return self._observation(), info

    def step(self, actions: Any) -> tuple[dict[str, NDArray[Any]], NDArray[np.float64], Bools, Bools, dict[str, Any]]:
        """One control step of every copy that is not waiting for its reset."""
        action = self._checked(actions)
        fresh = np.zeros(self.num_envs, bool)
        if self.autoreset_mode == AutoresetMode.NEXT_STEP:
            fresh = self._waiting.copy()
            for copy in np.flatnonzero(fresh):
                self._start(int(copy), None)
        running = ~self._waiting & ~fresh
        unstable = self._advance(np.flatnonzero(running), self.control(self._delay(action, running)))
        self.elapsed[running] += 1
        self._unseen |= running
        self.remember(running & ~unstable)

        verdict = self.judge()
        cause = [UNSTABLE if bad else text for bad, text in zip(unstable, verdict.cause, strict=True)]
        verdict = Verdict(verdict.success & ~unstable, verdict.failed | unstable, cause)
        ended = verdict.success | verdict.failed if self.task.kind == "attain" else verdict.failed
        terminated = ended & running
        truncated = (self.elapsed >= self.max_steps) & running & ~terminated
        reward = np.where(running, verdict.success.astype(np.float64), 0.0)
        self._waiting |= terminated | truncated
        info = self._info(verdict)
        if self.autoreset_mode == AutoresetMode.SAME_STEP and (done := terminated | truncated).any():
            info = self._restart(done, info)
        return self._observation(), reward, terminated, truncated, info

    def render(self) -> tuple[NDArray[np.uint8], ...]:  # type: ignore[override]
        """A frame ``[height, width, 3]`` of every copy."""
        return self.render_copies(range(self.num_envs))

    def render_copies(self, copies: Sequence[int]) -> tuple[NDArray[np.uint8], ...]:
        """Frames of some copies."""
        if self.render_mode is None:
            raise UserError(f"{self.task.id} was made without render_mode='rgb_array'")
        size, camera = self._frame
        return tuple(self._pictures(int(copy), size, [camera])[0] for copy in copies)

    def close_extras(self, **kwargs: Any) -> None:
        """Free threads and the OpenGL context."""
        self._rollout.close()
        if self._renderer is not None:
            self._renderer.close()

    # Inside

    def _start(self, copy: int, seed: int | None) -> None:
        if seed is not None:
            self._rngs[copy] = np.random.default_rng(seed)
        start = self.initial(self._rngs[copy])
        data = self._datas[0]
        mujoco.mj_resetData(self.model, data)
        data.qpos[:], data.qvel[:] = start.qpos, start.qvel
        mujoco.mj_forward(self.model, data)
        mujoco.mj_getState(self.model, data, self.physics[copy], STATE)
        self.sensors[copy] = data.sensordata
        for name, value in start.variables.items():
            value = np.asarray(value)
            if name not in self.variables:
                self.variables[name] = np.zeros((self.num_envs, *value.shape), value.dtype)
            self.variables[name][copy] = value
        self._distortions[copy] = self.perturbations.distortions(self._rngs[copy], self.cameras)
        self.elapsed[copy] = 0
        self._waiting[copy], self._unseen[copy] = False, True
        if self.perturbations.action_delay:
            self._delayed[copy] = self.neutral()[copy]

    def _advance(self, copies: NDArray[np.intp], control: Floats) -> Bools:
        """Step these copies through one control period; which of them blew up (they keep their state of before)."""
        unstable = np.zeros(self.num_envs, bool)
        if not len(copies):
            return unstable
        before, inputs, spec = self.physics[copies], control[copies], mujoco.mjtState.mjSTATE_CTRL
        if self._pushes is not None:
            inputs, spec = self._pushes.behind(inputs, [self._rngs[copy] for copy in copies]), self._pushes.spec
        states, sensors = self._rollout.rollout(
            self.model,
            self._datas,
            before,
            np.ascontiguousarray(inputs[:, None]),
            control_spec=int(spec),
            nstep=self.substeps,
        )
        after = states[:, -1]
        # MuJoCo resets a copy whose accelerations are beyond all bounds, and its clock with it.
        expected = before[:, 0] + self.substeps * self.model.opt.timestep
        good = np.isfinite(after).all(1) & (np.abs(after[:, 0] - expected) < self.model.opt.timestep / 2)
        self.physics[copies[good]] = after[good]
        self.sensors[copies[good]] = sensors[good, -1]
        unstable[copies[~good]] = True
        return unstable

    def _restart(self, done: Bools, info: dict[str, Any]) -> dict[str, Any]:
        final = {"final_obs": self._observation(), "_final_obs": done, "final_info": info, "_final_info": done}
        for copy in np.flatnonzero(done):
            self._start(int(copy), None)
        return {**self._info(self.judge()), **final}

    def _observation(self) -> dict[str, NDArray[Any]]:
        """What every copy shows; a copy that has not moved shows the same noise and the same picture again."""
        for copy in map(int, np.flatnonzero(self._unseen)):
            if self.perturbations.observation_noise:
                for noise in self._noise.values():
                    noise[copy] = self._rngs[copy].normal(0.0, self.perturbations.observation_noise, noise.shape[1:])
            if self.cameras:
                height, width = self._images[self.cameras[0]].shape[1:3]
                pictures = self._pictures(copy, (height, width), self.cameras)
                for camera, picture in zip(self.cameras, pictures, strict=True):
                    change = self._distortions[copy].get(camera)
                    self._images[camera][copy] = change(picture) if change else picture
        self._unseen[:] = False
        vectors = self.observe() if self._noise else {}
        seen = {key: np.asarray(vectors[key] + noise, np.float32) for key, noise in self._noise.items()}
        return seen | {camera: pictures.copy() for camera, pictures in self._images.items()}

    def _pictures(self, copy: int, size: tuple[int, int], cameras: Sequence[str | None]) -> list[NDArray[np.uint8]]:
        if self._renderer is None:
            self._renderer = SceneRenderer(self.model)
        data = self._datas[0]
        mujoco.mj_setState(self.model, data, self.physics[copy], STATE)
        mujoco.mj_forward(self.model, data)
        draw = partial(self.decorate, copy=copy)
        return [self._renderer.frame(data, size, camera, draw) for camera in cameras]

    def _delay(self, action: Floats, running: Bools) -> Floats:
        """The action that is executed now, after this one has joined the queue."""
        if not self.perturbations.action_delay:
            return action
        late = self._delayed[:, 0].copy()
        self._delayed[running] = np.concatenate([self._delayed[running, 1:], action[running, None]], axis=1)
        return late

    def _info(self, verdict: Verdict) -> dict[str, Any]:
        every = np.ones(self.num_envs, bool)
        # A task to sustain is a success for as long as nothing has failed.
        success = ~verdict.failed if self.task.kind == "sustain" else verdict.success
        info: dict[str, Any] = {"success": success, "_success": every}
        for key, value in self.measure().items():
            info |= {key: value, f"_{key}": every}
        if verdict.failed.any():
            info |= {"cause": np.array(list(verdict.cause), dtype=object), "_cause": verdict.failed}
        return info

    def _initial_state(self) -> Floats:
        parts = [
            np.asarray(value, np.float64).reshape(self.num_envs, -1) for _, value in sorted(self.variables.items())
        ]
        return np.concatenate([self.physics, *parts], axis=1)

    def _checked(self, actions: Any) -> Floats:
        action = np.asarray(actions, np.float64)
        expected = (self.num_envs, *(self.single_action_space.shape or ()))
        if action.shape != expected:
            raise UserError(f"actions have shape {list(action.shape)}, {self.task.id} expects {list(expected)}")
        bad = ~np.isfinite(action).all(1) & ~self._waiting
        if bad.any():
            copy = int(np.argmax(bad))
            raise UserError(f"the action of copy {copy} is not finite: {actions[copy]}")
        return np.clip(np.nan_to_num(action), self.single_action_space.low, self.single_action_space.high)  # type: ignore[attr-defined]
