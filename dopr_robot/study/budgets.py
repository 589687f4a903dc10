"""Faster, or better in the end: what the budgets of a study say together."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

from dopr_robot.evaluation.statistics import Difference, difference_curve
from dopr_robot.study.methods import Method
from dopr_robot.study.returns import score_difference

Clock = Mapping[tuple[str, str, str], float]


def budget_text(budget: float) -> str:
    """A budget in words.

    >>> budget_text(0.25), budget_text(1.0)
    ('0.25 of the training', 'the whole training')
    """
    return "the whole training" if budget == 1 else f"{budget:g} of the training"


def training_seconds(every: Sequence[Method]) -> dict[tuple[str, str, str], float]:
    """Seconds a training step, ``{(task, policy, optimizer): seconds}``: the median over budgets and seeds, since a machine that was busy
    with something else spoils single runs. Without validation and rollouts."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for method in every:
        speeds = [record["cost"]["seconds_per_step"] for record in method.records]
        found.setdefault((method.task, method.policy, method.optimizer), []).extend(each for each in speeds if each)
    return {key: median(speeds) for key, speeds in found.items() if speeds}


def seconds_of(method: Method, clock: Clock) -> float | None:
    """Training time of a method's budget; None where every run of it diverged before its speed was known."""
    speed = clock.get((method.task, method.policy, method.optimizer))
    return None if speed is None else speed * method.steps


def at_equal_time(method: Method, every: Sequence[Method], clock: Clock, reference: str) -> Difference | None:
    """The difference in score from what ``reference`` reaches in the method's training time, interpolated (linearly, seed by seed)
    between the reference's budgets, of which each has a schedule of its own.

    None where the reference was trained for no so short or no so long time: nothing is extrapolated.
    """
    rivals = [m for m in every if (m.task, m.policy, m.optimizer) == (method.task, method.policy, reference)]
    time = seconds_of(method, clock)
    known = [(seconds, m.score) for m in rivals if (seconds := seconds_of(m, clock)) is not None]  # budgets increase
    if time is None or len(known) < 2 or not known[0][0] <= time <= known[-1][0]:
        return None
    after = next(i for i, (seconds, _) in enumerate(known[1:], 1) if time <= seconds)
    (start, low), (end, high) = known[after - 1], known[after]
    share = (time - start) / (end - start)
    return difference_curve(method.score, (1 - share) * low + share * high, rates=method.rates)


def sentences(table: Sequence[Mapping[str, Any]], said: Mapping[str, str]) -> list[str]:
    """For each two optimizers how their difference goes with the budget, from the rows at the longest horizons; ``said``: what they are
    called. Empty for one budget."""
    pairs: dict[tuple[str, str], dict[float, list[Mapping[str, Any]]]] = {}
    for row in table:
        if row["reference"] is not None:
            pairs.setdefault((row["optimizer"], row["reference"]), {}).setdefault(row["budget"], []).append(row)
    made = []
    for (optimizer, reference), budgets in pairs.items():
        if len(budgets) < 2:
            continue
        steps = [
            f"{100 * float(np.mean(list(map(score_difference, rows)))):+.1f} after {budget_text(budget)}"
            for budget, rows in budgets.items()
        ]
        text = f"{said[optimizer]} against {said[reference]}, points on average over settings: {', '.join(steps)}"
        timed = [row for rows in budgets.values() for row in rows if row["equal_time_difference"] is not None]
        if timed:
            longest = {row["task"] + row["policy"]: row for row in timed}  # the last budget of each setting
            mean = 100 * float(np.mean([row["equal_time_difference"] for row in longest.values()]))
            text += f"; in equal training time, at the largest budget for which both have one, {mean:+.1f}"
        made.append(f"{text}.")
    return made
