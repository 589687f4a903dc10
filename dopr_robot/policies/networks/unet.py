"""The 1-D U-Net over the action sequence, conditioned by FiLM."""

from dataclasses import dataclass, field

import torch
from einops import rearrange
from torch import Tensor, nn

from dopr_robot.errors import UserError
from dopr_robot.policies.networks.common import TimeEmbedding


@dataclass
class UNetConfig:
    """Sizes of :class:`UNet`. The defaults are small enough for two CPU cores.

    Diffusion Policy's published state U-Net is ``channels=[256, 512, 1024], kernel_size=5, time_dim=256``: 65,783,298 parameters
    with 2 action dimensions and an observation of 2 x 20.
    """

    name: str = "unet"
    channels: list[int] = field(default_factory=lambda: [64, 128, 256])
    kernel_size: int = 5
    time_dim: int = 128
    groups: int = 8
    scale_and_shift: bool = True


class ConvBlock(nn.Sequential):
    """Convolution that keeps the length, group norm, Mish: ``[B, in, H] -> [B, out, H]``."""

    def __init__(self, dim_in: int, dim_out: int, kernel_size: int, groups: int) -> None:
        super().__init__(
            nn.Conv1d(dim_in, dim_out, kernel_size, padding=kernel_size // 2), nn.GroupNorm(groups, dim_out), nn.Mish()
        )


class FiLMBlock(nn.Module):
    """Two convolutions with a residual; the condition scales and shifts the channels between them (Perez et al., 2018)."""

    def __init__(self, dim_in: int, dim_out: int, condition_dim: int, config: UNetConfig) -> None:
        super().__init__()
        self.scale_and_shift = config.scale_and_shift
        self.first = ConvBlock(dim_in, dim_out, config.kernel_size, config.groups)
        self.second = ConvBlock(dim_out, dim_out, config.kernel_size, config.groups)
        self.film = nn.Sequential(nn.Mish(), nn.Linear(condition_dim, dim_out * (2 if self.scale_and_shift else 1)))
        self.residual = nn.Conv1d(dim_in, dim_out, 1) if dim_in != dim_out else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        hidden = self.first(x)
        film = self.film(condition)[:, :, None]
        if self.scale_and_shift:
            scale, shift = film.chunk(2, dim=1)
            hidden = scale * hidden + shift
        else:
            hidden = hidden + film
        return self.second(hidden) + self.residual(x)


class Level(nn.Module):
    """The two blocks of one resolution."""

    def __init__(self, dim_in: int, dim_out: int, condition_dim: int, config: UNetConfig) -> None:
        super().__init__()
        self.first = FiLMBlock(dim_in, dim_out, condition_dim, config)
        self.second = FiLMBlock(dim_out, dim_out, condition_dim, config)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.second(self.first(x, condition), condition)


class UNet(nn.Module):
    """U-Net of Diffusion Policy (Chi et al., 2023, section V-A): what every level sees is the time and all observations.

    Args:
        input_dim: A, channels of the sample.
        output_dim: channels of the output.
        horizon: H; must be a multiple of ``2 ** (levels - 1)``.
        condition_dim: C, features of one observation step.
        n_obs_steps: To.

    Raises:
        UserError: a horizon that the levels can not halve, or channels that the groups do not divide.
    """

    def __init__(
        self, config: UNetConfig, *, input_dim: int, output_dim: int, horizon: int, condition_dim: int, n_obs_steps: int
    ) -> None:
        super().__init__()
        factor = 2 ** (len(config.channels) - 1)
        if horizon % factor:
            raise UserError(
                f"policy.horizon={horizon} does not fit a U-Net of {len(config.channels)} levels: take a multiple of {factor}"
            )
        if any(width % config.groups for width in config.channels):
            raise UserError(f"network.channels={list(config.channels)} have to be multiples of groups={config.groups}")
        self.time = TimeEmbedding(config.time_dim, nn.Mish)
        condition = config.time_dim + condition_dim * n_obs_steps
        widths = list(config.channels)
        inputs = [input_dim, *widths[:-1]]
        self.down = nn.ModuleList(Level(a, b, condition, config) for a, b in zip(inputs, widths, strict=True))
        self.shrink = nn.ModuleList(nn.Conv1d(width, width, 3, stride=2, padding=1) for width in widths[:-1])
        self.middle = Level(widths[-1], widths[-1], condition, config)
        upwards = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(Level(2 * deep, shallow, condition, config) for deep, shallow in upwards)
        self.grow = nn.ModuleList(nn.ConvTranspose1d(width, width, 4, stride=2, padding=1) for _, width in upwards)
        self.head = nn.Sequential(
            ConvBlock(widths[0], widths[0], config.kernel_size, config.groups), nn.Conv1d(widths[0], output_dim, 1)
        )

    def forward(self, sample: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """``sample [B, H, A], time [B] in [0, 1], condition [B, To, C] -> [B, H, output_dim]``."""
        condition = torch.cat([self.time(time), condition.flatten(1)], dim=-1)
        x = rearrange(sample, "b h a -> b a h")
        skips = []
        for level, shrink in zip(self.down, [*self.shrink, nn.Identity()], strict=True):
            x = level(x, condition)
            skips.append(x)
            x = shrink(x)
        x = self.middle(x, condition)
        for level, grow in zip(self.up, self.grow, strict=True):
            x = grow(level(torch.cat([x, skips.pop()], dim=1), condition))
        return rearrange(self.head(x), "b a h -> b h a")
