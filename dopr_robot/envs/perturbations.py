"""What a robot meets and a simulator leaves out: pushes, noisy sensors, late actions, other light; to measure how robust a policy is.

The options stand here once, for every task of every simulator. Our own tasks draw them for all copies at once
(:mod:`dopr_robot.envs.batched`); everybody else's environment is made by a function under :func:`perturbed`.
"""

import inspect
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dopr_robot.errors import UserError
from dopr_robot.images import is_image

Pixels = NDArray[np.uint8]

PERTURBATIONS = {
    "disturbance": "standard deviation of a random push along every axis, new at every control step, in newtons",
    "observation_noise": "standard deviation of white noise on every number that is observed, in the number's unit",
    "action_delay": "control steps between an action and its execution",
    "brightness": "how far the factor of every picture's brightness, drawn once an episode, may lie from 1; 0 to 1",
    "blur": "standard deviation of a Gaussian blur of every picture, in pixels, 0 to 50",
    "camera_shift": "how far every camera's picture is moved at most, drawn once an episode, as a share of its sides; 0 to 0.5",
}
"""Keywords that tasks take, with what each does."""

_MOST = {"brightness": 1.0, "blur": 50.0, "camera_shift": 0.5, "action_delay": 1000}
_PICTURES = ("brightness", "blur", "camera_shift")


@dataclass(frozen=True)
class Distortion:
    """What one episode does to one camera's pictures.

    Attributes:
        factor: of the brightness.
        blur: standard deviation, in pixels.
        shift: down and to the right, as shares of the sides; the edges are repeated.
    """

    factor: float
    blur: float
    shift: tuple[float, float]

    def __call__(self, image: Pixels) -> Pixels:
        """A picture ``uint8 [H, W, C]`` as it is seen now."""
        for axis, share in enumerate(self.shift):
            size = image.shape[axis]
            image = image.take(np.clip(np.arange(size) - round(share * size), 0, size - 1), axis)
        if self.factor == 1.0 and not self.blur:
            return image
        seen = image.astype(np.float32)
        if self.blur:
            from scipy.ndimage import gaussian_filter

            seen = gaussian_filter(seen, (self.blur, self.blur, 0.0), mode="nearest")
        return np.clip(np.rint(seen * self.factor), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Perturbations:
    """See :data:`PERTURBATIONS`; zeros: none.

    All are drawn from generators that an episode's seed alone decides.

    Raises:
        UserError: a value that is no number or out of its range, or a delay that is no whole number.
    """

    disturbance: float = 0.0
    observation_noise: float = 0.0
    action_delay: int = 0
    brightness: float = 0.0
    blur: float = 0.0
    camera_shift: float = 0.0

    def __post_init__(self) -> None:
        for each in fields(self):
            value, whole = getattr(self, each.name), each.type is int
            most = _MOST.get(each.name, np.inf)
            kinds = int | np.integer if whole else int | float | np.integer | np.floating
            if (
                isinstance(value, bool)
                or not isinstance(value, kinds)
                or not np.isfinite(value)
                or not 0 <= value <= most
            ):
                kind = "a whole number of control steps" if whole else "a number"
                bounds = f"of at least 0{'' if most == np.inf else f' and at most {most:g}'}"
                raise UserError(f"{each.name}={value!r} has to be {kind} {bounds}")

    def __bool__(self) -> bool:
        return any(getattr(self, each.name) for each in fields(self))

    def distortions(self, rng: np.random.Generator, cameras: Sequence[str]) -> dict[str, Distortion]:
        """Of an episode's pictures, by camera; empty where they stay as they are. Draws nothing then."""
        if not any(getattr(self, name) for name in _PICTURES):
            return {}
        factor = 1.0 + self.brightness * rng.uniform(-1.0, 1.0)  # of the light, so one for all cameras
        shifts = self.camera_shift * rng.uniform(-1.0, 1.0, (len(cameras), 2))
        return {
            camera: Distortion(factor, self.blur, (float(down), float(right)))
            for camera, (down, right) in zip(cameras, shifts, strict=True)
        }

    def need_pictures(self, cameras: Sequence[str]) -> None:
        """Raise UserError where pictures are to be changed and none is observed."""
        for name in _PICTURES:
            if getattr(self, name) and not cameras:
                raise UserError(f"{name} changes pictures, and none is observed: ask for cameras, or leave {name} out")


def perturbed(make: Callable[..., gymnasium.Env]) -> Callable[..., gymnasium.Env]:
    """An entry point that takes the keywords of :data:`PERTURBATIONS` too, and gives the environment under them."""
    own = inspect.signature(make)
    more = [
        inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default)
        for each in fields(Perturbations)
    ]

    @wraps(make)
    def made(*args: Any, **kwargs: Any) -> gymnasium.Env:
        wanted = Perturbations(**{each.name: kwargs.pop(each.name) for each in more if each.name in kwargs})
        env = make(*args, **kwargs)
        return Perturbed(env, wanted) if wanted else env

    before = [each for each in own.parameters.values() if each.kind != inspect.Parameter.VAR_KEYWORD]
    after = [each for each in own.parameters.values() if each.kind == inspect.Parameter.VAR_KEYWORD]
    vars(made)["__signature__"] = own.replace(parameters=[*before, *more, *after])
    return made


class Perturbed(gymnasium.Wrapper):
    """An environment with Dict observations under perturbations.

    What it draws is decided by the seed of the last reset that had one, apart from what the environment draws: it begins as the
    unperturbed one does, and one perturbation does not show in what another draws.

    Args:
        env: of one copy. For pushes it has ``pushed``, names of bodies, and ``push(forces [bodies, 3])``, in newtons, which holds until
            it is called again; ``neutral(observation)``, where it has that, is the action of a robot that is left alone (else zeros).
        perturbations: which.

    Raises:
        UserError: it can not be pushed, or observes no pictures that could be changed.
    """

    def __init__(self, env: gymnasium.Env, perturbations: Perturbations) -> None:
        super().__init__(env)
        self.perturbations = perturbations
        observed: Any = env.observation_space
        self._cameras = [key for key, space in observed.items() if is_image(space.shape, space.dtype)]
        self._vectors = [key for key, space in observed.items() if space.dtype.kind == "f"]
        perturbations.need_pictures(self._cameras)
        self._bodies: Sequence[str] = env.get_wrapper_attr("pushed") if env.has_wrapper_attr("pushed") else ()
        if perturbations.disturbance and not self._bodies:
            others = ", ".join(name for name in PERTURBATIONS if name != "disturbance")
            raise UserError(
                f"disturbance={perturbations.disturbance}: this task has no body to push (it takes {others})"
            )
        if perturbations.observation_noise:
            widened = {
                key: spaces.Box(-np.inf, np.inf, space.shape, space.dtype) if key in self._vectors else space
                for key, space in observed.items()
            }
            self.observation_space = spaces.Dict(widened)
        self._rngs: dict[str, np.random.Generator] = {}
        self._distortions: dict[str, Distortion] = {}
        self._queue: deque[Any] = deque()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._push(0.0)  # a simulator may settle while it is reset
        observation, info = self.env.reset(seed=seed, options=options)
        if seed is not None or not self._rngs:
            self._rngs = {
                name: np.random.default_rng(seed if seed is None else [seed, number])
                for number, name in enumerate(("push", "noise", "pictures"))
            }
        self._distortions = self.perturbations.distortions(self._rngs["pictures"], self._cameras)
        self._queue = deque([self._neutral(observation)] * self.perturbations.action_delay)
        return self._seen(observation), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self._queue.append(action)
        self._push(self.perturbations.disturbance)
        observation, *rest = self.env.step(self._queue.popleft())
        return self._seen(observation), *rest  # type: ignore[return-value]

    def _push(self, deviation: float) -> None:
        if self.perturbations.disturbance:
            size = (len(self._bodies), 3)
            forces = self._rngs["push"].normal(0.0, deviation, size) if deviation else np.zeros(size)
            self.env.get_wrapper_attr("push")(forces)

    def _neutral(self, observation: Any) -> Any:
        space = self.action_space
        assert isinstance(space, spaces.Box)
        told = self.env.has_wrapper_attr("neutral")
        action = self.env.get_wrapper_attr("neutral")(observation) if told else np.zeros(space.shape)
        return np.clip(action, space.low, space.high).astype(space.dtype)

    def _seen(self, observation: Any) -> dict[str, Any]:
        seen = dict(observation)
        for key in self._vectors if self.perturbations.observation_noise else ():
            value = np.asarray(seen[key])
            noise = self._rngs["noise"].normal(0.0, self.perturbations.observation_noise, value.shape)
            seen[key] = (value + noise).astype(value.dtype)
        return seen | {camera: change(seen[camera]) for camera, change in self._distortions.items()}
