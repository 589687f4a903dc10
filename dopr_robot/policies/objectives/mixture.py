"""Mixture of Gaussians: several things to do, with their probabilities, in one network call."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dopr_robot.policies.objectives.objective import Held, Limits, Objective, Sizes, choose
from dopr_robot.policies.objectives.sampling import Generators, categorical, normal
from dopr_robot.policies.options import ObjectiveOptions


@dataclass
class MixtureConfig(ObjectiveOptions):
    """Options of :class:`Mixture`; the defaults are robomimic's.

    Args:
        modes: Gaussians in the mixture.
        over: what a component is chosen for: ``sequence`` (all H actions together, so that a plan does not change its mind half-way)
            or ``step`` (each action for itself, as robomimic does, whose policies execute one action a plan).
        min_std: least standard deviation, in normalised units.
        low_noise: whether acting takes the chosen component's mean with a standard deviation of 1e-4 (robomimic's
            ``low_noise_eval``) instead of its own.
    """

    of_acting = ("low_noise",)
    name: str = "mixture"
    modes: int = 5
    over: str = "sequence"
    min_std: float = 1e-4
    low_noise: bool = True


class Mixture(Objective):
    """Mixture density network (Bishop, 1994), trained by maximum likelihood: robomimic's GMM head, for sequences."""

    LOW_NOISE = 1e-4

    def __init__(self, config: MixtureConfig, sizes: Sizes) -> None:
        super().__init__(sizes, input_dim=None, output_dim=config.modes * (2 * sizes.action_dim + 1))
        choose("over", config.over, ("sequence", "step"))
        self.config = config

    def _mixture(self, network: nn.Module, condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits ``[B, 1 or H, K]``, means and standard deviations ``[B, H, K, A]``."""
        modes, dim = self.config.modes, self.sizes.action_dim
        logits, mean, std = network(None, None, condition).split((modes, modes * dim, modes * dim), dim=-1)
        if self.config.over == "sequence":
            logits = logits.mean(1, keepdim=True)
        return (
            logits,
            mean.unflatten(-1, (modes, dim)),
            F.softplus(std).unflatten(-1, (modes, dim)) + self.config.min_std,
        )

    def loss(self, network: nn.Module, action: Tensor, condition: Tensor) -> dict[str, Tensor]:
        """Negative log-likelihood for each action of the sequence."""
        logits, mean, std = self._mixture(network, condition)
        of_mode = torch.distributions.Normal(mean, std).log_prob(action[:, :, None]).sum(-1)  # [B, H, K]
        if self.config.over == "sequence":
            of_mode = of_mode.sum(1, keepdim=True)
        log_likelihood = torch.logsumexp(logits.log_softmax(-1) + of_mode, dim=-1)
        return {"nll": -log_likelihood.sum() / (len(action) * self.sizes.horizon)}

    def sample(
        self, network: nn.Module, condition: Tensor, generator: Generators, limits: Limits, held: Held | None = None
    ) -> Tensor:
        """A draw from a component that is drawn first."""
        del limits, held
        logits, mean, std = self._mixture(network, condition)
        chosen = categorical(logits.softmax(-1), generator).expand(-1, self.sizes.horizon)[..., None, None]
        mean, std = (each.take_along_dim(chosen, dim=2).squeeze(2) for each in (mean, std))
        noise = normal(mean.shape, generator, like=mean)
        return mean + (self.LOW_NOISE if self.config.low_noise else std) * noise
