"""Any Gymnasium environment as a task: ``gym:package.module/EnvId-v0``, or ``gym:EnvId-v0`` of Gymnasium's own.

Where termination means failure and nothing tells of success, the name says so: ``gym:Hopper-v5?kind=sustain``.
"""

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any, Literal, get_args

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dopr_robot.envs.adapters.adapter import Adapter, Views
from dopr_robot.envs.faults import START_S, SimulatorError, ask, describe
from dopr_robot.envs.perturbations import PERTURBATIONS, perturbed
from dopr_robot.envs.registration import ActionSpec, TaskSpec
from dopr_robot.envs.rendering import FREE, camera_names
from dopr_robot.errors import UserError
from dopr_robot.images import is_image

PREFIX, KIND = "gym:", "?kind="
LOOKS = 50
"""Control steps in which an environment has to tell of success once."""

Kind = Literal["attain", "sustain"]


@cache
def unregistered_task(name: str, kind: Kind | None = None) -> TaskSpec:
    """What an environment is as a task: it is made once, and stepped until it tells of success.

    Observations are its arrays: those of a Dict by their names (nested ones joined by a dot), a Box as ``state``, or ``image`` where it is
    one. The longest horizon is that of its registration, the control rate ``1 / env.unwrapped.dt`` or ``metadata["render_fps"]``.

    Args:
        name: ``gym:package.module/EnvId-v0``: the module is imported, which registers the id; ``?kind=...`` behind it is ``kind``.
        kind: ``attain``: ``success`` or ``is_success`` in info says that the goal is reached; ``sustain``: termination means failure;
            None: ``attain``, where info tells of success.

    Raises:
        UserError: it can not be made, or lacks something; the message says what to add.
    """
    name, told, said = name.partition(KIND)
    kind = said if told else kind  # type: ignore[assignment]
    if kind is not None and kind not in get_args(Kind):
        raise UserError(
            f"kind={kind!r} is neither 'attain' (a goal is reached) nor 'sustain' (termination means failure)"
        )
    env = _made(_known_as(name), name)
    try:
        if kind is None and not _tells(env, name):
            raise UserError(
                f"{name} tells of no success: let its info have 'success' or 'is_success', a bool, at every step, "
                f"or say {name}{KIND}sustain where its termination means failure"
            )
        if kind == "attain" and not _tells(env, name):
            raise UserError(
                f"{name} tells of no success: let its info have 'success' or 'is_success', a bool, at every step"
            )
        return _described(env, name, kind or "attain")
    finally:
        env.close()


@perturbed
def make(name: str, kind: Kind, *, max_steps: int | None = None, **keywords: Any) -> gymnasium.Env:
    """One environment; keywords that are not of :class:`~dopr_robot.envs.adapters.adapter.Views` are the environment's own."""
    own = {key: keywords.pop(key) for key in [*keywords] if key not in Views.__dataclass_fields__}
    seen, spec = Views(**keywords), unregistered_task(name, kind)
    seen.check(spec, opengl=bool(spec.cameras))
    mode = {"render_mode": seen.render_mode} if seen.render_mode and not spec.cameras else {}
    steps = {"max_episode_steps": max_steps} if max_steps else {}
    return Unregistered(_made(_known_as(name), name, **mode, **steps, **own), spec, seen)


class Unregistered(Adapter):
    """An environment as it is, under our contract. Where it is MuJoCo's, it has the model's cameras and can be pushed."""

    def __init__(self, env: gymnasium.Env, task: TaskSpec, views: Views) -> None:
        super().__init__(env, task, views)
        own = _arrays(env.observation_space)
        pictures = {camera: self.observation_space[camera] for camera in views.cameras}  # type: ignore[index]
        self.observation_space = spaces.Dict({**own, **pictures})

    @property
    def pushed(self) -> list[str]:
        """The first body, as the simulator orders them."""
        model = _model(self)
        return [] if model is None or model.nbody < 2 else [model.body(1).name]

    def push(self, forces: NDArray[np.float64]) -> None:
        self.unwrapped.data.xfrc_applied[1, :3] = forces[0]  # type: ignore[attr-defined]

    def render(self) -> Any:
        return super().render() if self.task.cameras else self.env.render()

    def judge(self, info: dict[str, Any], terminated: bool) -> dict[str, Any]:
        if self.task.kind == "sustain":
            return super().judge(info, terminated)
        return {"success": bool(np.any(info.get("success", info.get("is_success", False))))}

    def _arrays(self, observation: Any) -> dict[str, Any]:
        seen = _flat(observation, self.env.observation_space)
        own: Mapping[str, Any] = self.observation_space.spaces  # type: ignore[attr-defined]
        arrays = {key: np.asarray(value, own[key].dtype) for key, value in seen.items()}
        return arrays | {camera: self.draw(camera, self.picture_size) for camera in self.views.cameras}


def _known_as(name: str) -> str:
    """Gymnasium's id, once the module is imported."""
    told = name.removeprefix(PREFIX)
    if told in gymnasium.registry:
        return told
    module, _, rest = told.partition("/")
    if not rest or not module:
        raise UserError(
            f"{name}: Gymnasium knows no {told!r}: say {PREFIX}package.module/EnvId-v0, with the module that registers it"
        )
    try:
        ask(import_module, module, seconds=START_S)
    except SimulatorError as error:
        raise UserError(f"{name}: module {module!r} can not be imported ({describe(error)})") from error
    found = next((each for each in (told, rest) if each in gymnasium.registry), None)
    if found is None:
        raise UserError(f"{name}: module {module!r} registers no {rest!r} (gymnasium.register(id={rest!r}, ...))")
    return found


def _made(env_id: str, name: str, **keywords: Any) -> gymnasium.Env:
    try:
        return ask(gymnasium.make, env_id, disable_env_checker=True, seconds=START_S, **keywords)
    except SimulatorError as error:
        raise UserError(f"{name} can not be made ({describe(error)})") from error


def _tells(env: gymnasium.Env, name: str) -> bool:
    """Whether its info has success, looked for in the first steps."""
    try:
        info = ask(env.reset, seed=0)[1]
        env.action_space.seed(0)
        for _ in range(LOOKS):
            if "success" in info or "is_success" in info:
                return True
            *_, terminated, truncated, info = ask(env.step, env.action_space.sample())
            if terminated or truncated:
                break
        return "success" in info or "is_success" in info
    except SimulatorError as error:
        raise UserError(f"{name} can not be stepped ({describe(error)})") from error


def _described(env: gymnasium.Env, name: str, kind: Kind) -> TaskSpec:
    action, inside = env.action_space, env.unwrapped
    if not isinstance(action, spaces.Box) or len(action.shape) != 1:
        raise UserError(f"{name} takes actions {action}: a Box of one axis is needed")
    if not action.is_bounded():
        raise UserError(f"{name} takes actions without bounds: give its action space a low and a high")
    steps = None if env.spec is None else env.spec.max_episode_steps
    if steps is None:
        raise UserError(f"{name} has no longest episode: register it with max_episode_steps=...")
    arrays, model = _arrays(env.observation_space, name), _model(env)
    return TaskSpec(
        id=f"{name}{KIND}{kind}" if kind == "sustain" else name,
        kind=kind,
        control_hz=_rate(inside, name),
        max_steps=steps,
        description="success as its info tells" if kind == "attain" else "failed once the environment terminates",
        observations={key: tuple(space.shape or ()) for key, space in arrays.items()},
        action=ActionSpec(
            meaning="as the environment defines it",
            absolute=True,
            units="as the environment defines it",
            names=tuple(f"action{index}" for index in range(action.shape[0])),
            low=tuple(map(float, action.low)),
            high=tuple(map(float, action.high)),
        ),
        entry_point="dopr_robot.envs.unregistered:make",
        arguments={"name": name, "kind": kind},
        package="gymnasium",
        source="Gymnasium's registry",
        extensible=True,
        options={key: what for key, what in PERTURBATIONS.items() if model is not None or key != "disturbance"},
        cameras=() if model is None else (*camera_names(model), FREE),
        opengl=model is not None,
    )


def _rate(inside: Any, name: str) -> float:
    step, rate = getattr(inside, "dt", None), inside.metadata.get("render_fps")
    if isinstance(step, int | float) and step > 0:
        return 1.0 / step
    if isinstance(rate, int | float) and rate > 0:
        return float(rate)
    raise UserError(
        f'{name} tells no control rate: metadata = {{"render_fps": 20}}, or a number dt of seconds, is needed'
    )


def _model(env: gymnasium.Env) -> Any:
    """MuJoCo's model, where the environment has one."""
    model = getattr(env.unwrapped, "model", None)
    return model if hasattr(model, "ncam") and hasattr(env.unwrapped, "data") else None


def _arrays(space: Any, name: str = "the environment") -> dict[str, spaces.Box]:
    """The boxes of an observation by their keys; numbers are float32."""
    found: dict[str, spaces.Box] = {}
    for key, each in _flat(space, space).items():
        if not isinstance(each, spaces.Box):
            raise UserError(f"{name} observes {each} under {key!r}: a Box, or a Dict of Boxes, is needed")
        picture = is_image(each.shape, each.dtype)
        found[key] = each if picture else spaces.Box(-np.inf, np.inf, each.shape, np.float32)
    return found


def _flat(value: Any, space: Any) -> dict[str, Any]:
    """What belongs to a space (or the space itself) by key, nested Dicts joined by dots."""
    if not isinstance(space, spaces.Dict):
        picture = isinstance(space, spaces.Box) and is_image(space.shape, space.dtype)
        return {"image" if picture else "state": value}
    flat: dict[str, Any] = {}
    for key, inner in space.spaces.items():
        part = value[key]
        nested = isinstance(inner, spaces.Dict)
        flat |= {f"{key}.{below}": each for below, each in _flat(part, inner).items()} if nested else {key: part}
    return flat
