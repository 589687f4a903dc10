"""What a run remembers beside weights and optimizer: recent losses, scores, time. It travels in the checkpoint."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

WINDOW = 100
"""Losses that a new one is compared with; the judgement begins with a fifth of them."""


@dataclass
class Course:
    """How a run went so far.

    Attributes:
        seconds: spent in steps, over all calls.
        losses: the last :data:`WINDOW` of accepted steps.
        unlogged: those since the last line of the log.
        skipped: steps left out, and how many of them just now in a row.
        success: success rate of the rollouts, by step; ``returns``: their mean return, of a task whose reward says more than success.
        best, looks: best value of what early stopping watches, and how many looks ago that was.
    """

    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    unlogged: list[float] = field(default_factory=list)
    skipped: int = 0
    skipped_in_a_row: int = 0
    success: dict[int, float] = field(default_factory=dict)
    returns: dict[int, float] = field(default_factory=dict)
    best: float | None = None
    looks: int = 0

    def fault(self, loss: float, ratio: float | None) -> str | None:
        """What is wrong with a step's loss, or None.

        A spike is a loss above the recent losses' median by more than ``ratio`` times the median of their sizes; medians, so that
        losses that grow step by step do not lift the bar as they go.
        """
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if ratio is None or len(self.losses) < WINDOW // 5:
            return None
        usual = median(self.losses)
        if loss > usual + ratio * median(map(abs, self.losses)):
            return f"the loss is {loss:.3g} where {usual:.3g} is usual"
        return None

    def accept(self, loss: float, seconds: float) -> None:
        """Take note of a step that was taken."""
        self.losses = [*self.losses[1 - WINDOW :], loss]
        self.unlogged.append(loss)
        self.seconds += seconds
        self.skipped_in_a_row = 0

    def skip(self) -> None:
        """Take note of a step that was left out."""
        self.skipped += 1
        self.skipped_in_a_row += 1

    def look(self, cost: float) -> None:
        """Take note of a value that early stopping watches; less is better."""
        if self.best is None or cost < self.best:
            self.best, self.looks = cost, 0
        else:
            self.looks += 1

    def best_steps(self, count: int) -> list[int]:
        """The steps of the best rollouts, best first: the highest success rate, of equal ones the largest mean return where the task has
        one, of equal ones the later."""
        return sorted(self.success, key=lambda step: (self._rank(step), step), reverse=True)[:count]

    @property
    def rollouts_since_best(self) -> int:
        """How many rollouts have not improved on the best one."""
        first = max(self.success, key=lambda step: (self._rank(step), -step))
        return sum(step > first for step in self.success)

    def _rank(self, step: int) -> tuple[float, float]:
        # Success can tie for good: HalfCheetah can not fail, and a walker that no longer falls may still get faster.
        return self.success[step], self.returns.get(step, -math.inf)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Course":
        """What :meth:`to_state` gave. Raises ValueError or TypeError where it is something else."""
        course, numbers = cls(**state), (int | float)
        kinds: dict[str, Any] = {
            "seconds": numbers,
            "skipped": int,
            "skipped_in_a_row": int,
            "best": numbers | None,
            "looks": int,
        }
        lists: list[Any] = [*course.losses, *course.unlogged, *course.success.values(), *course.returns.values()]
        if not all(isinstance(getattr(course, name), kind) for name, kind in kinds.items()):
            raise ValueError(f"its course is {state}")
        if not all(isinstance(each, numbers) for each in lists) or not all(
            isinstance(each, int) for each in (*course.success, *course.returns)
        ):
            raise ValueError(f"its course is {state}")
        return course

    def to_state(self) -> dict[str, Any]:
        return asdict(self)


def episodes_text(episodes: Sequence[int], limit: int = 12) -> str:
    """``3, 7, 9 and 20 more``."""
    named = ", ".join(map(str, episodes[:limit]))
    return named if len(episodes) <= limit else f"{named} and {len(episodes) - limit} more"
