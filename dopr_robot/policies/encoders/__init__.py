"""From normalised observations to the condition that networks read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dopr_robot.errors import UnknownNameError, UserError
from dopr_robot.images import CHANNELS, is_image
from dopr_robot.policies.encoders.images import Augmentation, SpatialSoftmax, ViT
from dopr_robot.policies.encoders.impala import Impala
from dopr_robot.policies.encoders.resnet import ResNet18, load_pretrained
from dopr_robot.policies.options import RANGES, EncoderOptions
from dopr_robot.policies.spec import ArraySpec

MOST_VALUES = 10_000_000
"""Values that an embedded observation can have at most."""


@dataclass
class EncoderConfig(EncoderOptions):
    """What becomes of the observations. Vectors go in as they are; images (uint8 ``[h, w, C]``) through a backbone.

    Args:
        backbone: ``resnet18``; ``impala``, a small one for CPUs and few demonstrations; or ``vit`` (extra ``vit``).
        channels: width of the ResNet's first stage; 64 is the published one.
        impala_channels: width of IMPALA's first stage; 16 is the published one.
        norm: the ResNet's: ``group``, or ``frozen_batch`` to keep pretrained statistics.
        keypoints: of the spatial softmax that reads the ResNet or IMPALA's network out.
        vit: timm's name of a vision transformer.
        image_dim: features of one camera.
        shared: whether all cameras go through one backbone, those of a size in one batch.
        weights: local ``.safetensors`` file that the backbone begins with, or null.
        crop: share of height and width that is kept: a random part in training, the centre when acting.
        colour: strength of random brightness, contrast and saturation in training.
        embed: ``{key: number of values}`` of whole-number observations, such as a task's id, that get a learned vector each.
        project: ``{key: width}`` of long vectors, such as a sentence's embedding, that a linear layer makes shorter first.
    """

    backbone: str = "resnet18"
    channels: int = 64
    impala_channels: int = 16
    norm: str = "group"
    keypoints: int = 32
    vit: str = "vit_tiny_patch16_224"
    image_dim: int = 64
    shared: bool = False
    weights: str | None = None
    crop: float = 0.9
    colour: float = 0.0
    embed: dict[str, Any] = field(default_factory=dict)
    embed_dim: int = 16
    project: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        for option, most in (("embed", MOST_VALUES), ("project", RANGES["dim"][1])):
            for key, number in getattr(self, option).items():
                if not isinstance(number, int) or not 1 <= number <= most:
                    raise UserError(
                        f"policy.encoder.{option}.{key}={number} has to be a whole number from 1 to {most:,}"
                    )


class Encoder(nn.Module):
    """Concatenates all observations' features: ``{key: [B, To, ...]} -> [B, To, C]``.

    Args:
        observations: as networks see them: shape and dtype of a step, by key.
        config: what becomes of them.

    Raises:
        UserError: an image whose layout is not uint8 ``[h, w, C]``, or an option that names no observation.
    """

    def __init__(self, observations: Mapping[str, ArraySpec], config: EncoderConfig | None = None) -> None:
        super().__init__()
        config = config or EncoderConfig()
        self.keys = tuple(observations)
        for option in ("embed", "project"):
            for key in getattr(config, option):
                if key not in observations:
                    raise UnknownNameError(f"observation in policy.encoder.{option}", key, observations)
        self.parts, self.backbones = nn.ModuleDict(), nn.ModuleDict()
        dims = {key: spec.size for key, spec in observations.items()}
        for key, count in config.embed.items():
            self.parts[_name(key)] = Identities(key, int(count), config.embed_dim)
            dims[key] *= config.embed_dim
        for key, width in config.project.items():
            self.parts[_name(key)] = nn.Sequential(nn.Flatten(2), nn.Linear(observations[key].size, int(width)))
            dims[key] = int(width)
        self.backbone_of: dict[str, str] = {}
        for key in (key for key, spec in observations.items() if reads_image(key, spec)):
            spec, owner = observations[key], "shared" if config.shared else _name(key)
            augment = Augmentation(spec.shape[0], spec.shape[1], config.crop, config.colour)
            if owner not in self.backbones:
                self.backbones[owner] = make_backbone(config, spec.shape[2], augment.size)
            self.parts[_name(key)] = Camera(augment, self.backbones[owner], config)
            self.backbone_of[key] = owner
            dims[key] = config.image_dim
        self.output_dim = sum(dims.values())

    def forward(self, observation: Mapping[str, Tensor]) -> Tensor:
        pictures = self._pictures(observation)
        features = []
        for key in self.keys:
            value = observation[key]
            if key in pictures:
                features.append(pictures[key])
            else:
                features.append(
                    self.parts[_name(key)](value) if _name(key) in self.parts else value.reshape(*value.shape[:2], -1)
                )
        return torch.cat(features, dim=-1)

    def _pictures(self, observation: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Features of every camera, ``[B, To, image_dim]``. What one backbone reads of one size goes through it in one batch."""
        seen = {key: self.parts[_name(key)].augment(observation[key]) for key in self.backbone_of}
        batches: dict[tuple[str, torch.Size], list[str]] = {}
        for key, owner in self.backbone_of.items():
            batches.setdefault((owner, seen[key].shape), []).append(key)
        features: dict[str, Tensor] = {}
        for (owner, shape), keys in batches.items():
            maps = self.backbones[owner](torch.cat([seen[key].flatten(0, 1) for key in keys]))
            for key, own in zip(keys, maps.chunk(len(keys)), strict=True):
                features[key] = self.parts[_name(key)](own).unflatten(0, shape[:2])
        return features


class Identities(nn.Module):
    """Whole numbers as learned vectors: ``[B, To, ...] -> [B, To, n * dim]``. Raises UserError for a number that has none."""

    def __init__(self, key: str, count: int, dim: int) -> None:
        super().__init__()
        self.key = key
        self.table = nn.Embedding(count, dim)

    def forward(self, value: Tensor) -> Tensor:
        numbers = value.reshape(*value.shape[:2], -1).round().long()
        outside = (numbers < 0) | (numbers >= self.table.num_embeddings)
        if outside.any():
            raise UserError(
                f"observation {self.key!r} is {int(numbers[outside][0])}: policy.encoder.embed has room for 0 to "
                f"{self.table.num_embeddings - 1}"
            )
        return self.table(numbers).flatten(2)


class Camera(nn.Module):
    """What a camera has of its own: augmentation before the backbone, and behind it ``[N, ...] -> [N, image_dim]``."""

    def __init__(self, augment: Augmentation, backbone: nn.Module, config: EncoderConfig) -> None:
        super().__init__()
        self.augment = augment
        features: int = backbone.output_dim  # type: ignore[assignment]
        least = getattr(backbone, "halvings", None)
        convolutional = least is not None
        if least is not None and max(augment.size) <= 2**least:
            raise UserError(
                f"images of {list(augment.size)} after encoder.crop leave one position to {config.backbone}, which halves {least} times: "
                f"more than {2**least} pixels are needed"
            )
        self.read_out = SpatialSoftmax(features, config.keypoints) if convolutional else nn.Identity()
        self.project = nn.Linear(2 * config.keypoints if convolutional else features, config.image_dim)

    def forward(self, features: Tensor) -> Tensor:
        return self.project(self.read_out(features))


def make_backbone(config: EncoderConfig, image_channels: int, size: tuple[int, int]) -> nn.Module:
    """The backbone that the options name, for images of that size, with its pretrained weights."""
    backbone: nn.Module
    if config.backbone == "resnet18":
        norm: Any = config.norm
        backbone = ResNet18(image_channels, config.channels, norm)
    elif config.backbone == "impala":
        backbone = Impala(image_channels, config.impala_channels)
    elif config.backbone == "vit":
        backbone = ViT(config.vit, image_channels, size)
    else:
        raise UserError(f"encoder.backbone={config.backbone!r} is none of resnet18, impala, vit")
    if config.weights is not None:
        load_pretrained(backbone.model if isinstance(backbone, ViT) else backbone, config.weights)
    return backbone


def reads_image(key: str, spec: ArraySpec) -> bool:
    """Whether an observation is an image. Raises UserError for what looks like one and is not uint8 ``[h, w, C]``."""
    if is_image(spec.shape, spec.dtype):
        return True
    if len(spec.shape) == 3 or (len(spec.shape) == 2 and spec.dtype == "uint8"):
        hint = ": the channels have to come last" if len(spec.shape) == 3 and spec.shape[0] in CHANNELS else ""
        raise UserError(
            f"observation {key!r} is {spec.dtype} {list(spec.shape)}, images are expected as uint8 [height, width, 1, 3 or 4]{hint}"
        )
    return False


def _name(key: str) -> str:
    return key.replace(".", "/")  # a module's name can hold no dot
