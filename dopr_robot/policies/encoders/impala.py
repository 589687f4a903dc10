"""IMPALA's residual network: a backbone of 97,000 parameters for CPUs and few demonstrations."""

from itertools import pairwise

from torch import Tensor, nn


class Residual(nn.Module):
    """Two 3x3 convolutions, each behind a ReLU, and a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x.relu()).relu())


class Impala(nn.Module):
    """``[N, image_channels, h, w] -> [N, 2 * channels, h / 8, w / 8]``, rounded up.

    Three stages of a convolution, a max pool that halves, and two residual blocks (Espeholt et al., "IMPALA", 2018, figure 3, right).

    Args:
        image_channels: 3 for colour.
        channels: width of the first stage; the others have twice that. 16 is the published network.
    """

    halvings = 3

    def __init__(self, image_channels: int = 3, channels: int = 16) -> None:
        super().__init__()
        widths = [image_channels, channels, 2 * channels, 2 * channels]
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(dim_in, dim_out, 3, padding=1),
                nn.MaxPool2d(3, stride=2, padding=1),
                Residual(dim_out),
                Residual(dim_out),
            )
            for dim_in, dim_out in pairwise(widths)
        )
        self.output_dim = widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return x.relu()
