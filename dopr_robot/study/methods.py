"""The methods of a study: each optimizer of each task and policy at what was chosen for it, with its records and test episodes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dopr_robot.evaluation import EpisodeRecord
from dopr_robot.evaluation.statistics import return_matrix, success_matrix
from dopr_robot.study.choice import Record
from dopr_robot.study.choice import score as selection_score
from dopr_robot.study.config import Arm, Study
from dopr_robot.study.returns import Range
from dopr_robot.study.tasks import task_of


@dataclass(frozen=True)
class Method:
    """An optimizer on one task with one policy, at its chosen learning rate and one budget.

    Attributes:
        task, policy, optimizer: as in ``arms.jsonl``; ``variant``: of the task's demonstrations.
        budget: share of the training, ``steps``: in optimizer steps.
        learning_rate: the chosen one; ``tried_rates``: all that were tried; ``hyperparameters``: the others that were chosen.
        arms: the chosen ones, one a seed; ``records``: theirs, of ``arms.jsonl``.
        tests: their episodes on test seeds, one list a seed; empty where a run diverged.
        success: bool ``[seeds, episodes, horizons]``, of last checkpoints; a run that diverged has none.
        best: the same of the checkpoints that were best on selection states; None where they were not tested.
        returns, best_returns: sums of rewards likewise, of a task whose figure is its return; of a run that diverged what counts as 0.
        return_range: returns that count as 0 and as 1, see :mod:`~dopr_robot.study.returns`; None: the task's figure is success.
        tried: score on selection seeds of everything from which it was chosen, ``{learning rate: [one a seed]}``.
    """

    task: str
    variant: str
    policy: str
    optimizer: str
    budget: float
    steps: int
    learning_rate: float
    hyperparameters: Mapping[str, Any]
    tried_rates: tuple[float, ...]
    records: tuple[Record, ...]
    tests: tuple[Sequence[EpisodeRecord], ...]
    success: np.ndarray
    best: np.ndarray | None
    returns: np.ndarray | None
    best_returns: np.ndarray | None
    return_range: Range | None
    tried: Mapping[float, list[float]]

    @property
    def setting(self) -> tuple[str, str, float]:
        """What it has in common with the methods that it is compared with."""
        return self.task, self.policy, self.budget

    @property
    def at_edge(self) -> bool:
        """Whether the best rate is the smallest or the largest of several that were tried: a better one may lie beyond."""
        return len(self.tried_rates) > 1 and self.learning_rate in (self.tried_rates[0], self.tried_rates[-1])

    @property
    def score(self) -> np.ndarray:
        """The task's figure on test seeds, ``[seeds, episodes, horizons]``: success, or the share that was earned of the return that
        counts as 1. What is averaged over tasks, and compared over budgets and at equal loss."""
        return self.success if self.returns is None else self._share(self.returns)

    @property
    def rates(self) -> bool:
        """Whether :attr:`score` is success, and so from 0 to 1."""
        return self.return_range is None

    def look(self, point: Mapping[str, Any]) -> float | None:
        """Score on selection states at a point of a record's curve."""
        found = point.get("success_rate" if self.rates else "return")
        return found if found is None or self.rates else float(self._share(found))

    @property
    def curves(self) -> list[list[tuple[float, float]]]:
        """Of each seed ``(validation loss, score on selection states)`` along its training."""
        return [
            [
                (point["validation_loss"], look)
                for point in record["curve"]
                if point.get("validation_loss") is not None and (look := self.look(point)) is not None
            ]
            for record in self.records
        ]

    def _share(self, returns: Any) -> Any:
        assert self.return_range is not None
        zero, one = self.return_range
        return (returns - zero) / (one - zero)


def methods(
    study: Study,
    chosen: Sequence[Arm],
    done: Mapping[str, Record],
    tests: Mapping[str, Sequence[EpisodeRecord]],
    best: Mapping[str, Sequence[EpisodeRecord]],
    horizons: Mapping[str, Sequence[int]],
    ranges: Mapping[str, Range],
) -> list[Method]:
    """Every method, in the study's order; ``best``: the test episodes of best checkpoints, as ``tests`` has the last's; ``ranges``: of
    :func:`~dopr_robot.study.returns.return_ranges`."""
    tried: dict[tuple[str, ...], dict[float, list[float]]] = {}
    for arm in study.arms():
        found = selection_score(done[arm.name], ranges)
        tried.setdefault(arm.choice, {}).setdefault(arm.learning_rate, []).append(found)
    groups: dict[tuple[str, str, str, float], list[Arm]] = {}
    for arm in chosen:
        groups.setdefault((arm.key["task"], arm.key["policy"], arm.key["optimizer"], arm.budget), []).append(arm)
    made = []
    for (task, policy, optimizer, budget), arms in groups.items():
        kind, shape = task_of(task).kind, (study.evaluation.test_episodes, len(horizons[task]))

        def success_of(
            records: Sequence[EpisodeRecord], task: str = task, kind: str = kind, none: Any = shape
        ) -> np.ndarray:
            return success_matrix(records, kind, horizons[task]) if records else np.zeros(none, bool)

        def returns_of(every: Sequence[Sequence[EpisodeRecord]], task: str = task, none: Any = shape) -> Any:
            if task not in ranges:
                return None
            zero = np.full(none, ranges[task][0])
            return np.stack([return_matrix(each, horizons[task]) if each else zero for each in every])

        records = tuple(done[arm.name] for arm in arms)
        episodes = tuple(tests.get(arm.name, ()) for arm in arms)
        known = study.evaluation.best and all(each.get("best_step") is not None or each["error"] for each in records)
        of_best = [best.get(arm.name, ()) for arm in arms]
        made.append(
            Method(
                task, arms[0].entry.variant, policy, optimizer, budget, study.steps(budget), arms[0].learning_rate, arms[0].hyperparameters,
                tuple(sorted(tried[arms[0].choice])), records, episodes,
                np.stack([success_of(each) for each in episodes]),
                np.stack([success_of(each) for each in of_best]) if known else None,
                returns_of(episodes), returns_of(of_best) if known else None, ranges.get(task),
                tried[arms[0].choice],
            )
        )  # fmt: skip
    return made
