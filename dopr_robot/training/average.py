"""An exponential average of the weights, which acts in place of the last ones."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dopr_robot.optim import schedule_free


def average_of(
    parameters: Iterable[nn.Parameter], optimizer: Optimizer, power: float, max_decay: float
) -> "WeightAverage":
    """What acts in place of the last weights: their exponential average, or a schedule-free optimizer's own."""
    own = schedule_free(optimizer)
    return WeightAverage(parameters, power, max_decay) if own is None else ScheduleFreeAverage(parameters, own)


class WeightAverage:
    """After n updates it forgets with ``1 - n ** -power``, at most ``max_decay``: Diffusion Policy's schedule.

    One pass over the weights in place; diffusers' ``EMAModel``, which computes the same, makes copies of them at every step.

    Args:
        parameters: what is averaged; updated by the optimizer.
        power, max_decay: of the schedule.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], power: float, max_decay: float) -> None:
        self.parameters = list(parameters)
        self.power, self.max_decay = power, max_decay
        self.updates = 0
        self.shadow = [parameter.detach().clone() for parameter in self.parameters]

    @property
    def decay(self) -> float:
        """Weight of the past in the last update; 0 in the first, which takes the weights as they are."""
        return min(1 - max(self.updates, 1) ** -self.power, self.max_decay)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        self.updates += 1
        torch._foreach_lerp_(self.shadow, [parameter.detach() for parameter in self.parameters], 1 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The averaged weights stand in the parameters' places, inside a ``with`` block."""
        kept = [parameter.detach().clone() for parameter in self.parameters]
        self._write(self.shadow)
        try:
            yield
        finally:
            self._write(kept)

    @torch.no_grad()
    def _write(self, values: list[torch.Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Number of updates and averaged weights."""
        return {"updates": self.updates, "shadow": self.shadow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where :meth:`state_dict` left. Raises ValueError where the weights are of another number or shape."""
        if [each.shape for each in state["shadow"]] != [each.shape for each in self.shadow]:
            raise ValueError("the average is of other weights")
        self.updates = state["updates"]
        self.shadow = [
            given.to(own.device, own.dtype, copy=True) for given, own in zip(state["shadow"], self.shadow, strict=True)
        ]


class ScheduleFreeAverage(WeightAverage):
    """The average that a schedule-free optimizer keeps itself: nothing is averaged twice, and what it needs is in the optimizer's state.

    Args:
        parameters: the optimizer's.
        optimizer: with ``eval()`` and ``train()``, which put the average in the parameters' places and take it out again.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], optimizer: Any) -> None:
        self.parameters, self.optimizer = list(parameters), optimizer

    def update(self) -> None:
        """The optimizer's step did it."""

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The averaged weights stand in the parameters' places, inside a ``with`` block; then the very weights of before, which
        ``train()`` alone would give but for rounding: how often a run is looked at must not change it."""
        kept = [parameter.detach().clone() for parameter in self.parameters]
        self.optimizer.eval()
        try:
            yield
        finally:
            self.optimizer.train()
            self._write(kept)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: it is the optimizer's."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError for the state of another average."""
        if state:
            raise ValueError("the average is of another optimizer")
