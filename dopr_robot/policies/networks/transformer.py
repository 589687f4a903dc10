"""Transformer over the action sequence, conditioned by adaptive layer norm that starts at zero (DiT)."""

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from dopr_robot.policies.networks.common import Attention, TimeEmbedding, zeroed
from dopr_robot.policies.networks.planning import Answer
from dopr_robot.policies.options import NetworkOptions


@dataclass
class TransformerConfig(NetworkOptions):
    """Sizes of :class:`Transformer`. The defaults are small enough for two CPU cores."""

    name: str = "transformer"
    dim: int = 128
    layers: int = 4
    heads: int = 4
    mlp_ratio: int = 4
    dropout: float = 0.0


class Block(nn.Module):
    """A DiT block: attention and perceptron, each scaled, shifted and gated by the condition; the gates start at zero."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim = config.dim
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False)
        self.attention = Attention(dim, config.heads, config.dropout)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False)
        self.mlp = nn.Sequential(
            nn.Linear(dim, config.mlp_ratio * dim), nn.GELU(approximate="tanh"), nn.Linear(config.mlp_ratio * dim, dim)
        )
        self.dropout = nn.Dropout(config.dropout)
        self.modulation = zeroed(nn.Linear(dim, 6 * dim))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.dropout(self.attention(self.norm1(x) * (1 + scale1) + shift1))
        return x + gate2 * self.dropout(self.mlp(self.norm2(x) * (1 + scale2) + shift2))

    def prepared(self, conditions: Tensor) -> Answer:
        """The block at every one of the conditions ``[T, B, dim]``, as a function of ``x [B, N, dim]`` and a condition's number."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(conditions)[:, :, None].chunk(6, dim=-1)
        scale1, scale2 = 1 + scale1, 1 + scale2
        attention, shape = self.attention, (self.norm1.normalized_shape, None, None, self.norm1.eps)
        three = (attention.query, attention.key, attention.value)
        weight, bias = torch.cat([each.weight for each in three]), torch.cat([each.bias for each in three])
        into, _, last = cast(tuple[nn.Linear, nn.Module, nn.Linear], tuple(self.mlp))
        out = attention.out

        def answer(x: Tensor, number: int) -> Tensor:
            seen = torch.addcmul(shift1[number], functional.layer_norm(x, *shape), scale1[number])
            # [B, N, 3 dim] to query, key and value, each [B, heads, N, dim / heads].
            query, key, value = (
                functional.linear(seen, weight, bias).unflatten(-1, (3, attention.heads, -1)).permute(2, 0, 3, 1, 4)
            )
            mixed = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
            x = torch.addcmul(x, gate1[number], functional.linear(mixed, out.weight, out.bias))
            seen = torch.addcmul(shift2[number], functional.layer_norm(x, *shape), scale2[number])
            hidden = _gelu(functional.linear(seen, into.weight, into.bias))
            return torch.addcmul(x, gate2[number], functional.linear(hidden, last.weight, last.bias))

        return answer


def _gelu(x: Tensor) -> Tensor:
    """``gelu(x, approximate="tanh")`` through the sigmoid, within 5e-7: a batch's plan on a CPU takes 0.91 of the time."""
    return x * torch.addcmul(x, x * x, x, value=0.044715).mul_(2 * math.sqrt(2 / math.pi)).sigmoid_()


class Transformer(nn.Module):
    """Diffusion transformer with adaLN-zero (Peebles and Xie, 2023), one token an action; arguments as for the U-Net.

    The condition of every block is the sum of the embedded time and the embedded observations. The last projection starts at zero,
    so the untrained network answers 0.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        input_dim: int | None,
        output_dim: int,
        horizon: int,
        condition_dim: int,
        n_obs_steps: int,
    ) -> None:
        super().__init__()
        dim = config.dim
        self.embed = nn.Linear(input_dim, dim) if input_dim else None
        self.position = nn.Parameter(0.02 * torch.randn(horizon, dim))
        self.time = TimeEmbedding(dim) if input_dim else None
        self.observe = nn.Sequential(
            nn.Linear(condition_dim * n_obs_steps, config.mlp_ratio * dim),
            nn.SiLU(),
            nn.Linear(config.mlp_ratio * dim, dim),
        )
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.modulation = zeroed(nn.Linear(dim, 2 * dim))
        self.head = zeroed(nn.Linear(dim, output_dim))

    def forward(self, sample: Tensor | None, time: Tensor | None, condition: Tensor) -> Tensor:
        """See :mod:`dopr_robot.policies.networks`."""
        condition, x = self.observe(condition.flatten(1)), self.position.expand(len(condition), -1, -1)
        if self.embed is not None and self.time is not None:
            condition, x = condition + self.time(time), x + self.embed(sample)
        # One activation for all blocks: SiLU of the condition is what each block's modulation reads.
        condition = functional.silu(condition)
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.modulation(condition)[:, None].chunk(2, dim=-1)
        return self.head(self.norm(x) * (1 + scale) + shift)

    def plan(self, times: Tensor, condition: Tensor) -> Answer:
        """See :func:`~dopr_robot.policies.networks.planning.at_times`.

        Observations are embedded once, and every block's modulation at all times comes from one product; queries, keys and values are
        projected together. What is left of a step are the products of the tokens and the few operations between them.
        """
        assert self.embed is not None and self.time is not None
        embed, head, shape = self.embed, self.head, (self.norm.normalized_shape, None, None, self.norm.eps)
        # [T, B, dim]: the first axis is the time's.
        both = functional.silu(self.observe(condition.flatten(1)) + self.time(times)[:, None])
        position = self.position + embed.bias
        blocks = [cast(Block, block).prepared(both) for block in self.blocks]
        shift, scale = self.modulation(both)[:, :, None].chunk(2, dim=-1)
        scale = 1 + scale

        def answer(sample: Tensor, number: int) -> Tensor:
            x = position + functional.linear(sample, embed.weight)
            for block in blocks:
                x = block(x, number)
            x = torch.addcmul(shift[number], functional.layer_norm(x, *shape), scale[number])
            return functional.linear(x, head.weight, head.bias)

        return answer
