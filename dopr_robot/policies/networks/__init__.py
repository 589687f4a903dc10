"""Networks: functions ``(sample [B, H, A], time [B], condition [B, To, C]) -> [B, H, output_dim]``.

Which loss they serve is the objective's affair. A network is a module made from its config dataclass and the keywords
``input_dim, output_dim, horizon, condition_dim, n_obs_steps``; ``NETWORKS`` maps its name to both.
"""

from torch import nn

from dopr_robot.policies.component import Component
from dopr_robot.policies.networks.transformer import Transformer, TransformerConfig
from dopr_robot.policies.networks.unet import UNet, UNetConfig
from dopr_robot.registry import Registry

NETWORKS = Registry[Component[nn.Module]]("network")
NETWORKS.register("unet", Component(UNet, UNetConfig, "1-D U-Net with FiLM"))
NETWORKS.register("transformer", Component(Transformer, TransformerConfig, "transformer with adaLN-zero"))

__all__ = ["NETWORKS", "Transformer", "TransformerConfig", "UNet", "UNetConfig"]
