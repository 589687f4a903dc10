"""Kinematics of the arm for a batch of configurations: forward, Jacobian, and inverse by damped least squares."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

JOINTS = tuple(f"joint{number}" for number in range(1, 8))
HOME = np.array([0.0, -0.10, 0.0, -2.45, 0.0, 2.35, 0.0])
"""Posture with the hand pointing down, 0.47 m ahead of the base and 0.23 m above the table; rad."""
DAMPING = 0.03
"""Of the least squares; small beside the Jacobian's singular values (0.2 and more above the table)."""

Floats = NDArray[np.float64]


class Arm:
    """The serial chain up to the site ``grasp``, read from a model whose frames are parallel when the joints are at zero."""

    def __init__(self, model: Any) -> None:
        self.axes = np.array([model.joint(name).axis for name in JOINTS])
        self.offsets = np.array([model.body(f"link{number}").pos for number in range(1, 8)])
        self.tool = model.body("hand").pos + model.site("grasp").pos
        limits = np.array([model.joint(name).range for name in JOINTS])
        self.low, self.high = limits[:, 0], limits[:, 1]

    def forward(self, q: Floats) -> tuple[Floats, Floats, Floats]:
        """Position ``[N, 3]`` and rotation ``[N, 3, 3]`` of the grasp point, and its Jacobian ``[N, 6, 7]`` (linear, angular)."""
        n = len(q)
        rotation, position = np.tile(np.eye(3), (n, 1, 1)), np.zeros((n, 3))
        axes, origins = np.zeros((n, 7, 3)), np.zeros((n, 7, 3))
        for joint in range(7):
            position = position + rotation @ self.offsets[joint]
            axes[:, joint], origins[:, joint] = rotation @ self.axes[joint], position
            rotation = rotation @ _rotation(self.axes[joint], q[:, joint])
        position = position + rotation @ self.tool
        linear = np.cross(axes, position[:, None] - origins)
        return position, rotation, np.concatenate([linear, axes], axis=2).transpose(0, 2, 1)

    def step_towards(self, q: Floats, position: Floats, yaw: Floats, reach: float, turn: float) -> Floats:
        """Joint targets ``[N, 7]`` that bring the grasp point nearer to a position ``[N, 3]`` with the hand down at a yaw ``[N]``.

        One step of damped least squares, at most ``reach`` metres and ``turn`` radians long; the redundant degree of freedom
        drifts back to the home posture.
        """
        here, rotation, jacobian = self.forward(q)
        wanted = _rotation(np.array([0.0, 0.0, 1.0]), yaw)
        difference = wanted @ rotation.transpose(0, 2, 1)
        angular = 0.5 * np.stack(
            [
                difference[:, 2, 1] - difference[:, 1, 2],
                difference[:, 0, 2] - difference[:, 2, 0],
                difference[:, 1, 0] - difference[:, 0, 1],
            ],
            axis=1,
        )
        error = np.concatenate([_shortened(position - here, reach), _shortened(angular, turn)], axis=1)
        transposed = jacobian.transpose(0, 2, 1)
        inverse = transposed @ np.linalg.inv(jacobian @ transposed + DAMPING**2 * np.eye(6))
        posture = 0.1 * (HOME - q)
        free = posture - np.einsum("nij,njk,nk->ni", inverse, jacobian, posture)
        return np.clip(q + np.einsum("nij,nj->ni", inverse, error) + free, self.low, self.high)


def _rotation(axis: Floats, angle: Floats) -> Floats:
    """Rotations about a unit axis ``[3]`` by angles ``[N]``: ``[N, 3, 3]`` (Rodrigues)."""
    x, y, z = axis
    skew = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    sine, cosine = np.sin(angle)[:, None, None], np.cos(angle)[:, None, None]
    return np.eye(3) + sine * skew + (1 - cosine) * (skew @ skew)


def _shortened(vectors: Floats, length: float) -> Floats:
    """Vectors ``[N, 3]``, none longer than ``length``."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors * np.minimum(1.0, length / np.maximum(norms, 1e-9))
