"""ResNet-18 as a small file: torchvision's layout and names, so that its weights load, with norms that suit small batches."""

from itertools import pairwise
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dopr_robot.errors import UserError

Norm = Literal["group", "frozen_batch"]


class FrozenBatchNorm(nn.Module):
    """Batch norm whose statistics and scales are those of pretraining and stay so (as in DETR and ACT)."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        for name, value in {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}.items():
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.get_buffer("weight") * (self.get_buffer("running_var") + self.eps).rsqrt()
        shift = self.get_buffer("bias") - self.get_buffer("running_mean") * scale
        return x * scale[:, None, None] + shift[:, None, None]


def make_norm(channels: int, norm: Norm) -> nn.Module:
    """A group of the group norm has 16 channels, as in Diffusion Policy."""
    return FrozenBatchNorm(channels) if norm == "frozen_batch" else nn.GroupNorm(max(1, channels // 16), channels)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a residual (He et al., 2016)."""

    def __init__(self, dim_in: int, dim_out: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim_in, dim_out, 3, stride, padding=1, bias=False)
        self.bn1 = make_norm(dim_out, norm)
        self.conv2 = nn.Conv2d(dim_out, dim_out, 3, padding=1, bias=False)
        self.bn2 = make_norm(dim_out, norm)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or dim_in != dim_out:
            self.downsample = nn.Sequential(nn.Conv2d(dim_in, dim_out, 1, stride, bias=False), make_norm(dim_out, norm))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.bn1(self.conv1(x)).relu()
        return (self.bn2(self.conv2(hidden)) + self.downsample(x)).relu()


class ResNet18(nn.Module):
    """``[N, image_channels, h, w] -> [N, 8 * channels, h / 32, w / 32]``, rounded up.

    Args:
        image_channels: 3 for colour.
        channels: width of the first stage; 64 is the published network, 11.2 million parameters.
        norm: ``group``, or ``frozen_batch`` to use pretrained statistics as they are.
    """

    halvings = 5

    def __init__(self, image_channels: int = 3, channels: int = 64, norm: Norm = "group") -> None:
        super().__init__()
        if norm not in get_args(Norm):
            raise UserError(f"encoder.norm={norm!r} is none of {', '.join(get_args(Norm))}")
        self.conv1 = nn.Conv2d(image_channels, channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = make_norm(channels, norm)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        widths = [channels, channels, 2 * channels, 4 * channels, 8 * channels]
        for number, (dim_in, dim_out) in enumerate(pairwise(widths), start=1):
            stride = 1 if number == 1 else 2
            stage = nn.Sequential(BasicBlock(dim_in, dim_out, stride, norm), BasicBlock(dim_out, dim_out, 1, norm))
            self.add_module(f"layer{number}", stage)
        self.output_dim = widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.bn1(self.conv1(x)).relu())
        for number in range(1, 5):
            x = self.get_submodule(f"layer{number}")(x)
        return x


def load_pretrained(network: nn.Module, path: str | Path) -> None:
    """Fill a backbone from a ``.safetensors`` file with its parameters' usual names; a classifier in the file is left out.

    A ResNet with group norm takes the convolutions and begins with norms of its own: batch norm's scales mean nothing to it.

    Raises:
        UserError: no such file, not safetensors (pickles are not read), or parameters that are missing or of another shape.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"encoder.weights={path} does not exist: name a local .safetensors file")
    try:
        found = load_file(path)
    except SafetensorError as error:
        raise UserError(f"encoder.weights={path} is no safetensors file ({str(error).splitlines()[0]})") from None
    own = network.state_dict()
    norms = {name for name, module in network.named_modules() if isinstance(module, nn.GroupNorm)}
    wanted = [key for key in own if key.rpartition(".")[0] not in norms]
    for key in wanted:
        if key not in found:
            raise UserError(f"encoder.weights={path} has no {key!r}: it is not of this backbone")
        if found[key].shape != own[key].shape:
            raise UserError(
                f"encoder.weights={path}: {key!r} has shape {list(found[key].shape)}, expected {list(own[key].shape)}"
            )
    network.load_state_dict({key: found[key] for key in wanted}, strict=False)
