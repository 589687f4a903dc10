"""From normalised observations to the condition that networks read."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dopr_robot.errors import UserError
from dopr_robot.policies.spec import ArraySpec


class StateEncoder(nn.Module):
    """Concatenates vector observations: ``{key: [B, To, ...]} -> [B, To, C]``.

    Raises:
        UserError: an observation that is an image (uint8), which this encoder does not read.
    """

    def __init__(self, observations: Mapping[str, ArraySpec]) -> None:
        super().__init__()
        for key, spec in observations.items():
            if spec.dtype == "uint8" or len(spec.shape) == 3:
                raise UserError(
                    f"observation {key!r} is an image ({spec.dtype} {list(spec.shape)}): this policy reads vectors only; "
                    "leave it out of data.observations"
                )
        self.keys = tuple(observations)
        self.output_dim = sum(spec.size for spec in observations.values())

    def forward(self, observation: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([observation[key].flatten(2) for key in self.keys], dim=-1)
