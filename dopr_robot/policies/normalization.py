"""Between the environment's units and the network's: affine maps that are part of the policy and of its checkpoint."""

from collections.abc import Collection, Mapping
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from dopr_robot.errors import UnknownNameError, UserError

Mode = Literal["minmax", "meanstd", "none"]

# A dimension whose range (or standard deviation) is below this share of its magnitude is taken as constant. float32 resolves
# 1.2e-7, so what is left below it is rounding and not signal.
CONSTANT = 1e-6


def affine(statistics: Mapping[str, np.ndarray], mode: Mode) -> tuple[np.ndarray, np.ndarray]:
    """Scale and offset of ``normalized = scale * x + offset``, each in the statistics' shape.

    ``minmax`` maps [min, max] to [-1, 1], ``meanstd`` maps to mean 0 and standard deviation 1. A constant dimension is mapped to 0
    with scale 1, so that a policy that never saw it move is not handed a huge number when it does.

    Raises:
        UserError: statistics that are not finite.
    """
    low, high, mean, std = (np.asarray(statistics[name], np.float64) for name in ("min", "max", "mean", "std"))
    if not all(np.isfinite(value).all() for value in (low, high, mean, std)):
        raise UserError("statistics hold NaN or inf: `dopr info STORE --check` names the episode")
    if mode == "none":
        return np.ones_like(low), np.zeros_like(low)
    centre, spread = ((low + high) / 2, (high - low) / 2) if mode == "minmax" else (mean, std)
    constant = spread <= CONSTANT * np.maximum(1e-3, np.abs(centre))
    scale = 1.0 / np.where(constant, 1.0, spread)
    return scale, -centre * scale


class Normalizer(nn.Module):
    """One affine map for each key, held as float32 buffers.

    Args:
        shapes: shape of one step of every key.
        mode: how :meth:`fit` makes the maps from statistics, for all keys or by key (minmax for those that are not named).

    Until :meth:`fit` or a state dict has filled it, the maps are NaN and :meth:`check` raises.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], mode: Mode | Mapping[str, Mode] = "minmax") -> None:
        super().__init__()
        self.keys = tuple(shapes)
        for key in () if isinstance(mode, str) else mode:
            if key not in shapes:
                raise UnknownNameError("key in policy.normalization", key, shapes)
        self.modes: dict[str, Mode] = {
            key: mode if isinstance(mode, str) else mode.get(key, "minmax") for key in self.keys
        }
        for chosen in self.modes.values():
            if chosen not in get_args(Mode):
                raise UserError(f"policy.normalization={chosen!r} is none of {', '.join(get_args(Mode))}")
        for key, shape in shapes.items():
            self.register_buffer(f"scale:{key}", torch.full(shape, torch.nan))
            self.register_buffer(f"offset:{key}", torch.full(shape, torch.nan))

    def fit(self, statistics: Mapping[str, Mapping[str, np.ndarray]], keys: Collection[str] | None = None) -> None:
        """Take the maps (of ``keys``, or of all) from the training split's ``{key: {min, max, mean, std}}``."""
        for key in self.keys if keys is None else keys:
            if key not in statistics:
                raise UserError(f"statistics hold nothing for {key!r}: they have {', '.join(sorted(statistics))}")
            for name, value in zip(("scale", "offset"), affine(statistics[key], self.modes[key]), strict=True):
                buffer = self.get_buffer(f"{name}:{key}")
                if tuple(value.shape) != tuple(buffer.shape):
                    raise UserError(
                        f"statistics of {key!r} have shape {list(value.shape)}, expected {list(buffer.shape)}"
                    )
                buffer.copy_(torch.as_tensor(value))

    def normalize(self, key: str, value: Tensor) -> Tensor:
        """Environment's units to network's; ``value`` is ``[..., *shape]``."""
        return value * self.get_buffer(f"scale:{key}") + self.get_buffer(f"offset:{key}")

    def denormalize(self, key: str, value: Tensor) -> Tensor:
        """Network's units to environment's; ``value`` is ``[..., *shape]``."""
        return (value - self.get_buffer(f"offset:{key}")) / self.get_buffer(f"scale:{key}")

    def check(self) -> None:
        """Raise a RuntimeError where a key has no statistics yet."""
        for key in self.keys:
            if torch.isnan(self.get_buffer(f"scale:{key}")).any():
                raise RuntimeError(
                    f"the policy has no statistics for {key!r}: call policy.fit_normalizer(statistics) first"
                )
