"""What preconditioning holds, and what it will hold."""

import math
from collections.abc import Sequence

from dopr_robot.optim.budget import rows_within
from dopr_robot.optim.factors import Factor, rank_of


def memory_bytes(factor: Factor) -> int:
    """Bytes held by a factor's moments and inverse, and by inputs on their way to the next step."""
    tensors = (
        *factor.state.values(),
        *factor.sums.values(),
        *(part for row in factor.rows for part in row if part is not None),
    )
    held = sum(tensor.element_size() * math.prod(tensor.shape) for tensor in tensors)
    return held + (factor.last.nbytes() if factor.last is not None else 0)


def planned_bytes(factor: Factor, n: int, rank: int | str, *, at_work: bool) -> int:
    """Bytes that a factor will hold from step to step, and where it is ``at_work`` in a step of ``n`` input vectors, its inputs too."""
    itemsize = factor.dtype.itemsize
    if factor.matrix is None:
        return 2 * itemsize * factor.dim
    groups, d = factor.groups, factor.dim
    form = factor.form
    if form == "batch" and factor.max_cost is not None and n:
        n = rows_within(factor.max_cost, n, d, factor.out)
    kept = (factor.rank or rank_of(d, rank)) if form in ("low_rank", "sketch", "average_sketch") else None
    directions = 2 * d * kept + kept * kept if kept is not None else 0
    held = (
        {"batch": 0, "low_rank": d * d + directions}.get(form, 2 * d * d)
        if kept is None or form == "low_rank"
        else directions
    )
    if kept is None and form == "sketch":
        form, held = "batch", 0
    moving = 0
    if n and (form in ("batch", "sketch") or at_work):
        rows = n * d if form in ("batch", "sketch", "average_sketch") else d * d
        moving = min(rows, d * d) if form == "batch" else rows
        if form == "batch" and n < d:
            moving = n * (d + factor.out)
    if form == "batch":
        held = min(n, d) ** 2  # for the spectrum
    beside = factor.diagonal.dim if factor.diagonal is not None else 0
    kept_itemsize = (factor.state_dtype or factor.dtype).itemsize if form != "batch" else itemsize
    return groups * (kept_itemsize * held + itemsize * moving) + itemsize * beside


def usage_of(factors: Sequence[Factor], n: int | None, rank: int | str) -> dict[str, int]:
    """Bytes for each layer, and ``"total"``: those that are held, or that a step of ``n`` input vectors will."""
    usage = {
        factor.name: memory_bytes(factor) if n is None else planned_bytes(factor, n, rank, at_work=factor.phase == 0)
        for factor in factors
    }
    return usage | {"total": sum(usage.values())}
