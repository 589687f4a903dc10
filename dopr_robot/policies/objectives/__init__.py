"""Objectives: what a network is trained for, and how its answers become actions. ``OBJECTIVES`` maps a name to class and config."""

from dopr_robot.policies.component import Component
from dopr_robot.policies.objectives.act import ACT, ACTConfig
from dopr_robot.policies.objectives.bet import BeT, BeTConfig
from dopr_robot.policies.objectives.diffusion import Diffusion, DiffusionConfig
from dopr_robot.policies.objectives.flow import FlowConfig, FlowMatching
from dopr_robot.policies.objectives.mixture import Mixture, MixtureConfig
from dopr_robot.policies.objectives.objective import Held, Limits, Objective, Sizes
from dopr_robot.policies.objectives.regression import Regression, RegressionConfig
from dopr_robot.registry import Registry

OBJECTIVES = Registry[Component[Objective]]("objective", "dopr_robot.objectives")
"""Every objective by its name, the first part of a policy's."""
OBJECTIVES.register("flow", Component(FlowMatching, FlowConfig, "flow matching"))
OBJECTIVES.register("diffusion", Component(Diffusion, DiffusionConfig, "denoising diffusion"))
OBJECTIVES.register("regression", Component(Regression, RegressionConfig, "regression"))
OBJECTIVES.register("mixture", Component(Mixture, MixtureConfig, "Gaussian mixture"))
OBJECTIVES.register("act", Component(ACT, ACTConfig, "ACT's conditional VAE"))
OBJECTIVES.register("bet", Component(BeT, BeTConfig, "Behavior Transformer's bins and offsets"))

__all__ = [
    "ACT",
    "OBJECTIVES",
    "ACTConfig",
    "BeT",
    "BeTConfig",
    "Diffusion",
    "DiffusionConfig",
    "FlowConfig",
    "FlowMatching",
    "Held",
    "Limits",
    "Mixture",
    "MixtureConfig",
    "Objective",
    "Regression",
    "RegressionConfig",
    "Sizes",
]
