"""Objectives: what a network is trained for, and how its answers become actions.

An objective is a module made from its config dataclass, with ``outputs_per_action`` (the network's output width over A),
``loss(network, action, condition) -> scalar`` and ``sample(network, shape, condition, generator) -> [B, H, A]``, both in normalised
units; ``OBJECTIVES`` maps its name to class and config.
"""

from dopr_robot.policies.networks import Component
from dopr_robot.policies.objectives.diffusion import Diffusion, DiffusionConfig
from dopr_robot.policies.objectives.flow import FlowConfig, FlowMatching
from dopr_robot.registry import Registry

OBJECTIVES = Registry[Component]("objective")
OBJECTIVES.register("flow", Component(FlowMatching, FlowConfig, "flow matching"))
OBJECTIVES.register("diffusion", Component(Diffusion, DiffusionConfig, "denoising diffusion"))

__all__ = ["OBJECTIVES", "Diffusion", "DiffusionConfig", "FlowConfig", "FlowMatching"]
