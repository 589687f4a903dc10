"""Policies: objectives, networks and encoders behind ``loss`` and ``act``, with their normalisation inside."""

from dopr_robot.policies.checkpoint import FORMAT_VERSION, checkpoint_steps, find_checkpoint, load_policy, save_policy
from dopr_robot.policies.networks import NETWORKS
from dopr_robot.policies.objectives import OBJECTIVES
from dopr_robot.policies.policy import Batch, PairConfig, PairPolicy, Policy, PolicyConfig
from dopr_robot.policies.registry import POLICIES, PolicyEntry, make_policy
from dopr_robot.policies.spec import ArraySpec, PolicySpec

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
