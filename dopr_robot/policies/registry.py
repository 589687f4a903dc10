"""Policies by name: every pair of objective and network, and whatever outsiders add.

A new policy is one file and one registration::

    from dopr_robot.policies import POLICIES, PolicyEntry

    POLICIES.register("my_policy", PolicyEntry("what it is", MyConfig, MyPolicy))

where ``MyPolicy(spec, config)`` subclasses :class:`~dopr_robot.policies.policy.Policy` and ``MyConfig`` is a dataclass with at
least ``name, n_obs_steps, horizon, n_action_steps``. Another package does the same in a function that it names in the entry-point
group ``dopr_robot.policies``; networks and objectives likewise in ``dopr_robot.networks`` and ``dopr_robot.objectives``, and the pairs
with them are there as soon as they are asked for.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import cache
from typing import Any

from torch import nn

from dopr_robot.errors import UserError
from dopr_robot.policies import robomimic
from dopr_robot.policies.component import Component
from dopr_robot.policies.networks import NETWORKS
from dopr_robot.policies.objectives import OBJECTIVES, Objective
from dopr_robot.policies.options import options
from dopr_robot.policies.policy import PairConfig, PairPolicy, Policy
from dopr_robot.policies.spec import PolicySpec
from dopr_robot.registry import Registry

REQUIRED = ("name", "n_obs_steps", "horizon", "n_action_steps")


@dataclass(frozen=True)
class PolicyEntry:
    """A line of ``dopr policies``: what it is, its options, and how to build it from a spec and such options.

    Args:
        summary: a few words.
        config: the dataclass of its options, or one of its instances, whose values are then the defaults.
        build: from a spec and an instance of that dataclass.
        defaults: values over the dataclass's own, for entries that share one; dataclasses among them are taken as their options.

    Raises:
        UserError: ``config`` is no dataclass, or lacks an option that every policy has.
    """

    summary: str
    config: Any
    build: Callable[[PolicySpec, Any], Policy]
    defaults: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not is_dataclass(self.config):
            raise UserError(f"the options of a policy have to be a dataclass, not {self.config!r}")
        if missing := [name for name in REQUIRED if name not in {each.name for each in fields(self.config)}]:
            raise UserError(f"{self.schema.__name__} lacks {', '.join(missing)}: make it a subclass of PolicyConfig")

    @property
    def schema(self) -> type[Any]:
        """The dataclass of the options."""
        return self.config if isinstance(self.config, type) else type(self.config)

    def default_config(self, name: str) -> dict[str, Any]:
        """The options in full, as plain values."""
        made = self.config(name=name) if isinstance(self.config, type) else replace(self.config, name=name)
        defaults = dict(self.defaults or {})
        return asdict(made) | {
            key: asdict(each) if is_dataclass(each) and not isinstance(each, type) else each
            for key, each in defaults.items()
        }


class _Policies(Registry[PolicyEntry]):
    """What is registered, and every pair of an objective and a network that there is when it is asked for."""

    def _known(self) -> Mapping[str, PolicyEntry]:
        pairs = {
            f"{of_objective}_{of_network}": _pair(objective, network)
            for of_objective, objective in OBJECTIVES.items()
            for of_network, network in NETWORKS.items()
        }
        registered = super()._known()
        if taken := sorted(pairs.keys() & registered.keys()):
            raise UserError(f"policy {taken[0]!r} is an objective and a network already: choose another name")
        return {**pairs, **registered}


@cache
def _pair(objective: Component[Objective], network: Component[nn.Module]) -> PolicyEntry:
    defaults = {"objective": asdict(objective.config()), "network": asdict(network.config())}
    return PolicyEntry(f"{objective.summary} on a {network.summary}", PairConfig, PairPolicy, defaults)


POLICIES = _Policies("policy", "dopr_robot.policies")
"""Every policy by its name: each objective with each network as ``<objective>_<network>``, and what is registered whole."""


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


_register_robomimic()


def make_policy(config: Mapping[str, Any], spec: PolicySpec) -> Policy:
    """Build the policy that ``config["name"]`` registers, with random weights and no statistics yet.

    Raises:
        UnknownNameError: no such policy, or an option that it does not have.
        UserError: options that contradict each other or the spec.
    """
    entry = POLICIES[config["name"]]
    full = entry.default_config(config["name"])
    merged = full | dict(config)
    # {"dim": 64} alone is of the network that the policy's name says.
    for part, own in full.items():
        if isinstance(own, Mapping) and "name" in own and isinstance(given := merged[part], Mapping):
            merged[part] = {**own, **given} if given.get("name", own["name"]) == own["name"] else given
    return entry.build(spec, options(entry.schema, merged, "policy"))
