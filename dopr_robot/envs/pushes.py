"""Random pushes as inputs of ``mujoco.rollout``."""

from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


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
