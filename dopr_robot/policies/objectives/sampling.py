"""Noise that belongs to episodes and not to batches."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dopr_robot.errors import UserError

Generators = torch.Generator | Sequence[torch.Generator] | None


def normal(shape: Sequence[int], generator: Generators, like: Tensor) -> Tensor:
    """Standard normal numbers ``[B, ...]``; with a list of B generators row b is drawn from the b-th alone.

    The numbers are drawn where the generator lives and then moved to ``like``'s device and dtype, so that one seed gives one noise
    on every device.
    """
    if generator is None or isinstance(generator, torch.Generator):
        device = like.device if generator is None else generator.device
        return torch.randn(*shape, generator=generator, device=device).to(like)
    if len(generator) != shape[0]:
        raise UserError(f"{len(generator)} generators for a batch of {shape[0]}: give one, or one a row")
    return torch.stack([torch.randn(*shape[1:], generator=one, device=one.device) for one in generator]).to(like)
