"""Learning rates over a run: a linear warm-up, then one of ``config.SCHEDULES``, as in diffusers, whose import costs seconds."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dopr_robot.optim import schedule_free

POLYNOMIAL_END = 1e-7
"""The rate at which ``polynomial`` (of power 1) ends."""


def make_schedule(name: str, optimizer: Optimizer, warmup_steps: int, steps: int) -> LambdaLR:
    """The schedule ``name`` for an optimizer; ``constant`` has no warm-up. A schedule-free optimizer has the warm-up alone."""
    if schedule_free(optimizer) and name != "constant":
        name = "constant_with_warmup"
    rate = optimizer.defaults["lr"]

    def share(step: int) -> float:
        if name == "constant":
            return 1.0
        if step < warmup_steps:
            return step / max(1, warmup_steps)
        done = (step - warmup_steps) / max(1, steps - warmup_steps)
        if name == "constant_with_warmup":
            return 1.0
        if name == "linear":
            return max(0.0, (steps - step) / max(1, steps - warmup_steps))
        if name == "polynomial":
            return ((rate - POLYNOMIAL_END) * (1 - done) + POLYNOMIAL_END) / rate
        if name == "cosine_with_restarts" and done >= 1.0:
            return 0.0
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * done)))

    return LambdaLR(optimizer, share)
