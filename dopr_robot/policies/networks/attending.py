"""Transformers that attend to observations: as a memory beside the action sequence, or as its own past."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dopr_robot.policies.networks.common import AttentionBlock, History, TimeEmbedding
from dopr_robot.policies.options import NetworkOptions


@dataclass
class CrossTransformerConfig(NetworkOptions):
    """Sizes of :class:`CrossTransformer`. The defaults are small enough for two CPU cores.

    Args:
        observation_layers: self-attention blocks over the observation tokens before the actions look at them (ACT has 4; Diffusion
            Policy's transformer none).
        causal: whether an action token sees earlier ones alone, as in Diffusion Policy's transformer.
    """

    name: str = "cross_transformer"
    dim: int = 128
    layers: int = 4
    heads: int = 4
    mlp_ratio: int = 4
    dropout: float = 0.0
    observation_layers: int = 1
    causal: bool = False


class CrossTransformer(nn.Module):
    """One token an action, attending to one token an observation step and one for the time; arguments as for the U-Net.

    The decoder of Diffusion Policy's transformer (Chi et al., 2023) and of ACT (Zhao et al., 2023), pre-norm. Without a
    sample the action tokens are learned queries.
    """

    def __init__(
        self,
        config: CrossTransformerConfig,
        *,
        input_dim: int | None,
        output_dim: int,
        horizon: int,
        condition_dim: int,
        n_obs_steps: int,
    ) -> None:
        super().__init__()
        dim, sizes = config.dim, (config.dim, config.heads, config.mlp_ratio, config.dropout)
        self.position = nn.Parameter(0.02 * torch.randn(horizon, dim))
        self.embed = nn.Linear(input_dim, dim) if input_dim else None
        self.time = TimeEmbedding(dim) if input_dim else None
        self.observe = nn.Linear(condition_dim, dim)
        self.observation_position = nn.Parameter(0.02 * torch.randn(n_obs_steps, dim))
        self.observation_blocks = nn.ModuleList(AttentionBlock(*sizes) for _ in range(config.observation_layers))
        self.observation_norm = nn.LayerNorm(dim)
        self.blocks = nn.ModuleList(
            AttentionBlock(*sizes, causal=config.causal, cross=True) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, output_dim)

    def forward(self, sample: Tensor | None, time: Tensor | None, condition: Tensor) -> Tensor:
        """See :mod:`dopr_robot.policies.networks`."""
        memory = self.observe(condition) + self.observation_position
        x = self.position.expand(len(condition), -1, -1)
        if self.embed is not None and self.time is not None:
            memory = torch.cat([self.time(time)[:, None], memory], dim=1)
            x = x + self.embed(sample)
        for block in self.observation_blocks:
            memory = block(memory)
        memory = self.observation_norm(memory)
        for block in self.blocks:
            x = block(x, memory)
        return self.head(self.norm(x))


@dataclass
class CausalTransformerConfig(NetworkOptions):
    """Sizes of :class:`CausalTransformer`. The defaults are small enough for two CPU cores."""

    name: str = "causal_transformer"
    dim: int = 128
    layers: int = 4
    heads: int = 4
    mlp_ratio: int = 4
    dropout: float = 0.0


class CausalTransformer(nn.Module):
    """GPT over the steps of a window, each token an observation and the sample's action; arguments as for the U-Net.

    Action t depends on observations up to step t: with ``n_obs_steps = horizon`` and ``n_action_steps = 1`` this is the transformer
    of Behavior Transformers (Shafiullah et al., 2022) and of robomimic's BC-Transformer.
    """

    def __init__(
        self,
        config: CausalTransformerConfig,
        *,
        input_dim: int | None,
        output_dim: int,
        horizon: int,
        condition_dim: int,
        n_obs_steps: int,
    ) -> None:
        super().__init__()
        del n_obs_steps
        self.history = History(config.dim, input_dim=input_dim, horizon=horizon, condition_dim=condition_dim)
        self.position = nn.Parameter(0.02 * torch.randn(horizon, config.dim))
        self.blocks = nn.ModuleList(
            AttentionBlock(config.dim, config.heads, config.mlp_ratio, config.dropout, causal=True)
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.dim)
        self.head = nn.Linear(config.dim, output_dim)

    def forward(self, sample: Tensor | None, time: Tensor | None, condition: Tensor) -> Tensor:
        """See :mod:`dopr_robot.policies.networks`."""
        x = self.history(sample, time, condition) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))
