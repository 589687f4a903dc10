"""Control steps at which success is reported."""

import math
from collections.abc import Sequence

from dopr_robot.errors import UserError


def default_horizons(max_steps: int, count: int = 8) -> list[int]:
    """``count`` equal horizons up to the longest, in control steps."""
    return sorted({math.ceil(max_steps * i / count) for i in range(1, count + 1)})


def check_horizons(horizons: Sequence[int] | None, max_steps: int, extensible: bool = False) -> list[int]:
    """The horizons asked for, sorted, or the default ones. Raises UserError for one below 1, or beyond the task's longest where its
    episodes can not be made longer."""
    if not horizons:
        return default_horizons(max_steps)
    for horizon in horizons:
        if horizon < 1 or (horizon > max_steps and not extensible):
            raise UserError(f"horizon {horizon} is outside 1..{max_steps}, the task's longest")
    return sorted(set(horizons))
