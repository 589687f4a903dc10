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
from dopr_robot.evaluation.statistics import metrics, success_matrix, wilson
from dopr_robot.study.choice import Record, last_successes
from dopr_robot.study.config import Arm, Study, task_of
from dopr_robot.study.naming import entry_name, label, short_labels

TABLE = "table.csv"


@dataclass(frozen=True)
class Method:
    """An optimizer on one task with one policy, at its chosen learning rate.

    Attributes:
        task, policy, optimizer: as in ``arms.jsonl``.
        learning_rate: the chosen one; ``rates``: all that were tried; ``hyperparameters``: the others that were chosen.
        arms: the chosen ones, one a seed; ``records``: theirs, of ``arms.jsonl``.
        tests: their episodes on test seeds, one list a seed; empty where a run diverged.
        success: bool ``[seeds, episodes, horizons]``; a run that diverged has none.
        tried: success on selection seeds of everything from which it was chosen, ``{learning rate: [one a seed]}``.
    """

    task: str
    policy: str
    optimizer: str
    learning_rate: float
    hyperparameters: Mapping[str, Any]
    rates: tuple[float, ...]
    records: tuple[Record, ...]
    tests: tuple[Sequence[EpisodeRecord], ...]
    success: np.ndarray
    tried: Mapping[float, list[float]]

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
    horizons: Mapping[str, Sequence[int]],
) -> list[Method]:
    """Every method, in the study's order."""
    tried: dict[tuple[str, ...], dict[float, list[float]]] = {}
    for arm in study.arms():
        success = last_successes(done[arm.name]) / done[arm.name]["selection_episodes"]
        tried.setdefault(arm.choice, {}).setdefault(arm.learning_rate, []).append(success)
    groups: dict[tuple[str, str, str], list[Arm]] = {}
    for arm in chosen:
        groups.setdefault((arm.key["task"], arm.key["policy"], arm.key["optimizer"]), []).append(arm)
    made = []
    for (task, policy, optimizer), arms in groups.items():
        kind, shape = task_of(task).kind, (study.evaluation.test_episodes, len(horizons[task]))
        episodes = tuple(tests.get(arm.name, ()) for arm in arms)
        success = [
            success_matrix(records, kind, horizons[task]) if records else np.zeros(shape, bool) for records in episodes
        ]
        records = tuple(done[arm.name] for arm in arms)
        made.append(
            Method(
                task, policy, optimizer, arms[0].learning_rate, arms[0].hyperparameters, tuple(sorted(tried[arms[0].choice])), records,
                episodes, np.stack(success), tried[arms[0].choice],
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

    Success has a 95 % interval: Wilson's for one seed, otherwise a bootstrap over seeds and episodes. The difference is paired, on
    common seeds and initial states; its p-value is McNemar's exact test for one seed, an exact permutation of seeds for several.
    ``p_holm`` corrects over all differences of the study. ``equal_loss_difference``: in success on selection states at equal validation
    loss, a pair a seed (see :func:`~dopr_robot.evaluation.statistics.at_equal_loss`). ``figures``: the task's own, as JSON
    ``{name: {mean, min, max}}``.
    """
    by_name = {(m.task, m.policy, m.optimizer): m for m in all_methods}
    against = references(study)
    made: list[dict[str, Any]] = []
    for method in all_methods:
        reference = by_name.get((method.task, method.policy, against.get(method.optimizer, "")))
        own = statistics.difference_curve(method.success, np.zeros_like(method.success))
        pair = statistics.difference_curve(method.success, reference.success) if reference else None
        equal = statistics.at_equal_loss(method.curves, reference.curves) if reference else None
        equal_low, equal_high = equal.ci95 if equal and equal.ci95 else (None, None)
        figures = _figures(method.tests)
        losses = [record["validation_loss"] for record in method.records]
        known = [loss for loss in losses if loss is not None]
        speeds = [record["cost"]["seconds_per_step"] for record in method.records if record["cost"]["seconds_per_step"]]
        for h, horizon in enumerate(horizons[method.task]):
            successes, episodes = int(method.success[:, :, h].sum()), method.success[:, :, h].size
            one_seed = len(method.records) == 1
            low, high = wilson(successes, episodes) if one_seed else (max(0.0, float(own.low[h])), float(own.high[h]))
            made.append(
                {
                    "task": method.task,
                    "policy": method.policy,
                    "optimizer": method.optimizer,
                    "learning_rate": method.learning_rate,
                    "hyperparameters": " ".join(words(method.hyperparameters)),
                    "at_edge": method.at_edge,
                    "seeds": len(method.records),
                    "diverged": sum(record["error"] is not None for record in method.records),
                    "validation_loss": float(np.mean(known)) if known else None,
                    "validation_loss_min": min(known) if known else None,
                    "validation_loss_max": max(known) if known else None,
                    "horizon": horizon,
                    "episodes": episodes,
                    "success": successes / episodes,
                    "success_low": low,
                    "success_high": high,
                    "reference": reference.optimizer if reference else None,
                    "difference": float(pair.difference[h]) if pair else None,
                    "difference_low": float(pair.low[h]) if pair else None,
                    "difference_high": float(pair.high[h]) if pair else None,
                    "p": _p(method.success[:, :, h], reference.success[:, :, h]) if reference else None,
                    "p_holm": None,
                    "equal_loss_difference": equal.difference if equal else None,
                    "equal_loss_low": equal_low,
                    "equal_loss_high": equal_high,
                    "figures": json.dumps(figures) if figures else None,
                    "seconds_per_step": float(np.mean(speeds)) if speeds else None,
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


def _p(first: np.ndarray, second: np.ndarray) -> float:
    """p-value of equal success, from successes ``[seeds, episodes]``."""
    if len(first) == 1:
        return statistics.mcnemar(first[0], second[0])["p_value"]
    return statistics.seeds_test(first.mean(axis=1), second.mean(axis=1))


def summary(table: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows at each task's longest horizon."""
    longest: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in table:
        key = (row["task"], row["policy"], row["optimizer"])
        if key not in longest or int(row["horizon"]) > int(longest[key]["horizon"]):
            longest[key] = dict(row)
    return list(longest.values())


def answers(table: Sequence[Mapping[str, Any]], said: Mapping[str, str]) -> list[str]:
    """The study's answer in words, a sentence for each two optimizers that were compared; ``said``: what they are called."""
    pairs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in summary(table):
        if row["reference"] is not None:
            pairs.setdefault((row["optimizer"], row["reference"]), []).append(row)
    sentences = []
    for (optimizer, reference), rows in pairs.items():
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
        sentences.append(
            f"{said[optimizer]} is ahead of {said[reference]} {places} ({span}); the 95 % interval leaves out 0 in {len(apart)}, "
            f"significant after Holm's correction: {significant}."
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

    made = []
    for row in rows:
        against = ["", "", "", ""]
        if row["reference"]:
            low, high = (100 * float(row[f"difference_{side}"]) for side in ("low", "high"))
            difference = f"{100 * float(row['difference']):+.1f}"
            against = [said[row["reference"]], difference, f"{low:+.1f} to {high:+.1f}", f"{float(row['p_holm']):.3f}"]
        interval = f"{percent(row, 'success_low')} to {percent(row, 'success_high')}"
        loss = f"{float(row['validation_loss']):.4g}" if row["validation_loss"] else "-"
        name = [row["task"].rsplit("/", 1)[-1], said[row["policy"]], said[row["optimizer"]]]
        rate = f"{float(row['learning_rate']):g}" + (" (edge)" if row["at_edge"] == "True" else "")
        rate += f" {row['hyperparameters']}" if row.get("hyperparameters") else ""
        made.append([*name, rate, loss, row["horizon"], percent(row, "success"), interval, *against])
    head = [
        "task",
        "policy",
        "optimizer",
        "rate",
        "valid. loss",
        "steps",
        "success %",
        "95 %",
        "against",
        "points",
        "95 %",
        "p (Holm)",
    ]
    return head, made


def to_csv(table: Sequence[Mapping[str, Any]]) -> str:
    """The rows as CSV; nothing where there is no value."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in table)
    return text.getvalue()
