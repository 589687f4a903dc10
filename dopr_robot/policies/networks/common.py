"""Parts that more than one network uses."""

import math

import torch
from torch import Tensor, nn


class TimeEmbedding(nn.Module):
    """Sinusoidal features of time in [0, 1], then a two-layer perceptron: ``[B] -> [B, dim]``.

    The frequencies are those of the Transformer (Vaswani et al., 2017) on ``1000 t``, the range in which diffusion
    counts its steps.
    """

    def __init__(self, dim: int, activation: type[nn.Module] = nn.SiLU) -> None:
        super().__init__()
        half = dim // 2
        frequencies = 1000.0 * torch.exp(
            -math.log(10_000.0) * torch.arange(half, dtype=torch.float64) / max(half - 1, 1)
        )
        self.register_buffer("frequencies", frequencies.float(), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(2 * half, 4 * dim), activation(), nn.Linear(4 * dim, dim))

    def forward(self, time: Tensor) -> Tensor:
        angles = time[:, None] * self.get_buffer("frequencies").to(time.dtype)
        return self.mlp(torch.cat([angles.sin(), angles.cos()], dim=-1))
