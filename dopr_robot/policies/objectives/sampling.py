"""Noise that belongs to episodes and not to batches."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dopr_robot.errors import UserError

Generators = torch.Generator | Sequence[torch.Generator] | None


def normal(shape: Sequence[int], generator: Generators, like: Tensor) -> Tensor:
    """Standard normal numbers ``[B, ...]``; with a list of B generators row b is drawn from the b-th alone.

    The numbers are drawn where the generator lives and then moved to ``like``'s device and dtype, so that one seed gives one noise
    on every device.
    """
    return _draw(torch.randn, shape, generator, like)


def categorical(probabilities: Tensor, generator: Generators) -> Tensor:
    """Indices ``[B, ...]`` drawn by ``probabilities [B, ..., K]``, by the same rules as :func:`normal`."""
    level = _draw(torch.rand, probabilities.shape[:-1], generator, probabilities)
    # Rounding may leave the last sum below 1, so the last index takes what is left.
    return (probabilities.cumsum(-1) < level[..., None]).sum(-1).clamp_max(probabilities.shape[-1] - 1)


def _draw(draw: Callable[..., Tensor], shape: Sequence[int], generator: Generators, like: Tensor) -> Tensor:
    if generator is None or isinstance(generator, torch.Generator):
        device = like.device if generator is None else generator.device
        return draw(*shape, generator=generator, device=device).to(like)
    if len(generator) != shape[0]:
        raise UserError(f"{len(generator)} generators for a batch of {shape[0]}: give one, or one a row")
    return torch.stack([draw(*shape[1:], generator=one, device=one.device) for one in generator]).to(like)
