"""Rotations as matrices, and in the six numbers that networks learn well."""

import torch
from torch import Tensor

# Name: numbers it takes. Quaternions are of unit length; Euler angles are extrinsic x, y, z (scipy's "xyz"), in radians.
SIZES = {"quaternion_wxyz": 4, "quaternion_xyzw": 4, "axis_angle": 3, "euler_xyz": 3, "matrix": 9}


def to_matrix(value: Tensor, kind: str) -> Tensor:
    """A rotation matrix ``[..., 3, 3]`` from ``value [..., SIZES[kind]]``."""
    if kind == "matrix":
        return value.unflatten(-1, (3, 3))
    if kind == "axis_angle":
        return _from_quaternion(_axis_angle_to_quaternion(value))
    if kind == "euler_xyz":
        return _from_euler(value)
    return _from_quaternion(value if kind == "quaternion_wxyz" else value.roll(1, -1))


def from_matrix(matrix: Tensor, kind: str) -> Tensor:
    """The inverse of :func:`to_matrix`; of the two quaternions of a rotation, the one with w >= 0."""
    if kind == "matrix":
        return matrix.flatten(-2)
    if kind == "euler_xyz":
        return _to_euler(matrix)
    quaternion = _to_quaternion(matrix)
    if kind == "axis_angle":
        return _quaternion_to_axis_angle(quaternion)
    return quaternion if kind == "quaternion_wxyz" else quaternion.roll(-1, -1)


def matrix_to_6d(matrix: Tensor) -> Tensor:
    """The first two columns, one after the other: ``[..., 3, 3] -> [..., 6]`` (Zhou et al., 2019)."""
    return matrix[..., :2].mT.flatten(-2)


def matrix_from_6d(value: Tensor) -> Tensor:
    """The nearest frame by Gram and Schmidt: ``[..., 6] -> [..., 3, 3]``, for any six numbers that are not degenerate."""
    first, second = value.unflatten(-1, (2, 3)).unbind(-2)
    x = torch.nn.functional.normalize(first, dim=-1)
    y = torch.nn.functional.normalize(second - (x * second).sum(-1, keepdim=True) * x, dim=-1)
    return torch.stack([x, y, torch.linalg.cross(x, y)], dim=-1)


def _from_quaternion(quaternion: Tensor) -> Tensor:
    w, x, y, z = torch.nn.functional.normalize(quaternion, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def _to_quaternion(matrix: Tensor) -> Tensor:
    """Of the four ways to take the roots, the one with the largest divisor (Shepperd, 1978)."""
    (a, b, c), (d, e, f), (g, h, i) = (row.unbind(-1) for row in matrix.unbind(-2))
    candidates = torch.stack(
        [
            torch.stack([1 + a + e + i, h - f, c - g, d - b], dim=-1),
            torch.stack([h - f, 1 + a - e - i, b + d, c + g], dim=-1),
            torch.stack([c - g, b + d, 1 - a + e - i, f + h], dim=-1),
            torch.stack([d - b, c + g, f + h, 1 - a - e + i], dim=-1),
        ],
        dim=-2,
    )
    best = candidates.diagonal(dim1=-2, dim2=-1).argmax(-1)
    chosen = candidates.take_along_dim(best[..., None, None], dim=-2).squeeze(-2)
    quaternion = torch.nn.functional.normalize(chosen, dim=-1)
    return torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)


def _axis_angle_to_quaternion(value: Tensor) -> Tensor:
    angle = value.norm(dim=-1, keepdim=True)
    # sin(angle / 2) / angle, which torch's sinc gives without a division by zero.
    return torch.cat([(angle / 2).cos(), 0.5 * torch.sinc(angle / (2 * torch.pi)) * value], dim=-1)


def _quaternion_to_axis_angle(quaternion: Tensor) -> Tensor:
    vector = quaternion[..., 1:]
    sine = vector.norm(dim=-1, keepdim=True)
    angle = 2 * torch.atan2(sine, quaternion[..., :1])
    return vector * torch.where(sine > 1e-6, angle / sine.clamp_min(1e-6), 2.0)


def _from_euler(angles: Tensor) -> Tensor:
    (a, b, c), (i, j, k) = angles.sin().unbind(-1), angles.cos().unbind(-1)
    rows = [j * k, a * b * k - i * c, i * b * k + a * c, j * c, a * b * c + i * k, i * b * c - a * k, -b, a * j, i * j]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def _to_euler(matrix: Tensor) -> Tensor:
    pitch = torch.asin((-matrix[..., 2, 0]).clamp(-1, 1))
    roll = torch.atan2(matrix[..., 2, 1], matrix[..., 2, 2])
    yaw = torch.atan2(matrix[..., 1, 0], matrix[..., 0, 0])
    return torch.stack([roll, pitch, yaw], dim=-1)
