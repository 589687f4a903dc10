"""Parts that more than one network uses."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import layer_norm, linear, pad, scaled_dot_product_attention

from dopr_robot.errors import UserError


class TimeEmbedding(nn.Module):
    """Sinusoidal features of time, then a two-layer perceptron: ``[B] -> [B, dim]``.

    The frequencies are those of the Transformer (Vaswani et al., 2017) on ``1000 t``: from 0.1 to 1000, which for flow's t in [0, 1]
    is what pi0 takes (1.6 to 1571), and for diffusion's t = n / 1000 the features of the step number n.
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


class Conv1d(nn.Conv1d):
    """A convolution ``[B, in, L] -> [B, out, L]``, on a CPU as one matrix product where the sequence is short.

    oneDNN's kernels reach a sixth to a half of a product's rate at lengths as the depths of a U-Net have, and it sorts the weights anew at
    each call: forward and backward at length 4, batch 64, kernel 5, on one thread of an AVX2 processor took 1.3 (64 channels), 1.7 (256)
    and 3.5 times (1024) as long; 1.3 at length 8 from 256 channels on; nothing is gained at 16.
    """

    def __init__(self, dim_in: int, dim_out: int, kernel_size: int) -> None:
        super().__init__(dim_in, dim_out, kernel_size, padding=kernel_size // 2)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # Not forward: DoPr leaves a layer alone that has one of its own.
        if x.device.type != "cpu" or x.shape[-1] > (8 if self.out_channels >= 128 else 4):
            return super()._conv_forward(x, weight, bias)
        (size,) = self.kernel_size
        seen = _seen(x, size) if torch.compiler.is_compiling() else _Seen.apply(x, size)
        return linear(seen, weight.flatten(1), bias).transpose(1, 2)


def _seen(x: Tensor, size: int) -> Tensor:
    """What a kernel of an odd size sees at each place of ``x [B, in, L]``: ``[B, L, in size]``."""
    return pad(x, (size // 2, size // 2)).unfold(2, size, 1).transpose(1, 2).flatten(2)


class _Seen(torch.autograd.Function):
    """:func:`_seen`, whose gradient is summed place by place of the kernel: in half the time of torch's ``unfold_backward``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int) -> Tensor:
        ctx.shape = (*x.shape, size)
        return _seen(x, size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        batch, channels, length, size = ctx.shape
        parts = gradient.view(batch, length, channels, size).permute(3, 0, 1, 2).contiguous()
        total = gradient.new_zeros(batch, length + size - 1, channels)
        for start, part in enumerate(parts):
            total[:, start : start + length] += part
        return total[:, size // 2 : size // 2 + length].transpose(1, 2), None


class GroupNorm(nn.GroupNorm):
    """``nn.GroupNorm`` of ``[B, C, L]``, on a CPU by the kernel of layer norms where the sequence is at most 4 long.

    torch's own reads a channel at a time: forward and backward of [256, 256, 4] in 8 groups take it 2.2 ms, and this 1.1. At length 8
    torch's is the faster, in half the time.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or x.shape[-1] > 4:
            return super().forward(x)
        groups = x.reshape(len(x), self.num_groups, -1)
        normed = layer_norm(groups, groups.shape[2:], eps=self.eps).view(x.shape)
        return torch.addcmul(self.bias[:, None], normed, self.weight[:, None])


class _Mish(torch.autograd.Function):
    """``x tanh(softplus(x)) = x - 2 x / (u^2 + 1)`` with ``u = 1 + e^x``: one exponential, and the slope kept for the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        held = x.clamp(max=20.0)  # above, x is the answer within rounding
        u = held.exp().add_(1.0)
        part = (u * u).add_(1.0).reciprocal_()
        y = torch.addcmul(x, x, part, value=-2.0)
        if ctx.needs_input_grad[0]:
            # 1 - slope = 2 part + 4 x (u - u^2) part^2
            less = torch.addcmul(u, u, u, value=-1.0).mul_(part).mul_(held).mul_(4.0).add_(2.0).mul_(part)
            ctx.save_for_backward(less)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.addcmul(gradient, gradient, *ctx.saved_tensors, value=-1.0)


class Mish(nn.Mish):
    """``nn.Mish`` within 3e-6, without torch's logarithm and tanh: on a CPU 2 to 3 times as fast (1.1 to 1.4 forward alone)."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or x.dtype != torch.float32 or torch.compiler.is_compiling():
            return super().forward(x)
        return _Mish.apply(x)


class Attention(nn.Module):
    """Attention through four explicit projections, so that an optimizer that reads activations sees every matrix.

    Args:
        dim: features of a token.
        heads: has to divide ``dim``.
        dropout: of the attention's weights.
        causal: whether token n sees tokens 0..n alone.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0, causal: bool = False) -> None:
        super().__init__()
        if dim % heads:
            raise UserError(f"network.dim={dim} has to be a multiple of network.heads={heads}")
        self.heads = heads
        self.dropout = dropout
        self.causal = causal
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """``x [B, N, dim]`` looks at itself, or at ``memory [B, M, dim]``."""
        memory = x if memory is None else memory
        # [B, N, dim] to [B, heads, N, dim / heads] and back; einops would take a tenth of a small network's time.
        query, key, value = (
            project(source).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project, source in ((self.query, x), (self.key, memory), (self.value, memory))
        )
        dropout = self.dropout if self.training else 0.0
        x = scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=self.causal)
        return self.out(x.transpose(1, 2).flatten(2))


class AttentionBlock(nn.Module):
    """Pre-norm transformer block: self-attention, attention to a memory where it has one, perceptron; each with a residual."""

    def __init__(
        self, dim: int, heads: int, mlp_ratio: int, dropout: float = 0.0, *, causal: bool = False, cross: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, dropout, causal)
        self.norm_cross = nn.LayerNorm(dim) if cross else None
        self.cross = Attention(dim, heads, dropout) if cross else None
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_ratio * dim), nn.GELU(), nn.Linear(mlp_ratio * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """``x [B, N, dim]``, ``memory [B, M, dim]``."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        if self.cross is not None and self.norm_cross is not None:
            x = x + self.dropout(self.cross(self.norm_cross(x), memory))
        return x + self.dropout(self.mlp(self.norm2(x)))


class History(nn.Module):
    """One token a step: what was observed at it, the sample's action at it, and the time: ``-> [B, H, dim]``.

    Observations end at step To - 1; later tokens hold the sample alone. Networks over it that look backwards only make a policy over
    history: action t depends on observations up to t.
    """

    def __init__(self, dim: int, *, input_dim: int | None, horizon: int, condition_dim: int) -> None:
        super().__init__()
        self.horizon = horizon
        self.observe = nn.Linear(condition_dim, dim)
        self.embed = nn.Linear(input_dim, dim) if input_dim else None
        self.time = TimeEmbedding(dim) if input_dim else None

    def forward(self, sample: Tensor | None, time: Tensor | None, condition: Tensor) -> Tensor:
        seen = self.observe(condition)
        x = nn.functional.pad(seen, (0, 0, 0, self.horizon - seen.shape[1]))
        if self.embed is not None and self.time is not None:
            x = x + self.embed(sample) + self.time(time)[:, None]
        return x


def zeroed(linear: nn.Linear) -> nn.Linear:
    """The layer with weight and bias set to zero."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
