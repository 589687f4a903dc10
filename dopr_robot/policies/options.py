"""Options: dataclasses that check themselves, made from plain mappings with the schema's names and types enforced."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

from dopr_robot.errors import UserError
from dopr_robot.settings import typed

T = TypeVar("T")

RANGES: dict[str, tuple[float, float]] = {
    "bins": (1, 65_536),
    "blocks": (0, 1024),
    "channels": (1, 65_536),
    "clip": (1e-6, 1e6),
    "delta": (1e-9, 1e6),
    "dim": (1, 65_536),
    "dropout": (0, 0.999),
    "embed_dim": (1, 65_536),
    "gamma": (0, 100),
    "groups": (1, 65_536),
    "heads": (1, 1024),
    "image_dim": (1, 65_536),
    "impala_channels": (1, 65_536),
    "keypoints": (1, 65_536),
    "kernel_size": (1, 1023),
    "kl_weight": (0, 1e9),
    "latent_dim": (1, 65_536),
    "layers": (1, 1024),
    "min_std": (1e-9, 1e6),
    "mlp_ratio": (1, 1024),
    "modes": (1, 65_536),
    "observation_layers": (0, 1024),
    "offset_weight": (0, 1e9),
    "steps": (1, 1_000_000),
    "time_dim": (2, 65_536),
    "time_steps": (1, 1_000_000),
    "train_steps": (1, 1_000_000),
}
"""Smallest and largest of each number among the options: generous, so that what lies outside is a mistake or a damaged file."""


@dataclass
class Checked:
    """Options that check themselves when made.

    Raises:
        UserError: a number outside its range.
    """

    part: ClassVar[str] = "policy"

    def __post_init__(self) -> None:
        for each in fields(self):
            if each.name in RANGES and (value := getattr(self, each.name)) is not None:
                numbers = value if isinstance(value, list | tuple) else [value]
                low, high = RANGES[each.name]
                if not numbers or not all(isinstance(one, int | float) and low <= one <= high for one in numbers):
                    raise UserError(f"{self.part}.{each.name}={value} has to lie between {low:,} and {high:,}")


@dataclass
class NetworkOptions(Checked):
    """Options of a network."""

    part: ClassVar[str] = "policy.network"


@dataclass
class ObjectiveOptions(Checked):
    """Options of an objective.

    Attributes:
        of_acting: names of those that training does not know: a trained policy can act under others.
    """

    part: ClassVar[str] = "policy.objective"
    of_acting: ClassVar[tuple[str, ...]] = ()


@dataclass
class EncoderOptions(Checked):
    """Options of the encoders."""

    part: ClassVar[str] = "policy.encoder"


def options(schema: type[T], values: Mapping[str, Any], where: str) -> T:
    """An instance of the dataclass ``schema`` with ``values`` over its defaults.

    Raises:
        UserError: a key that the schema does not have (with the closest that it has), or a value of another type.
    """
    return typed(schema, values, where)
