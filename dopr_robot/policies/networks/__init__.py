"""Networks: functions ``(sample [B, H, input_dim], time [B], condition [B, To, C]) -> [B, H, output_dim]``.

Which loss they serve is the objective's affair. A network is a module made from its config dataclass and the keywords
``input_dim, output_dim, horizon, condition_dim, n_obs_steps``; ``NETWORKS`` maps its name to both.

A generative objective hands over a sample and a time: flow's in [0, 1], diffusion's step number in thousandths. One that predicts
actions outright has neither: ``input_dim`` is then None, sample and time are None, and the network begins from learned queries, or
from the observations alone.
"""

from torch import nn

from dopr_robot.policies.component import Component
from dopr_robot.policies.networks.attending import (
    CausalTransformer,
    CausalTransformerConfig,
    CrossTransformer,
    CrossTransformerConfig,
)
from dopr_robot.policies.networks.lstm import LSTM, LSTMConfig
from dopr_robot.policies.networks.mlp import MLP, MLPConfig
from dopr_robot.policies.networks.transformer import Transformer, TransformerConfig
from dopr_robot.policies.networks.unet import UNet, UNetConfig
from dopr_robot.registry import Registry

NETWORKS = Registry[Component[nn.Module]]("network", "dopr_robot.networks")
"""Every network by its name, the second part of a policy's."""
NETWORKS.register("mlp", Component(MLP, MLPConfig, "MLP with residual blocks"))
NETWORKS.register("unet", Component(UNet, UNetConfig, "1-D U-Net with FiLM"))
NETWORKS.register("transformer", Component(Transformer, TransformerConfig, "transformer with adaLN-zero"))
NETWORKS.register(
    "cross_transformer",
    Component(CrossTransformer, CrossTransformerConfig, "transformer attending to observation tokens"),
)
NETWORKS.register(
    "causal_transformer", Component(CausalTransformer, CausalTransformerConfig, "causal transformer over history")
)
NETWORKS.register("lstm", Component(LSTM, LSTMConfig, "LSTM over history"))

__all__ = [
    "LSTM",
    "MLP",
    "NETWORKS",
    "CausalTransformer",
    "CausalTransformerConfig",
    "CrossTransformer",
    "CrossTransformerConfig",
    "LSTMConfig",
    "MLPConfig",
    "Transformer",
    "TransformerConfig",
    "UNet",
    "UNetConfig",
]
