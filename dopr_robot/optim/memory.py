"""What preconditioning holds, and what it will hold."""

import math
from collections.abc import Sequence

from dopr_robot.optim.budget import rows_within
from dopr_robot.optim.factors import Factor
from dopr_robot.optim.state import shapes_of


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
    """Bytes that a factor will hold on this rank from step to step; where it is ``at_work`` in a step of ``n`` inputs, with those."""
    itemsize, groups, d, form = factor.dtype.itemsize, factor.groups, factor.dim, factor.form
    if factor.matrix is None:
        return 2 * itemsize * d
    held = sum(
        factor.kept_dtype(len(shape)).itemsize * math.prod(shape)
        for key, shape in shapes_of(factor, rank).items()
        if factor.mine or not factor.alone(key)
    )
    if form == "batch":
        if factor.max_cost is not None and n:
            n = rows_within(factor.max_cost, n, d, factor.out)
        held = itemsize * groups * min(n, d) ** 2  # for the spectrum
    moving = 0
    if n and (form in ("batch", "sketch") or at_work):
        moving = n * d if form in ("batch", "sketch", "average_sketch") else d * d
        if form == "batch":
            moving = n * (d + factor.out) if n < d else d * d
    return held + itemsize * groups * moving


def usage_of(factors: Sequence[Factor], n: int | None, rank: int | str) -> dict[str, int]:
    """Bytes for each layer, and ``"total"``: those that are held, or that a step of ``n`` input vectors will."""
    usage = {
        factor.name: memory_bytes(factor) if n is None else planned_bytes(factor, n, rank, at_work=factor.phase == 0)
        for factor in factors
    }
    return usage | {"total": sum(usage.values())}
