"""Which layers refresh what they average at which step: each has its turn once in ``update_every`` steps of its group."""

from collections.abc import Sequence

from dopr_robot.optim.factors import Factor
from dopr_robot.optim.groups import Groups


def share_turns(factors: Sequence[Factor], groups: Groups) -> None:
    """Give each its turn: the costliest first, each to the step that has least to do."""
    loads: dict[int, list[int]] = {}
    for factor in sorted(factors, key=lambda factor: -factor.cost):
        every = groups.of(factor.weight)["update_every"]
        load = loads.setdefault(every, [0] * min(every, len(factors)))
        factor.phase = load.index(min(load))
        load[factor.phase] += factor.cost


def has_turn(factor: Factor, groups: Groups, step: int) -> bool:
    """Whether a layer's turn is at ``step``."""
    every = groups.of(factor.weight)["update_every"]
    return bool(step % every == factor.phase % every)


def is_due(factor: Factor, groups: Groups, step: int) -> bool:
    """Whether a layer's inputs are wanted for ``step``."""
    # An embedding's frequencies cost nothing, and a rare token is known only at the step that brings it.
    always = not factor.ready or factor.fresh or factor.matrix is None
    return groups.of(factor.weight)["precondition"] and (always or has_turn(factor, groups, step))
