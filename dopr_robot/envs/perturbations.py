"""What a robot meets and a simulator leaves out: pushes, noisy sensors, late actions; to measure how robust a policy is."""

from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from dopr_robot.errors import UserError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Perturbations:
    """See :data:`dopr_robot.envs.specs.PERTURBATIONS`; zeros: none.

    All are drawn from the copy's own generator, so an episode still depends on its seed alone.

    Raises:
        UserError: a value that is negative or not finite, or a delay that is no whole number.
    """

    disturbance: float = 0.0
    observation_noise: float = 0.0
    action_delay: int = 0

    def __post_init__(self) -> None:
        for name in ("disturbance", "observation_noise"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not np.isfinite(value) or value < 0:
                raise UserError(f"{name}={value!r} has to be a number of at least 0")
        if not isinstance(self.action_delay, int) or self.action_delay < 0:
            raise UserError(f"action_delay={self.action_delay!r} has to be a whole number of control steps, at least 0")


class Pushes:
    """Random forces at one body's centre of mass, as the inputs that ``mujoco.rollout`` takes behind the controls.

    Args:
        model: an ``mujoco.MjModel``.
        body: the body's name.
        deviation: of the force along each axis, in newtons.
    """

    spec = mujoco.mjtState.mjSTATE_CTRL | mujoco.mjtState.mjSTATE_XFRC_APPLIED

    def __init__(self, model: Any, body: str, deviation: float) -> None:
        self.deviation = deviation
        first = model.nu + 6 * model.body(body).id
        self._size, self._at = model.nu + 6 * model.nbody, slice(first, first + 3)

    def behind(self, control: Floats, rngs: list[np.random.Generator]) -> Floats:
        """Controls ``[N, nu]`` and drawn forces: ``[N, nu + 6 nbody]``."""
        inputs = np.zeros((len(control), self._size))
        inputs[:, : control.shape[1]] = control
        inputs[:, self._at] = [rng.normal(0.0, self.deviation, 3) for rng in rngs]
        return inputs
