"""What this step's S may cost: of how many of a layer's inputs it is formed."""

import functools

from dopr_robot.optim.batch import dual_cost, primal_cost

_LEAST = 256
_SMALL = 1 << 22  # multiplications: a tenth of a millisecond of one core


@functools.lru_cache(maxsize=1024)
def rows_within(max_cost: float, n: int, d: int, out: int) -> int:
    """Of how many of ``n`` inputs of length ``d`` to form S, so that preconditioning takes at most ``max_cost`` times the multiplications
    of the layer's own forward and backward: all where that is within it or no matter of time, and never fewer than 256.

    Why a sample: docs/evidence.md, the form of the second moment.

    >>> rows_within(0.5, 1152, 256, 256), rows_within(0.5, 1152, 1024, 256)
    (1152, 409)
    """
    budget = max(max_cost * 3 * n * d * out, _SMALL)

    def affordable(rows: int) -> bool:
        return min(primal_cost(rows, d, out), dual_cost(rows, d, out, known=rows == n)) <= budget

    if affordable(n):
        return n
    low, high = min(_LEAST, n), n
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if affordable(middle) else (low, middle)
    return low
