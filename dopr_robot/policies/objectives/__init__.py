"""Objectives: what a network is trained for, and how its answers become actions. ``OBJECTIVES`` maps a name to class and config."""

from dopr_robot.policies.component import Component
from dopr_robot.policies.objectives.diffusion import Diffusion, DiffusionConfig
from dopr_robot.policies.objectives.flow import FlowConfig, FlowMatching
from dopr_robot.policies.objectives.objective import Objective
from dopr_robot.registry import Registry

OBJECTIVES = Registry[Component[Objective]]("objective")
OBJECTIVES.register("flow", Component(FlowMatching, FlowConfig, "flow matching"))
OBJECTIVES.register("diffusion", Component(Diffusion, DiffusionConfig, "denoising diffusion"))

__all__ = ["OBJECTIVES", "Diffusion", "DiffusionConfig", "FlowConfig", "FlowMatching", "Objective"]
