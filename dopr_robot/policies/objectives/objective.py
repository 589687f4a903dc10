"""What every objective offers."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from dopr_robot.policies.objectives.sampling import Generators


class Objective(nn.Module, ABC):
    """What a network is trained for, and how its answers become actions; everything here is in normalised units."""

    outputs_per_action: int = 1
    """The network's output width over A."""

    @abstractmethod
    def loss(self, network: nn.Module, action: Tensor, condition: Tensor) -> Tensor:
        """Training loss, a scalar: ``action [B, H, A], condition [B, To, C]``."""

    @abstractmethod
    def sample(
        self, network: nn.Module, shape: tuple[int, int, int], condition: Tensor, generator: Generators
    ) -> Tensor:
        """An action sequence ``[B, H, A]`` for every row of the condition."""
