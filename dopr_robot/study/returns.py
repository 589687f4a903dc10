"""On which scale a task whose figure is its return stands beside those whose figure is success.

Where a task's reward says more than success (HalfCheetah can not fail at all), its figure is the return by its longest horizon. Returns of
two tasks differ in scale, so what is averaged over tasks and settings is a *score*: the share of what the demonstrations earn by that step,
which says how much of its teacher a policy has learned, and is bounded neither at 0 nor at 1. D4RL (Fu et al., arXiv 2004.07219) puts the
return of a random policy at 0; a study file may do so too.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dopr_robot.datasets import Store
from dopr_robot.envs import get_task
from dopr_robot.errors import UserError
from dopr_robot.study.config import Study
from dopr_robot.study.tasks import TaskEntry

Range = tuple[float, float]
"""Returns that count as 0 and as 1."""

REWARDS = ("rewards", "reward", "next.reward")
"""What a store calls the reward of a step: ours, D4RL's, Minari's and robomimic's; a Diffusion Policy store's; LeRobot's."""


def return_ranges(study: Study, horizons: Mapping[str, Sequence[int]]) -> dict[str, Range]:
    """The returns that count as 0 and as 1 by each task's longest horizon, ``{label: (zero, one)}``, where they are its figure.

    Raises UserError where neither the study file nor a store's rewards say them.
    """
    return {
        entry.label: _range(entry, max(horizons[entry.label]))
        for entry in study.entries()
        if get_task(entry.task).reward
    }


def _range(entry: TaskEntry, horizon: int) -> Range:
    mend = f"return_range: [LOW, HIGH] of {entry.task} says which returns by step {horizon} count as 0 and as 1"
    if entry.return_range is not None:
        if len(entry.return_range) != 2 or not entry.return_range[0] < entry.return_range[1]:
            raise UserError(f"{mend}, and is {entry.return_range}")
        return entry.return_range[0], entry.return_range[1]
    store = Store.open(entry.store)
    key = next((name for name in REWARDS if name in store.keys), None)
    if key is None:
        raise UserError(f"{entry.store} tells no rewards, and so not what its demonstrations earn: {mend}")
    earned = [store.episode(index, [key])[key][:horizon].sum() for index in range(store.num_episodes)]
    one = float(np.mean(earned))
    if not one > 0:
        raise UserError(
            f"the demonstrations of {entry.store} earn {one:g} by step {horizon}, which is no scale: {mend}"
        )
    return 0.0, one


def score_difference(row: Mapping[str, Any]) -> float:
    """Of a row with a reference: the difference in success, or in shares of the return that counts as 1."""
    if row.get("return_one") is None:
        return float(row["difference"])
    return float(row["return_difference"] / (row["return_one"] - row["return_zero"]))
