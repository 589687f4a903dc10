"""Policies by name: every pair of objective and network, and whatever outsiders add.

A new policy is one file and one registration::

    from dopr_robot.policies import POLICIES, PolicyEntry

    POLICIES.register("my_policy", PolicyEntry("what it is", MyConfig, MyPolicy))

where ``MyPolicy(spec, config)`` subclasses :class:`~dopr_robot.policies.policy.Policy` and ``MyConfig`` is a dataclass with at
least ``name, n_obs_steps, horizon, n_action_steps``. Another package does the same in a function that it names in the entry-point
group ``dopr_robot.policies``.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dopr_robot.policies import robomimic
from dopr_robot.policies.networks import NETWORKS
from dopr_robot.policies.objectives import OBJECTIVES
from dopr_robot.policies.options import options
from dopr_robot.policies.policy import PairConfig, PairPolicy, Policy
from dopr_robot.policies.spec import PolicySpec
from dopr_robot.registry import Registry


@dataclass(frozen=True)
class PolicyEntry:
    """A line of ``dopr policies``: what it is, the dataclass of its options, and how to build it from a spec and such options.

    ``defaults`` are values over the dataclass's own, for entries that share one.
    """

    summary: str
    config: type[Any]
    build: Callable[[PolicySpec, Any], Policy]
    defaults: Mapping[str, Any] | None = None

    def default_config(self, name: str) -> dict[str, Any]:
        """The options in full, as plain values."""
        return {**asdict(self.config(name=name)), **(self.defaults or {})}


POLICIES = Registry[PolicyEntry]("policy", "dopr_robot.policies")


def _register_pairs() -> None:
    for objective_name, objective in OBJECTIVES.items():
        for network_name, network in NETWORKS.items():
            defaults = {"objective": asdict(objective.config()), "network": asdict(network.config())}
            summary = f"{objective.summary} on a {network.summary}"
            POLICIES.register(
                f"{objective_name}_{network_name}", PolicyEntry(summary, PairConfig, PairPolicy, defaults)
            )


def _register_robomimic() -> None:
    algorithms = {"bc": (robomimic.BC, 1), "bc_rnn_gmm": (robomimic.BC_RNN_GMM, 10)}
    algorithms["bc_transformer_gmm"] = (robomimic.BC_TRANSFORMER_GMM, 10)
    for name, (sections, steps) in algorithms.items():
        summary = (
            f"robomimic's {name.replace('_', '-').upper().replace('TRANSFORMER', 'Transformer')} (extra robomimic)"
        )
        defaults = {"n_obs_steps": steps, "horizon": steps, "robomimic": sections}
        entry = PolicyEntry(summary, robomimic.RobomimicConfig, robomimic.Robomimic, defaults)
        POLICIES.register(f"robomimic_{name}", entry)


_register_pairs()
_register_robomimic()


def make_policy(config: Mapping[str, Any], spec: PolicySpec) -> Policy:
    """Build the policy that ``config["name"]`` registers, with random weights and no statistics yet.

    Raises:
        UnknownNameError: no such policy, or an option that it does not have.
        UserError: options that contradict each other or the spec.
    """
    entry = POLICIES[config["name"]]
    merged = entry.default_config(config["name"]) | dict(config)
    # {"dim": 64} alone is of the network that the policy's name says.
    for part, defaults in (entry.defaults or {}).items():
        if isinstance(defaults, Mapping) and isinstance(given := merged[part], Mapping) and "name" in defaults:
            merged[part] = {"name": defaults["name"], **given}
    return entry.build(spec, options(entry.config, merged, "policy"))
