"""The table of a study, from records alone."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dopr_robot.envs.task import words
from dopr_robot.evaluation import EpisodeRecord, statistics
from dopr_robot.evaluation.statistics import known_horizons, metrics, return_matrix, success_matrix, wilson
from dopr_robot.study.budgets import at_equal_time, budget_text, seconds_of, training_seconds
from dopr_robot.study.choice import Record, last_successes
from dopr_robot.study.config import Arm, Study, task_of
from dopr_robot.study.naming import entry_name, label, short_labels

TABLE = "table.csv"


@dataclass(frozen=True)
class Method:
    """An optimizer on one task with one policy, at its chosen learning rate and one budget.

    Attributes:
        task, policy, optimizer: as in ``arms.jsonl``; ``budget``: share of the training, ``steps``: in optimizer steps.
        learning_rate: the chosen one; ``rates``: all that were tried; ``hyperparameters``: the others that were chosen.
        arms: the chosen ones, one a seed; ``records``: theirs, of ``arms.jsonl``.
        tests: their episodes on test seeds, one list a seed; empty where a run diverged.
        success: bool ``[seeds, episodes, horizons]``, of last checkpoints; a run that diverged has none.
        best: the same of the checkpoints that were best on selection states; None where they were not tested.
        returns, best_returns: sums of rewards likewise; None where the task's reward says no more than success, a record does not say them
            at every horizon, or a run diverged.
        tried: success on selection seeds of everything from which it was chosen, ``{learning rate: [one a seed]}``.
    """

    task: str
    policy: str
    optimizer: str
    budget: float
    steps: int
    learning_rate: float
    hyperparameters: Mapping[str, Any]
    rates: tuple[float, ...]
    records: tuple[Record, ...]
    tests: tuple[Sequence[EpisodeRecord], ...]
    success: np.ndarray
    best: np.ndarray | None
    returns: np.ndarray | None
    best_returns: np.ndarray | None
    tried: Mapping[float, list[float]]

    @property
    def setting(self) -> tuple[str, str, float]:
        """What it has in common with the methods that it is compared with."""
        return self.task, self.policy, self.budget

    @property
    def at_edge(self) -> bool:
        """Whether the best rate is the smallest or the largest of several that were tried: a better one may lie beyond."""
        return len(self.rates) > 1 and self.learning_rate in (self.rates[0], self.rates[-1])

    @property
    def curves(self) -> list[list[tuple[float, float]]]:
        """Of each seed ``(validation loss, success on selection states)`` along its training."""
        return [
            [
                (point["validation_loss"], point["success_rate"])
                for point in record["curve"]
                if point.get("validation_loss") is not None and point.get("success_rate") is not None
            ]
            for record in self.records
        ]


def methods(
    study: Study,
    chosen: Sequence[Arm],
    done: Mapping[str, Record],
    tests: Mapping[str, Sequence[EpisodeRecord]],
    best: Mapping[str, Sequence[EpisodeRecord]],
    horizons: Mapping[str, Sequence[int]],
) -> list[Method]:
    """Every method, in the study's order; ``best``: the test episodes of best checkpoints, as ``tests`` has the last's."""
    tried: dict[tuple[str, ...], dict[float, list[float]]] = {}
    for arm in study.arms():
        success = last_successes(done[arm.name]) / done[arm.name]["selection_episodes"]
        tried.setdefault(arm.choice, {}).setdefault(arm.learning_rate, []).append(success)
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

        def returns_of(every: Sequence[Sequence[EpisodeRecord]], task: str = task) -> np.ndarray | None:
            asked = list(horizons[task])
            if not task_of(task).reward or not all(known_horizons(each, asked) == asked and each for each in every):
                return None
            return np.stack([return_matrix(each, asked) for each in every])

        records = tuple(done[arm.name] for arm in arms)
        episodes = tuple(tests.get(arm.name, ()) for arm in arms)
        known = study.evaluation.best and all(each.get("best_step") is not None or each["error"] for each in records)
        of_best = [best.get(arm.name, ()) for arm in arms]
        made.append(
            Method(
                task, policy, optimizer, budget, study.steps(budget), arms[0].learning_rate, arms[0].hyperparameters,
                tuple(sorted(tried[arms[0].choice])), records, episodes,
                np.stack([success_of(each) for each in episodes]),
                np.stack([success_of(each) for each in of_best]) if known else None,
                returns_of(episodes), returns_of(of_best) if known else None,
                tried[arms[0].choice],
            )
        )  # fmt: skip
    return made


def references(study: Study) -> dict[str, str]:
    """What each optimizer is compared with: ``dopr_<base>`` with its base where that is an arm, others with the first."""
    labels = [label(entry) for entry in study.optimizers]
    found = {}
    for entry in study.optimizers:
        base = entry_name(entry).removeprefix("dopr_")
        reference = base if base in labels and base != label(entry) else labels[0]
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
    the task's own, as JSON ``{name: {mean, min, max}}``. ``return``: of a task whose reward says more than success, with its paired
    difference (see :func:`~dopr_robot.evaluation.statistics.returns_of_seeds`).
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
        equal = statistics.at_equal_loss(method.curves, reference.curves) if reference else None
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
                    "p": _p(method.success[:, :, h], reference.success[:, :, h]) if reference else None,
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


def _p(first: np.ndarray, second: np.ndarray) -> float:
    """p-value of equal success, from successes ``[seeds, episodes]``."""
    if len(first) == 1:
        return statistics.mcnemar(first[0], second[0])["p_value"]
    return statistics.seeds_test(first.mean(axis=1), second.mean(axis=1))


def summary(table: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows at each task's longest horizon."""
    longest: dict[tuple[str, str, str, float], dict[str, Any]] = {}
    for row in table:
        key = (row["task"], row["policy"], row["optimizer"], budget_of(row))
        if key not in longest or int(row["horizon"]) > int(longest[key]["horizon"]):
            longest[key] = dict(row)
    return list(longest.values())


def budget_of(row: Mapping[str, Any]) -> float:
    """The budget of a row of ``table.csv``; one of a version without budgets is of the whole training."""
    return float(row.get("budget") or 1)


def answers(table: Sequence[Mapping[str, Any]], said: Mapping[str, str]) -> list[str]:
    """The study's answer in words, a sentence for each two optimizers that were compared at a budget; ``said``: what they are called."""
    pairs: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for row in summary(table):
        if row["reference"] is not None:
            pairs.setdefault((row["optimizer"], row["reference"], budget_of(row)), []).append(row)
    several, sentences = len({budget for *_, budget in pairs}) > 1, []
    for (optimizer, reference, budget), rows in pairs.items():
        differences = [100 * row["difference"] for row in rows]
        apart = [row for row in rows if row["difference_low"] > 0 or row["difference_high"] < 0]
        significant = sum(row["p_holm"] <= 0.05 for row in rows)
        places = (
            f"in {sum(d > 0 for d in differences)} of {len(rows)} settings, level in {sum(d == 0 for d in differences)}"
        )
        span = (
            f"{min(differences):+.1f} to {max(differences):+.1f} points"
            if len(rows) > 1
            else f"{differences[0]:+.1f} points"
        )
        after = f"After {budget_text(budget)} " if several else ""
        sentences.append(
            f"{after}{said[optimizer]} is ahead of {said[reference]} {places} ({span}); the 95 % interval leaves out 0 in {len(apart)}, "
            f"significant after Holm's correction: {significant}."
        )
    return sentences


def return_answers(table: Sequence[Mapping[str, Any]], said: Mapping[str, str]) -> list[str]:
    """Likewise of returns, at the largest budget of each two optimizers, from the rows that have them."""
    pairs: dict[tuple[str, str], dict[tuple[str, str], dict[str, Any]]] = {}
    for row in summary(table):
        if row["return_difference"] is not None:
            pairs.setdefault((row["optimizer"], row["reference"]), {})[row["task"], row["policy"]] = row
    sentences = []
    for (optimizer, reference), rows in pairs.items():
        differences = [row["return_difference"] for row in rows.values()]
        apart = sum(row["return_difference_low"] > 0 or row["return_difference_high"] < 0 for row in rows.values())
        span = (
            f"{min(differences):+.1f} to {max(differences):+.1f}" if len(differences) > 1 else f"{differences[0]:+.1f}"
        )
        sentences.append(
            f"{said[optimizer]} earns a larger return than {said[reference]} in {sum(d > 0 for d in differences)} of "
            f"{len(differences)} settings ({span}); the 95 % interval leaves out 0 in {apart}."
        )
    return sentences


def read_table(out: Path) -> list[dict[str, str]]:
    """The rows of a finished study's ``table.csv``; its values are texts."""
    with (out / TABLE).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_summary(out: Path, study: Study) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a finished study's result as people read it, from its ``table.csv``: every method at the longest horizon."""
    rows = summary(read_table(out))
    said = short_labels(study.policies) | short_labels(study.optimizers)

    def percent(row: Mapping[str, str], key: str) -> str:
        return f"{100 * float(row[key]):.1f}"

    several, best, made = len({budget_of(row) for row in rows}) > 1, any(row.get("best_success") for row in rows), []
    earning = any(row.get("return") for row in rows)
    for row in rows:
        against = ["", "", "", ""]
        if row["reference"]:
            low, high = (100 * float(row[f"difference_{side}"]) for side in ("low", "high"))
            difference = f"{100 * float(row['difference']):+.1f}"
            against = [said[row["reference"]], difference, f"{low:+.1f} to {high:+.1f}", f"{float(row['p_holm']):.3f}"]
        interval = f"{percent(row, 'success_low')} to {percent(row, 'success_high')}"
        loss = f"{float(row['validation_loss']):.4g}" if row["validation_loss"] else "-"
        name = [row["task"].rsplit("/", 1)[-1], said[row["policy"]], said[row["optimizer"]]]
        name += [f"{budget_of(row):g}"] if several else []
        rate = f"{float(row['learning_rate']):g}" + (" (edge)" if row["at_edge"] == "True" else "")
        rate += f" {row['hyperparameters']}" if row.get("hyperparameters") else ""
        chosen = [percent(row, "best_success") if row.get("best_success") else "-"] if best else []
        earned = []
        if earning:
            more = f"{float(row['return_difference']):+.1f}" if row.get("return_difference") else ""
            earned = [f"{float(row['return']):.1f}", more] if row.get("return") else ["", ""]
        made.append([*name, rate, loss, row["horizon"], percent(row, "success"), interval, *chosen, *against, *earned])
    head = [
        "task",
        "policy",
        "optimizer",
        *(["budget"] if several else []),
        "rate",
        "valid. loss",
        "steps",
        "success %",
        "95 %",
        *(["best %"] if best else []),
        "against",
        "points",
        "95 %",
        "p (Holm)",
        *(["return", "more"] if earning else []),
    ]
    return head, made


def to_csv(table: Sequence[Mapping[str, Any]]) -> str:
    """The rows as CSV; nothing where there is no value."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in table)
    return text.getvalue()
