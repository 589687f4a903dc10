"""The 1-D U-Net over the action sequence, conditioned by FiLM."""

from dataclasses import dataclass, field

import torch
from einops import rearrange
from torch import Tensor, nn

from dopr_robot.errors import UserError
from dopr_robot.policies.networks.common import Conv1d, GroupNorm, Mish, TimeEmbedding
from dopr_robot.policies.options import NetworkOptions


@dataclass
class UNetConfig(NetworkOptions):
    """Sizes of :class:`UNet`. The defaults are small enough for two CPU cores.

    Diffusion Policy's published state U-Net is ``channels=[256, 512, 1024], kernel_size=5, time_dim=256``: 65,783,298 parameters
    with 2 action dimensions and an observation of 2 x 20.

    Args:
        local_condition: whether observations also enter step by step: at the highest resolution, each beside the action of its own
            step (steps that were not observed yet see zeros).
    """

    name: str = "unet"
    channels: list[int] = field(default_factory=lambda: [64, 128, 256])
    kernel_size: int = 5
    time_dim: int = 128
    groups: int = 8
    scale_and_shift: bool = True
    local_condition: bool = False


class ConvBlock(nn.Sequential):
    """Convolution that keeps the length, group norm, Mish: ``[B, in, H] -> [B, out, H]``."""

    def __init__(self, dim_in: int, dim_out: int, kernel_size: int, groups: int) -> None:
        super().__init__(Conv1d(dim_in, dim_out, kernel_size), GroupNorm(groups, dim_out), Mish())


class FiLMBlock(nn.Module):
    """Two convolutions with a residual; the condition scales and shifts the channels between them (Perez et al., 2018)."""

    def __init__(self, dim_in: int, dim_out: int, condition_dim: int, config: UNetConfig) -> None:
        super().__init__()
        self.scale_and_shift = config.scale_and_shift
        self.first = ConvBlock(dim_in, dim_out, config.kernel_size, config.groups)
        self.second = ConvBlock(dim_out, dim_out, config.kernel_size, config.groups)
        self.film = nn.Sequential(Mish(), nn.Linear(condition_dim, dim_out * (2 if self.scale_and_shift else 1)))
        self.residual = Conv1d(dim_in, dim_out, 1) if dim_in != dim_out else nn.Identity()

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

    def forward(self, x: Tensor, condition: Tensor, between: Tensor | float = 0.0) -> Tensor:
        return self.second(self.first(x, condition) + between, condition)


class UNet(nn.Module):
    """U-Net of Diffusion Policy (Chi et al., 2023): what every level sees is the time and all observations.

    Args:
        input_dim: channels of the sample; None: there is none, and the network begins from learned queries of ``channels[0]``.
        output_dim: channels of the output.
        horizon: H; must be a multiple of ``2 ** (levels - 1)``.
        condition_dim: C, features of one observation step.
        n_obs_steps: To.

    Raises:
        UserError: a horizon that the levels can not halve, an even kernel, or channels that the groups do not divide.
    """

    def __init__(
        self,
        config: UNetConfig,
        *,
        input_dim: int | None,
        output_dim: int,
        horizon: int,
        condition_dim: int,
        n_obs_steps: int,
    ) -> None:
        super().__init__()
        factor = 2 ** (len(config.channels) - 1)
        if horizon % factor:
            raise UserError(
                f"policy.horizon={horizon} does not fit a U-Net of {len(config.channels)} levels: take a multiple of {factor}"
            )
        if config.kernel_size % 2 == 0:
            raise UserError(
                f"network.kernel_size={config.kernel_size} has to be odd, so that a convolution keeps the length"
            )
        if any(width % config.groups for width in config.channels):
            raise UserError(f"network.channels={list(config.channels)} have to be multiples of groups={config.groups}")
        widths = list(config.channels)
        self.time = TimeEmbedding(config.time_dim, Mish) if input_dim else None
        self.query = None if input_dim else nn.Parameter(0.02 * torch.randn(horizon, widths[0]))
        condition = condition_dim * n_obs_steps + (config.time_dim if input_dim else 0)
        inputs = [input_dim or widths[0], *widths[:-1]]
        self.down = nn.ModuleList(Level(a, b, condition, config) for a, b in zip(inputs, widths, strict=True))
        # One block for the way down and one for the way up: [B, C, H] -> [B, channels[0], H].
        self.local = nn.ModuleList(
            FiLMBlock(condition_dim, widths[0], condition, config) for _ in range(2 if config.local_condition else 0)
        )
        self.shrink = nn.ModuleList(nn.Conv1d(width, width, 3, stride=2, padding=1) for width in widths[:-1])
        self.middle = Level(widths[-1], widths[-1], condition, config)
        upwards = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(Level(2 * deep, shallow, condition, config) for deep, shallow in upwards)
        self.grow = nn.ModuleList(nn.ConvTranspose1d(width, width, 4, stride=2, padding=1) for _, width in upwards)
        self.head = nn.Sequential(
            ConvBlock(widths[0], widths[0], config.kernel_size, config.groups), Conv1d(widths[0], output_dim, 1)
        )

    def forward(self, sample: Tensor | None, time: Tensor | None, condition: Tensor) -> Tensor:
        """See :mod:`dopr_robot.policies.networks`."""
        begin = sample if self.query is None else self.query.expand(len(condition), -1, -1)
        assert begin is not None
        x, seen = rearrange(begin, "b h a -> b a h"), rearrange(condition, "b t c -> b c t")
        condition = condition.flatten(1)
        if self.time is not None:
            condition = torch.cat([self.time(time), condition], dim=-1)
        seen = nn.functional.pad(seen, (0, x.shape[-1] - seen.shape[-1]))
        local = [block(seen, condition) for block in self.local] or [0.0, 0.0]
        skips = []
        for index, (level, shrink) in enumerate(zip(self.down, [*self.shrink, nn.Identity()], strict=True)):
            x = level(x, condition, 0.0 if index else local[0])
            skips.append(x)
            x = shrink(x)
        x = self.middle(x, condition)
        for level, grow in zip(self.up, self.grow, strict=True):
            x = grow(level(torch.cat([x, skips.pop()], dim=1), condition))
        return rearrange(self.head(x + local[1]), "b a h -> b h a")
