"""What preconditioning may cost: which layers are exact, and which of them a sketch has to stand in for."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dopr_robot.optim.batch import dual_cost, primal_cost
from dopr_robot.optim.factors import Factor
from dopr_robot.optim.groups import Groups


class Price(NamedTuple):
    """What a layer's preconditioning costs a step, in multiplications.

    Attributes:
        own: of the layer's forward and backward.
        exact: of the exact form.
        sketched: of a sketch of ``rank`` directions, which is what ``max_cost * own`` pays for.
    """

    own: float
    exact: float
    sketched: float
    rank: int


def price_of(factor: Factor, n: float, update_every: int, known: bool) -> Price | None:
    """The prices of a layer that sees ``n`` inputs a step, of whose outputs the gradients are ``known``; None where there is no choice."""
    choice = factor.matrix is not None and factor.diagonal is None and factor.form in ("batch", "average")
    if factor.max_cost is None or not choice:
        return None
    d, out, groups = factor.dim, factor.out, factor.groups
    own = 3 * n * d * out
    if factor.form == "batch":
        exact, refreshed = min(primal_cost(n, d, out), dual_cost(n, d, out, known)), 1
    else:
        exact, refreshed = out * d * d + (n * d * d + d**3) / update_every, update_every
    each = 3 * n * d / refreshed + 2 * out * d  # direction
    rank = max(1, int(factor.max_cost * own / each))
    return Price(groups * own, groups * exact, groups * rank * each, rank)


def too_dear(prices: Mapping[Factor, Price]) -> set[Factor]:
    """Which layers are to be sketched, so that the preconditioning of all costs at most ``max_cost`` of their own forward and backward.

    First those where that saves most, layers of one size together; none where it saves less than half, since thin products take longer
    than they count. Of what can be had at one price (a sketch, blocks on the diagonal, a sample of the rows), a sketch begun at the last
    step's directions came nearest to the exact form: docs/optimizer.md has the table.
    """
    worth = {
        factor: p.exact - p.sketched
        for factor, p in prices.items()
        if 2 * p.sketched <= p.exact and 2 * p.rank < factor.dim
    }
    budget = sum((factor.max_cost or 0) * p.own - p.exact for factor, p in prices.items())
    chosen: set[Factor] = set()
    for saved in sorted(set(worth.values()), reverse=True):
        if budget >= 0:
            break
        same = [factor for factor in worth if worth[factor] == saved]
        chosen.update(same)
        budget += saved * len(same)
    return chosen


def fit_cost(factors: Sequence[Factor], groups: Groups) -> None:
    """Settle the forms of layers that have seen their first inputs, by what they cost."""
    prices = {}
    for factor in factors:
        known = bool(factor.rows) and all(rows.d is not None for rows in factor.rows)
        if factor.matrix is not None and (
            price := price_of(
                factor, float(factor.inputs_seen().max()), groups.of(factor.weight)["update_every"], known
            )
        ):
            prices[factor] = price
    for factor in too_dear(prices):
        factor.form = "sketch" if factor.form == "batch" else "average_sketch"
        factor.rank = prices[factor].rank
