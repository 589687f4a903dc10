"""Regression: the action that is best on average, in one network call."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from dopr_robot.policies.objectives.objective import Held, Limits, Objective, Sizes, choose
from dopr_robot.policies.objectives.sampling import Generators
from dopr_robot.policies.options import ObjectiveOptions

LOSSES: dict[str, Callable[..., Tensor]] = {"l2": F.mse_loss, "l1": F.l1_loss, "huber": F.huber_loss}


@dataclass
class RegressionConfig(ObjectiveOptions):
    """Options of :class:`Regression`.

    Args:
        loss: ``l2`` (learns the mean), ``l1`` (the median) or ``huber``.
        delta: where Huber's loss goes from quadratic to linear, in normalised units.
    """

    name: str = "regression"
    loss: str = "l2"
    delta: float = 0.1


class Regression(Objective):
    """Behaviour cloning as it began. Where demonstrations do two things in one place, it learns what lies between them."""

    def __init__(self, config: RegressionConfig, sizes: Sizes) -> None:
        super().__init__(sizes, input_dim=None, output_dim=sizes.action_dim)
        choose("loss", config.loss, tuple(LOSSES))
        self.config = config

    def loss(self, network: nn.Module, action: Tensor, condition: Tensor) -> dict[str, Tensor]:
        """The mean error over entries, steps and windows."""
        options = {"delta": self.config.delta} if self.config.loss == "huber" else {}
        return {self.config.loss: LOSSES[self.config.loss](network(None, None, condition), action, **options)}

    def sample(
        self, network: nn.Module, condition: Tensor, generator: Generators, limits: Limits, held: Held | None = None
    ) -> Tensor:
        """The network's answer; nothing is drawn."""
        del generator, limits, held
        return network(None, None, condition)
