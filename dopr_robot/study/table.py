"""The table of a study, from records alone."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy

from dopr_robot.envs.task import words
from dopr_robot.evaluation import EpisodeRecord, statistics
from dopr_robot.evaluation.statistics import metrics, wilson
from dopr_robot.study.budgets import at_equal_time, seconds_of, training_seconds
from dopr_robot.study.config import Study
from dopr_robot.study.methods import Method
from dopr_robot.study.naming import entry_name, label, settings


def references(study: Study) -> dict[str, str]:
    """What each optimizer is compared with: ``dopr_<base>`` with its base where that is an arm, others with the first."""
    first = label(study.optimizers[0])
    plain = {entry_name(entry): label(entry) for entry in study.optimizers if settings(entry).keys() == {"name"}}
    found = {}
    for entry in study.optimizers:
        base = plain.get(entry_name(entry).removeprefix("dopr_"), first)
        reference = base if base != label(entry) else first
        if reference != label(entry):
            found[label(entry)] = reference
    return found


def rows(study: Study, all_methods: Sequence[Method], horizons: Mapping[str, Sequence[int]]) -> list[dict[str, Any]]:
    """One row a method and horizon: the content of ``table.csv``.

    ``success`` is of the last checkpoint, whose weights are averaged; ``best_success`` of the one that was best on selection states.
    Success has a 95 % interval: Wilson's for one seed, otherwise a bootstrap over seeds and episodes. The difference is paired, on
    common seeds and initial states; its p-value is McNemar's exact test for one seed, an exact permutation of seeds for several.
    ``p_holm`` corrects over all differences of the study. ``equal_time_difference``: from what the other reaches in the same training
    time (see :func:`~dopr_robot.study.budgets.at_equal_time`). ``equal_loss_difference``: in success on selection states at equal
    validation loss, a pair a seed (see :func:`~dopr_robot.evaluation.statistics.at_equal_loss`). ``seconds``: of training. ``figures``:
    the task's own, as JSON ``{name: {mean, min, max}}``.

    Of a task whose figure is its return: ``return`` with its paired difference (see
    :func:`~dopr_robot.evaluation.statistics.returns_of_seeds`), the returns that count as 0 and as 1 (``return_zero``, ``return_one``), and
    ``p`` is of the returns (Wilcoxon's signed-rank test over episodes for one seed), the differences at equal time and loss of its score.
    """
    by_name = {(*m.setting, m.optimizer): m for m in all_methods}
    against, clock = references(study), training_seconds(all_methods)
    made: list[dict[str, Any]] = []
    for method in all_methods:
        reference = by_name.get((*method.setting, against.get(method.optimizer, "")))
        own, best = _alone(method.success), None if method.best is None else _alone(method.best)
        pair = statistics.difference_curve(method.success, reference.success) if reference else None
        best_pair = None
        if reference and method.best is not None and reference.best is not None:
            best_pair = statistics.difference_curve(method.best, reference.best)
        timed = at_equal_time(method, all_methods, clock, reference.optimizer) if reference else None
        equal = None
        if reference:
            equal = statistics.at_equal_loss(method.curves, reference.curves, rates=method.rates)
        returns, best_returns = (
            _returns(method.returns, method, horizons),
            _returns(method.best_returns, method, horizons),
        )
        more = None
        if reference and method.returns is not None and reference.returns is not None:
            more = statistics.difference_curve(method.returns, reference.returns, rates=False)
        equal_low, equal_high = equal.ci95 if equal and equal.ci95 else (None, None)
        figures = _figures(method.tests)
        losses = [record["validation_loss"] for record in method.records]
        known = [loss for loss in losses if loss is not None]
        speeds = [record["cost"]["seconds_per_step"] for record in method.records if record["cost"]["seconds_per_step"]]
        for h, horizon in enumerate(horizons[method.task]):
            low, high = _interval(method.success, own, h)
            best_low, best_high = _interval(method.best, best, h)
            made.append(
                {
                    "task": method.task,
                    "policy": method.policy,
                    "optimizer": method.optimizer,
                    "budget": method.budget,
                    "steps": method.steps,
                    "learning_rate": method.learning_rate,
                    "hyperparameters": " ".join(words(method.hyperparameters)),
                    "at_edge": method.at_edge,
                    "seeds": len(method.records),
                    "diverged": sum(record["error"] is not None for record in method.records),
                    "validation_loss": float(np.mean(known)) if known else None,
                    "validation_loss_min": min(known) if known else None,
                    "validation_loss_max": max(known) if known else None,
                    "horizon": horizon,
                    "episodes": method.success[:, :, h].size,
                    "success": float(method.success[:, :, h].mean()),
                    "success_low": low,
                    "success_high": high,
                    "reference": reference.optimizer if reference else None,
                    "difference": float(pair.difference[h]) if pair else None,
                    "difference_low": float(pair.low[h]) if pair else None,
                    "difference_high": float(pair.high[h]) if pair else None,
                    "p": _p(method, reference, h) if reference else None,
                    "p_holm": None,
                    "best_success": None if method.best is None else float(method.best[:, :, h].mean()),
                    "best_success_low": best_low,
                    "best_success_high": best_high,
                    "best_difference": float(best_pair.difference[h]) if best_pair else None,
                    "best_difference_low": float(best_pair.low[h]) if best_pair else None,
                    "best_difference_high": float(best_pair.high[h]) if best_pair else None,
                    **_with_bounds("return", returns[h] if returns else None),
                    "return_difference": float(more.difference[h]) if more else None,
                    "return_difference_low": float(more.low[h]) if more else None,
                    "return_difference_high": float(more.high[h]) if more else None,
                    **_with_bounds("best_return", best_returns[h] if best_returns else None),
                    "return_zero": method.return_range[0] if method.return_range else None,
                    "return_one": method.return_range[1] if method.return_range else None,
                    "equal_time_difference": float(timed.difference[h]) if timed else None,
                    "equal_time_low": float(timed.low[h]) if timed else None,
                    "equal_time_high": float(timed.high[h]) if timed else None,
                    "equal_loss_difference": equal.difference if equal else None,
                    "equal_loss_low": equal_low,
                    "equal_loss_high": equal_high,
                    "figures": json.dumps(figures) if figures else None,
                    "seconds_per_step": float(np.mean(speeds)) if speeds else None,
                    "seconds": seconds_of(method, clock),
                    "state_bytes": max(record["state_bytes"] for record in method.records),
                }
            )
    tested = [row for row in made if row["p"] is not None]
    for row, adjusted in zip(tested, statistics.holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = adjusted
    return made


def _figures(tests: Sequence[Sequence[EpisodeRecord]]) -> dict[str, dict[str, float]]:
    """The task's own figures (PushT's coverage): mean over a seed's episodes; of the seeds mean, least and largest."""
    by_seed = [{name: each["mean"] for name, each in metrics(records).items()} for records in tests if records]
    names = sorted({name for means in by_seed for name in means})
    found = {}
    for name in names:
        values = [means[name] for means in by_seed if name in means]
        found[name] = {"mean": float(np.mean(values)), "min": min(values), "max": max(values)}
    return found


def _returns(
    returns: np.ndarray | None, method: Method, horizons: Mapping[str, Sequence[int]]
) -> list[dict[str, Any]] | None:
    return None if returns is None else statistics.returns_of_seeds(returns, horizons[method.task])


def _with_bounds(name: str, point: Mapping[str, Any] | None) -> dict[str, float | None]:
    """A mean and its interval as cells; none of a single episode."""
    mean, (low, high) = (None, (None, None)) if point is None else (point["mean"], point["ci95"] or (None, None))
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


def _alone(success: np.ndarray) -> statistics.Difference:
    return statistics.difference_curve(success, np.zeros_like(success))


def _interval(
    success: np.ndarray | None, own: statistics.Difference | None, horizon: int
) -> tuple[float | None, float | None]:
    """95 % of a success rate: Wilson's for one seed."""
    if success is None or own is None:
        return None, None
    if len(success) == 1:
        return wilson(int(success[:, :, horizon].sum()), success[:, :, horizon].size)
    return max(0.0, float(own.low[horizon])), float(own.high[horizon])


def _p(method: Method, reference: Method, horizon: int) -> float:
    """p-value of an equal score."""
    first, second = method.score[:, :, horizon], reference.score[:, :, horizon]
    if len(first) > 1:
        return statistics.seeds_test(first.mean(axis=1), second.mean(axis=1))
    if method.rates:
        return statistics.mcnemar(first[0], second[0])["p_value"]
    return float(scipy.stats.wilcoxon(first[0], second[0]).pvalue) if (first != second).any() else 1.0


def to_csv(table: Sequence[Mapping[str, Any]]) -> str:
    """The rows as CSV; nothing where there is no value."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in table)
    return text.getvalue()
