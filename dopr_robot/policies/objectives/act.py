"""ACT's objective: a conditional variational autoencoder of action sequences."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dopr_robot.policies.networks.common import AttentionBlock
from dopr_robot.policies.objectives.objective import Held, Limits, Objective, Sizes
from dopr_robot.policies.objectives.sampling import Generators
from dopr_robot.policies.options import ObjectiveOptions


@dataclass
class ACTConfig(ObjectiveOptions):
    """Options of :class:`ACT`. ``latent_dim`` and ``kl_weight`` are the paper's; its encoder is 512 wide with 4 layers of 8 heads."""

    name: str = "act"
    latent_dim: int = 32
    kl_weight: float = 10.0
    dim: int = 128
    layers: int = 2
    heads: int = 4
    mlp_ratio: int = 4


class ACT(Objective):
    """Action chunking with transformers (Zhao et al., 2023, section IV): L1 on the chunk, given the style of the demonstration.

    In training an encoder reads observations and actions and gives a normal distribution of the style variable z; the network
    decodes the chunk from the observations and a draw of z. Acting takes z = 0, the prior's mean. The paper's own policy is this
    on ``cross_transformer``, executed with ``acting.ensemble=true``.
    """

    def __init__(self, config: ACTConfig, sizes: Sizes) -> None:
        super().__init__(
            sizes,
            input_dim=None,
            output_dim=sizes.action_dim,
            condition_dim=sizes.condition_dim + config.latent_dim,
        )
        self.config = config
        self.observe = nn.Linear(sizes.condition_dim, config.dim)
        self.embed = nn.Linear(sizes.action_dim, config.dim)
        # One place for the token that is read out, To for observations and H for actions.
        self.position = nn.Parameter(0.02 * torch.randn(1 + sizes.n_obs_steps + sizes.horizon, config.dim))
        self.blocks = nn.ModuleList(
            AttentionBlock(config.dim, config.heads, config.mlp_ratio) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.dim)
        self.posterior = nn.Linear(config.dim, 2 * config.latent_dim)

    def loss(self, network: nn.Module, action: Tensor, condition: Tensor) -> dict[str, Tensor]:
        """Mean absolute error, and the weighted divergence of z's distribution from the standard normal."""
        tokens = torch.cat([self.observe(condition), self.embed(action)], dim=1)
        x = F.pad(tokens, (0, 0, 1, 0)) + self.position
        for block in self.blocks:
            x = block(x)
        mean, log_variance = self.posterior(self.norm(x[:, 0])).chunk(2, dim=-1)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1).mean()
        answer = network(None, None, self._with(condition, z))
        return {"l1": F.l1_loss(answer, action), "kl": self.config.kl_weight * divergence}

    def sample(
        self, network: nn.Module, condition: Tensor, generator: Generators, limits: Limits, held: Held | None = None
    ) -> Tensor:
        """The answer at z = 0, the mean of its prior."""
        del generator, limits, held
        return network(None, None, self._with(condition, condition.new_zeros(len(condition), self.config.latent_dim)))

    @staticmethod
    def _with(condition: Tensor, z: Tensor) -> Tensor:
        """The condition with z beside every observation step."""
        return torch.cat([condition, z[:, None].expand(-1, condition.shape[1], -1)], dim=-1)
