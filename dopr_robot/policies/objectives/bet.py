"""Behavior Transformer's objective: which of k bins an action is in, and where in the bin."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dopr_robot.errors import UserError
from dopr_robot.policies.objectives.objective import Held, Limits, Objective, Sizes, choose
from dopr_robot.policies.objectives.sampling import Generators, categorical
from dopr_robot.policies.options import ObjectiveOptions

MOST_POINTS = 20_000
"""k-means sees at most so many actions, evenly spaced."""


@dataclass
class BeTConfig(ObjectiveOptions):
    """Options of :class:`BeT`.

    Args:
        bins: k of the k-means.
        over: what is binned: a whole ``sequence`` of H actions, so that a plan does not change its mind half-way, or each ``step``,
            as the paper does, which executes one action a plan.
        gamma: of the focal loss (the paper's value).
        offset_weight: of the offsets' squared error beside the bins' focal loss.
    """

    name: str = "bet"
    bins: int = 16
    over: str = "sequence"
    gamma: float = 2.0
    offset_weight: float = 10.0


class BeT(Objective):
    """Behavior Transformer (Shafiullah et al., 2022): k-means over the training actions, classification, and one offset a bin.

    The network answers k logits and k offsets for every action. Acting draws a bin and adds its offset. The bins are fitted before
    training and are part of the checkpoint.
    """

    fits = True

    def __init__(self, config: BeTConfig, sizes: Sizes) -> None:
        super().__init__(sizes, input_dim=None, output_dim=config.bins * (sizes.action_dim + 1))
        choose("over", config.over, ("sequence", "step"))
        self.config = config
        length = sizes.horizon if config.over == "sequence" else 1
        self.register_buffer("centres", torch.full((config.bins, length, sizes.action_dim), torch.nan))

    def fit(self, action: Tensor) -> None:
        """Lloyd's k-means from a k-means++ start, with a fixed seed."""
        from scipy.cluster.vq import kmeans2

        centres = self._fitted(check=False)
        points = action.reshape(-1, centres[0].numel()).double().cpu().numpy()
        points = points[:: -(-len(points) // MOST_POINTS)]
        if len(np.unique(points, axis=0)) < self.config.bins:
            raise UserError(
                f"objective.bins={self.config.bins} is more than the data have different actions: take fewer"
            )
        found, _ = kmeans2(points, self.config.bins, minit="++", seed=0)
        centres.copy_(torch.from_numpy(found).view_as(centres))

    def _fitted(self, check: bool = True) -> Tensor:
        centres = self.get_buffer("centres")
        if check and torch.isnan(centres).any():
            raise RuntimeError("the policy's bins are not fitted: call policy.fit(batches) first")
        return centres

    def _answer(self, network: nn.Module, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[B, 1 or H, k]`` and actions of every bin ``[B, H, k, A]``."""
        logits, offsets = network(None, None, condition).tensor_split((self.config.bins,), dim=-1)
        if self.config.over == "sequence":
            logits = logits.mean(1, keepdim=True)
        offsets = offsets.unflatten(-1, (self.config.bins, self.sizes.action_dim))
        return logits, self._fitted().transpose(0, 1) + offsets

    def loss(self, network: nn.Module, action: Tensor, condition: Tensor) -> dict[str, Tensor]:
        """Focal loss (Lin et al., 2017) of the nearest bin, and the weighted squared error of that bin's action."""
        logits, candidates = self._answer(network, condition)
        away = (action[:, :, None] - self._fitted().transpose(0, 1)).square().sum(-1)  # [B, H, k]
        if self.config.over == "sequence":
            away = away.sum(1, keepdim=True)
        nearest = away.argmin(-1, keepdim=True)  # [B, 1 or H, 1]
        log_probability = logits.log_softmax(-1).take_along_dim(nearest, dim=-1)
        focal = -((1 - log_probability.exp()) ** self.config.gamma) * log_probability
        mine = self._of(candidates, nearest[..., 0])
        return {"bin": focal.mean(), "offset": self.config.offset_weight * F.mse_loss(mine, action)}

    def sample(
        self, network: nn.Module, condition: Tensor, generator: Generators, limits: Limits, held: Held | None = None
    ) -> Tensor:
        """The action of a bin that is drawn: its centre and the offset."""
        del limits, held
        logits, candidates = self._answer(network, condition)
        return self._of(candidates, categorical(logits.softmax(-1), generator))

    def _of(self, candidates: Tensor, chosen: Tensor) -> Tensor:
        """The chosen bins' actions: ``[B, H, k, A], [B, 1 or H] -> [B, H, A]``."""
        index = chosen.expand(-1, self.sizes.horizon)[..., None, None]
        return candidates.take_along_dim(index, dim=2).squeeze(2)
