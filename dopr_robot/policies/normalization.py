"""Between the environment's units and the network's: affine maps that are part of the policy and of its checkpoint."""

from collections.abc import Collection, Mapping
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from dopr_robot.errors import UnknownNameError, UserError
from dopr_robot.policies.scaling import OUTSIDE, Mode, scaling

ACTION = "action"


class Normalizer(nn.Module):
    """One affine map for each key and the limits of its normalised values, held as float32 buffers.

    An action's limits are the demonstrations' smallest and largest, for objectives to hold their answers within; an observation's lie
    :data:`~dopr_robot.policies.scaling.OUTSIDE` times as far from the centre, and there are none under ``none``.

    Args:
        shapes: shape of one step of every key.
        mode: how :meth:`fit` makes the maps from statistics, for all keys or by key (minmax for those that are not named).

    Until :meth:`fit` or a state dict has filled it, the maps are NaN and :meth:`check` raises. State dicts from before there were
    limits give -1 and 1 for actions and none for observations, which is how such policies acted.
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
            for name in ("scale", "offset", "low", "high"):
                self.register_buffer(f"{name}:{key}", torch.full(shape, torch.nan))

    def fit(self, statistics: Mapping[str, Mapping[str, np.ndarray]], keys: Collection[str] | None = None) -> None:
        """Take the maps (of ``keys``, or of all) from the training split's ``{key: {min, max, mean, std}}``."""
        for key in self.keys if keys is None else keys:
            if key not in statistics:
                raise UserError(f"statistics hold nothing for {key!r}: they have {', '.join(sorted(statistics))}")
            made = scaling(statistics[key], self.modes[key])
            if key != ACTION:
                middle, half = (made.low + made.high) / 2, (made.high - made.low) / 2
                reach = np.inf if self.modes[key] == "none" else OUTSIDE * half
                made = made._replace(low=middle - reach, high=middle + reach)
            for name, value in made._asdict().items():
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

    def observe(self, key: str, value: Tensor) -> Tensor:
        """An observation normalised and held within its limits, so that what lies far outside does not drown the rest."""
        return self.normalize(key, value).clamp(*self.limits(key))

    def limits(self, key: str) -> tuple[Tensor, Tensor]:
        """Smallest and largest normalised value, each in the key's shape."""
        return self.get_buffer(f"low:{key}"), self.get_buffer(f"high:{key}")

    def check(self) -> None:
        """Raise a RuntimeError where a key has no statistics yet."""
        for key in self.keys:
            if torch.isnan(self.get_buffer(f"scale:{key}")).any():
                raise RuntimeError(
                    f"the policy has no statistics for {key!r}: call policy.fit_normalizer(statistics) first"
                )

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        for key in self.keys:
            scale, far = self.get_buffer(f"scale:{key}"), 1.0 if key == ACTION else torch.inf
            state_dict.setdefault(f"{prefix}low:{key}", torch.full_like(scale, -far))
            state_dict.setdefault(f"{prefix}high:{key}", torch.full_like(scale, far))
        super()._load_from_state_dict(state_dict, prefix, *rest)
