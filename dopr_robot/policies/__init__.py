"""Policies: objectives, networks and encoders behind ``loss`` and ``act``, with their normalisation inside.

The names below are found when they are asked for, so that the rules of :mod:`~dopr_robot.policies.scaling` cost no import of torch.
"""

from typing import TYPE_CHECKING

from dopr_robot.lazy import lazy

if TYPE_CHECKING:
    from dopr_robot.policies.checkpoint import (
        FORMAT_VERSION,
        checkpoint_steps,
        find_checkpoint,
        load_policy,
        save_policy,
    )
    from dopr_robot.policies.networks import NETWORKS
    from dopr_robot.policies.objectives import OBJECTIVES
    from dopr_robot.policies.policy import Batch, PairConfig, PairPolicy, Policy, PolicyConfig
    from dopr_robot.policies.registry import POLICIES, PolicyEntry, make_policy
    from dopr_robot.policies.spec import ArraySpec, PolicySpec

_LAZY = {
    "ArraySpec": "spec",
    "Batch": "policy",
    "FORMAT_VERSION": "checkpoint",
    "NETWORKS": "networks",
    "OBJECTIVES": "objectives",
    "POLICIES": "registry",
    "PairConfig": "policy",
    "PairPolicy": "policy",
    "Policy": "policy",
    "PolicyConfig": "policy",
    "PolicyEntry": "registry",
    "PolicySpec": "spec",
    "checkpoint_steps": "checkpoint",
    "find_checkpoint": "checkpoint",
    "load_policy": "checkpoint",
    "make_policy": "registry",
    "save_policy": "checkpoint",
}
__all__ = [
    "FORMAT_VERSION",
    "NETWORKS",
    "OBJECTIVES",
    "POLICIES",
    "ArraySpec",
    "Batch",
    "PairConfig",
    "PairPolicy",
    "Policy",
    "PolicyConfig",
    "PolicyEntry",
    "PolicySpec",
    "checkpoint_steps",
    "find_checkpoint",
    "load_policy",
    "make_policy",
    "save_policy",
]


__getattr__ = lazy(__name__, _LAZY)
