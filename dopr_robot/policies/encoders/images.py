"""From uint8 images to features: augmentation on the device, a backbone, and what is read out of it."""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from dopr_robot.errors import MissingExtraError, UserError
from dopr_robot.policies.torchvision import make_importable


class Augmentation(nn.Module):
    """Random crop and colour in training, the centre crop otherwise; all steps of a window alike, so that nothing seems to move.

    ``uint8 [B, T, h, w, C] -> float32 [B, T, C, crop_h, crop_w]`` in [-1, 1]. What is drawn comes from torch's global generator.

    Args:
        height, width: of the images.
        crop: share of both that is kept.
        colour: brightness, contrast and saturation are each multiplied by a number in [1 - colour, 1 + colour].
    """

    def __init__(self, height: int, width: int, crop: float, colour: float) -> None:
        super().__init__()
        if not 0 < crop <= 1:
            raise UserError(f"encoder.crop={crop} has to lie in (0, 1]")
        if not 0 <= colour < 1:
            raise UserError(f"encoder.colour={colour} has to lie in [0, 1)")
        self.colour = colour
        self.margins = height - round(crop * height), width - round(crop * width)
        self.size = height - self.margins[0], width - self.margins[1]

    def forward(self, images: Tensor) -> Tensor:
        # Cropped while they are bytes: a quarter of the traffic.
        images = self._crop(images)
        x = rearrange(images, "b t h w c -> b t c h w").float() / 255
        if self.training and self.colour:
            x = self._recolour(x)
        return 2 * x - 1

    def _crop(self, images: Tensor) -> Tensor:
        b, device = len(images), images.device
        rows, columns = (
            (torch.randint(0, margin + 1, (b, 1), device=device) if self.training else margin // 2)
            + torch.arange(size, device=device).expand(b, size)
            for margin, size in zip(self.margins, self.size, strict=True)
        )
        each, step = (torch.arange(n, device=device) for n in images.shape[:2])
        return images[each[:, None, None, None], step[:, None, None], rows[:, None, :, None], columns[:, None, None, :]]

    def _recolour(self, x: Tensor) -> Tensor:
        low, width = 1 - self.colour, 2 * self.colour
        draws = low + width * torch.rand(len(x), 3, 1, 1, 1, 1, device=x.device)
        brightness, contrast, saturation = draws.unbind(1)
        x = x * brightness
        x = x.mean((2, 3, 4), keepdim=True).lerp(x, contrast)
        if x.shape[2] == 3:
            weights = x.new_tensor([0.299, 0.587, 0.114])[:, None, None]  # ITU-R BT.601
            x = (weights * x).sum(2, keepdim=True).expand_as(x).lerp(x, saturation)
        return x.clamp(0, 1)


class SpatialSoftmax(nn.Module):
    """Expected image coordinates of ``keypoints`` feature maps: ``[N, C, h, w] -> [N, 2 * keypoints]`` in [-1, 1], x before y.

    Finn et al., "Deep spatial autoencoders for visuomotor learning", 2016; the 1x1 convolution before it is robomimic's, without the
    bias, which a softmax does not see.
    """

    def __init__(self, channels: int, keypoints: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, keypoints, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        maps = self.project(features)
        weights = maps.flatten(2).softmax(-1).view_as(maps)
        y, x = (torch.linspace(-1, 1, n, device=maps.device, dtype=maps.dtype) for n in maps.shape[2:])
        return torch.cat([(weights.sum(2) * x).sum(-1), (weights.sum(3) * y).sum(-1)], dim=-1)


class ViT(nn.Module):
    """A vision transformer of timm's without its classifier: ``[N, C, h, w] -> [N, dim]``."""

    def __init__(self, model: str, image_channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        make_importable()
        try:
            import timm
        except ImportError:
            raise MissingExtraError("a vision transformer", "vit") from None
        options: dict[str, Any] = {"num_classes": 0, "in_chans": image_channels, "img_size": size}
        try:
            self.model = timm.create_model(model, pretrained=False, **options)
        except (RuntimeError, ValueError, AssertionError, TypeError) as error:
            raise UserError(f"encoder.vit={model!r} for images of {list(size)}: {str(error).splitlines()[0]}") from None
        self.output_dim = self.model.num_features

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)
