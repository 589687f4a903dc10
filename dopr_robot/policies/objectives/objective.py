"""What every objective offers."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dopr_robot.errors import UserError
from dopr_robot.policies.objectives.sampling import Generators


@dataclass(frozen=True)
class Sizes:
    """What an objective is built for: A, H, C and To."""

    action_dim: int
    horizon: int
    condition_dim: int
    n_obs_steps: int


@dataclass(frozen=True)
class Held:
    """Actions that are under way already while the next ones are computed: a sampler keeps them as they are.

    Attributes:
        action: ``[B, H, A]``, normalised; what is not held is arbitrary.
        mask: bool ``[B, H, 1]``, where they are held.
    """

    action: Tensor
    mask: Tensor

    def over(self, x: Tensor, action: Tensor | None = None) -> Tensor:
        """``x`` with the held actions (or what stands for them, ``action``) in their places."""
        return torch.where(self.mask, self.action if action is None else action, x)


@dataclass(frozen=True)
class Limits:
    """The demonstrations' smallest and largest actions ``[A]``, normalised: -1 and 1 under minmax, elsewhere under other maps."""

    low: Tensor
    high: Tensor

    def clip(self, x: Tensor, factor: float) -> Tensor:
        """Actions ``[B, H, A]`` held within the demonstrations' range, ``factor`` times as wide about its centre."""
        middle, half = (self.low + self.high) / 2, (self.high - self.low) / 2
        return x.clamp(middle - factor * half, middle + factor * half)


class Objective(nn.Module, ABC):
    """What a network is trained for, and how its answers become actions; everything here is in normalised units.

    Attributes:
        input_dim: width of the sample that the network is handed; None where it is handed neither sample nor time.
        output_dim: width of the network's answer, for each action of the sequence.
        condition_dim: width of the condition that the network sees: the encoder's, or more where the objective adds to it.
        fits: whether :meth:`fit` has to see the data before training.
    """

    fits: bool = False

    def __init__(
        self, sizes: Sizes, *, input_dim: int | None, output_dim: int, condition_dim: int | None = None
    ) -> None:
        super().__init__()
        self.sizes = sizes
        self.input_dim = input_dim
        self.output_dim = output_dim
        self.condition_dim = sizes.condition_dim if condition_dim is None else condition_dim

    def fit(self, action: Tensor) -> None:
        """Take what is found in the training split's normalised actions ``[N, H, A]`` and not by gradient."""

    @abstractmethod
    def loss(self, network: nn.Module, action: Tensor, condition: Tensor) -> dict[str, Tensor]:
        """The terms of the training loss by name, scalars; the loss is their sum. ``action [B, H, A], condition [B, To, C]``."""

    @abstractmethod
    def sample(
        self, network: nn.Module, condition: Tensor, generator: Generators, limits: Limits, held: Held | None = None
    ) -> Tensor:
        """An action sequence ``[B, H, A]`` for every row of the condition.

        ``limits`` are for objectives whose answers have to be held within the demonstrations' actions.
        Sequences are drawn to continue ``held`` where the objective can do that; the others leave it to the caller to keep it.
        """


def choose(option: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise a UserError where ``objective.<option>`` is none of ``choices``."""
    if value not in choices:
        raise UserError(f"objective.{option}={value!r} is none of {', '.join(choices)}")
