"""Long short-term memory over the steps of a window."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dopr_robot.policies.networks.common import History
from dopr_robot.policies.options import NetworkOptions


@dataclass
class LSTMConfig(NetworkOptions):
    """Sizes of :class:`LSTM`. robomimic's BC-RNN has two layers of 400 (states) or 1000 (images)."""

    name: str = "lstm"
    dim: int = 256
    layers: int = 2


class LSTMLayer(nn.Module):
    """Hochreiter and Schmidhuber's cell with a forget gate, over a sequence: ``[B, H, dim] -> [B, H, dim]``.

    Two linear layers, so that an optimizer that reads activations sees both matrices; ``nn.LSTM`` hides them. The forget gate's bias
    starts at 1 (Jozefowicz et al., 2015).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.input = nn.Linear(dim, 4 * dim)
        self.recurrent = nn.Linear(dim, 4 * dim, bias=False)
        for layer in (self.input, self.recurrent):
            layer.stacked = 4  # type: ignore[assignment]  # a matrix a gate, as Muon takes them
        nn.init.zeros_(self.input.bias)
        nn.init.ones_(self.input.bias[dim : 2 * dim])
        for gate in self.recurrent.weight.detach().chunk(4):
            nn.init.orthogonal_(gate)

    def forward(self, x: Tensor) -> Tensor:
        from_input = self.input(x)
        hidden = cell = torch.zeros_like(x[:, 0])
        steps = []
        for t in range(x.shape[1]):
            enter, forget, leave, new = (from_input[:, t] + self.recurrent(hidden)).chunk(4, dim=-1)
            cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
            hidden = leave.sigmoid() * cell.tanh()
            steps.append(hidden)
        return torch.stack(steps, dim=1)


class LSTM(nn.Module):
    """A stack of LSTM layers over the window's steps; arguments as for the U-Net.

    Action t depends on observations up to step t. With ``n_obs_steps = horizon`` and ``n_action_steps = 1`` this is robomimic's
    BC-RNN, whose state begins anew every ``horizon`` steps of training and is carried along here by the window.
    """

    def __init__(
        self,
        config: LSTMConfig,
        *,
        input_dim: int | None,
        output_dim: int,
        horizon: int,
        condition_dim: int,
        n_obs_steps: int,
    ) -> None:
        super().__init__()
        del n_obs_steps
        self.history = History(config.dim, input_dim=input_dim, horizon=horizon, condition_dim=condition_dim)
        self.layers = nn.ModuleList(LSTMLayer(config.dim) for _ in range(config.layers))
        self.head = nn.Linear(config.dim, output_dim)

    def forward(self, sample: Tensor | None, time: Tensor | None, condition: Tensor) -> Tensor:
        """See :mod:`dopr_robot.policies.networks`."""
        x = self.history(sample, time, condition)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)
