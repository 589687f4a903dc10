"""A study's answer over its tasks, which are the unit: what each optimizer reaches with a policy, and what it adds to the one it is
compared with."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dopr_robot.evaluation import statistics
from dopr_robot.study.budgets import budget_text
from dopr_robot.study.config import Study
from dopr_robot.study.methods import Method
from dopr_robot.study.table import references

FILE = "over_tasks.json"
LEAST = 3
"""Tasks from which on a study is summed up over them: with two, no interval says anything."""


def over_tasks(study: Study, every: Sequence[Method]) -> list[dict[str, Any]]:
    """A row a budget, policy, variant of the tasks and optimizer, of each task's score at its longest horizon (see
    :attr:`~dopr_robot.study.methods.Method.score`); none over fewer than three tasks.

    Each row has ``budget, policy, variant, optimizer, tasks, seeds``, ``return_ranges`` (of the tasks whose figure is a return, those that
    count as 0 and as 1: ``{task: [zero, one]}``), the fields of :class:`~dopr_robot.evaluation.statistics.Aggregate` and ``letters``
    (optimizers of a policy that share one are not told apart at 5 % after Holm's correction); and where it is compared, ``reference``, the
    fields of :class:`~dopr_robot.evaluation.statistics.TaskComparison`, ``permutation_p_holm`` (over all comparisons of the study) and
    ``equal_loss``: the mean over tasks of the difference in score at equal validation loss, its interval, and in how many tasks there is
    one.
    """
    against = references(study)
    groups: dict[tuple[float, str, str], dict[str, list[Method]]] = {}
    for method in every:
        key = (method.budget, method.policy, method.variant)
        groups.setdefault(key, {}).setdefault(method.optimizer, []).append(method)
    rows = []
    for (budget, policy, variant), optimizers in groups.items():
        if len(next(iter(optimizers.values()))) < LEAST:
            continue
        found = {name: scores(methods) for name, methods in optimizers.items()}
        shared = _letters(found)
        for name, methods in optimizers.items():
            returns = {each.task: each.return_range for each in methods if each.return_range is not None}
            row = {
                "budget": budget,
                "policy": policy,
                "variant": variant,
                "optimizer": name,
                "tasks": len(methods),
                "seeds": found[name].shape[1],
                "return_ranges": returns,
                **asdict(statistics.aggregate(found[name], rates=not returns)),
                "letters": shared[name],
                "reference": against.get(name),
            }
            if reference := against.get(name):
                compared = statistics.compare_over_tasks(found[name], found[reference], rates=not returns)
                row |= {**asdict(compared), "equal_loss": _equal_loss(methods, optimizers[reference])}
            rows.append(row)
    pairs = [row for row in rows if row["reference"]]
    for row, adjusted in zip(pairs, statistics.holm([row["permutation_p"] for row in pairs]), strict=True):
        row["permutation_p_holm"] = adjusted
    return rows


def sentences(rows: Sequence[Mapping[str, Any]], said: Mapping[str, str]) -> list[str]:
    """Each comparison in words; ``said``: what policies and optimizers are called."""
    made = []
    for row in rows:
        if not row["reference"]:
            continue
        low, high = (100 * end for end in row["ci95"])
        where = said[row["policy"]] + (f", {row['variant']}" if row["variant"] else "")
        where += f", {budget_text(row['budget'])}" if len({each["budget"] for each in rows}) > 1 else ""
        text = (
            f"{where}: over {row['tasks']} tasks {said[row['optimizer']]} is {100 * row['difference']:+.1f} points{_of(row)} from "
            f"{said[row['reference']]} (95 % over tasks {low:+.1f} to {high:+.1f}; exact permutation p = {row['permutation_p']:.2g}, "
            f"{row['permutation_p_holm']:.2g} after Holm), ahead in {row['wins']}, level in {row['ties']}, behind in {row['losses']}"
        )
        equal = row["equal_loss"]
        if equal["difference"] is not None:
            ends = equal["ci95"]
            span = f" ({100 * ends[0]:+.1f} to {100 * ends[1]:+.1f})" if ends else ""
            places = (
                f"over the losses that both went through, which they did in {equal['tasks']} of {row['tasks']} tasks"
            )
            text += f"; at equal validation loss {100 * equal['difference']:+.1f}{span}, {places}"
        made.append(text + ".")
    return made


def _of(row: Mapping[str, Any]) -> str:
    """What a point is of, where it is not of success alone."""
    returns = len(row["return_ranges"])
    if not returns:
        return ""
    return f" (in {returns} of them hundredths of the return that counts as 1)"


def to_json(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a file."""
    return json.dumps(list(rows), indent=1, allow_nan=False) + "\n"


def scores(methods: Sequence[Method]) -> NDArray[np.float64]:
    """Score at each task's longest horizon: ``[tasks, seeds]``."""
    return np.stack([method.score[:, :, -1].mean(axis=1) for method in methods])


def _letters(found: Mapping[str, NDArray[np.float64]]) -> dict[str, str]:
    pairs = list(combinations(found, 2))
    differences = [found[first].mean(axis=1) - found[second].mean(axis=1) for first, second in pairs]
    adjusted = statistics.holm([statistics.sign_flip_p_value(each) for each in differences])
    apart = {frozenset(pair) for pair, p in zip(pairs, adjusted, strict=True) if p <= 0.05}
    means = {name: float(each.mean()) for name, each in found.items()}
    return statistics.letters(list(found), means, lambda first, second: frozenset((first, second)) in apart)


def _equal_loss(methods: Sequence[Method], others: Sequence[Method]) -> dict[str, Any]:
    of_tasks = [
        statistics.at_equal_loss(method.curves, other.curves, rates=method.rates)
        for method, other in zip(methods, others, strict=True)
    ]
    known = np.array([each.difference for each in of_tasks if each.difference is not None])
    if not len(known):
        return {"difference": None, "ci95": None, "tasks": 0}
    possible = {"low": -1.0, "high": 1.0} if all(method.rates for method in methods) else {}
    found = statistics.mean_with_interval(known, **possible)
    return {"difference": found["mean"], "ci95": found["ci95"], "tasks": len(known)}
