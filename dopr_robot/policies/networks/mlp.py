"""Multilayer perceptron with residual blocks over everything at once."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dopr_robot.policies.networks.common import Mish, TimeEmbedding
from dopr_robot.policies.options import NetworkOptions


@dataclass
class MLPConfig(NetworkOptions):
    """Sizes of :class:`MLP`. The defaults are small enough for two CPU cores."""

    name: str = "mlp"
    dim: int = 512
    blocks: int = 3
    time_dim: int = 64
    dropout: float = 0.0


class ResidualBlock(nn.Module):
    """Layer norm, two linear layers, residual: ``[B, dim] -> [B, dim]``."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, dim), Mish(), nn.Dropout(dropout), nn.Linear(dim, dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class MLP(nn.Module):
    """Sample, time and observations in one vector, out comes the whole sequence; arguments as for the U-Net."""

    def __init__(
        self,
        config: MLPConfig,
        *,
        input_dim: int | None,
        output_dim: int,
        horizon: int,
        condition_dim: int,
        n_obs_steps: int,
    ) -> None:
        super().__init__()
        self.horizon = horizon
        self.time = TimeEmbedding(config.time_dim) if input_dim else None
        width = condition_dim * n_obs_steps + (horizon * input_dim + config.time_dim if input_dim else 0)
        self.layers = nn.Sequential(
            nn.Linear(width, config.dim),
            *(ResidualBlock(config.dim, config.dropout) for _ in range(config.blocks)),
            nn.LayerNorm(config.dim),
            Mish(),
            nn.Linear(config.dim, horizon * output_dim),
        )

    def forward(self, sample: Tensor | None, time: Tensor | None, condition: Tensor) -> Tensor:
        """See :mod:`dopr_robot.policies.networks`."""
        parts = [condition.flatten(1)]
        if self.time is not None and sample is not None:
            parts += [sample.flatten(1), self.time(time)]
        return self.layers(torch.cat(parts, dim=-1)).unflatten(1, (self.horizon, -1))
