"""What preconditioning holds, and what it will hold."""

import math
from collections.abc import Sequence

from dopr_robot.optim.budget import price_of, too_dear
from dopr_robot.optim.factors import Factor, rank_of
from dopr_robot.optim.groups import Groups


def memory_bytes(factor: Factor) -> int:
    """Bytes held by a factor's moments and inverse, and by inputs on their way to the next step."""
    tensors = (
        *factor.state.values(),
        *factor.sums.values(),
        *(part for row in factor.rows for part in row if part is not None),
    )
    held = sum(tensor.element_size() * math.prod(tensor.shape) for tensor in tensors)
    return held + (factor.last.nbytes() if factor.last is not None else 0)


def planned_bytes(factor: Factor, n: int, rank: int | str, sketch: int | None) -> int:
    """Bytes that a factor will hold from step to step, and where it has its turn in a step of ``n`` input vectors, its inputs too.

    ``sketch``: the rank of one that stands in for the exact form.
    """
    itemsize = factor.dtype.itemsize
    if factor.matrix is None:
        return 2 * itemsize * factor.dim
    groups, d = factor.groups, factor.dim
    form = factor.form if sketch is None else "sketch" if factor.form == "batch" else "average_sketch"
    kept = (sketch or factor.rank or rank_of(d, rank)) if form in ("low_rank", "sketch", "average_sketch") else None
    directions = 2 * d * kept + kept * kept if kept is not None else 0
    held = (
        {"batch": 0, "low_rank": d * d + directions}.get(form, 2 * d * d)
        if kept is None or form == "low_rank"
        else directions
    )
    if kept is None and form == "sketch":
        form, held = "batch", 0
    moving = 0
    if n and (form in ("batch", "sketch") or factor.phase == 0):
        rows = n * d if form in ("batch", "sketch", "average_sketch") else d * d
        moving = min(rows, d * d) if form == "batch" else rows
        if form == "batch" and n < d:
            moving = n * (d + factor.out)
    if form == "batch":
        held = min(n, d) ** 2  # for the spectrum
    beside = factor.diagonal.dim if factor.diagonal is not None else 0
    kept_itemsize = (factor.state_dtype or factor.dtype).itemsize if form != "batch" else itemsize
    return groups * (kept_itemsize * held + itemsize * moving) + itemsize * beside


def usage_of(factors: Sequence[Factor], n: int | None, rank: int | str, groups: Groups) -> dict[str, int]:
    """Bytes for each layer, and ``"total"``: those that are held, or that a step of ``n`` input vectors will."""
    if n is None:
        usage = {factor.name: memory_bytes(factor) for factor in factors}
    else:
        every = {factor: groups.of(factor.weight)["update_every"] for factor in factors}
        prices = {f: price for f in factors if n and (price := price_of(f, n, every[f], known=n < f.dim))}
        dear = too_dear(prices)
        usage = {f.name: planned_bytes(f, n, rank, prices[f].rank if f in dear else None) for f in factors}
    return usage | {"total": sum(usage.values())}
