"""What a study's table says: the rows at the longest horizons, and its answer in words."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dopr_robot.study.budgets import budget_text
from dopr_robot.study.config import Study
from dopr_robot.study.naming import short_labels

TABLE = "table.csv"


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
    """The study's answer in words, a sentence for each two optimizers that were compared at a budget, of tasks whose figure is success;
    ``said``: what they are called."""
    pairs: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for row in summary(table):
        if row["reference"] is not None and row["return_difference"] is None:
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
    """Likewise of tasks whose figure is a return, at the largest budget of each two optimizers."""
    pairs: dict[tuple[str, str], dict[tuple[str, str], dict[str, Any]]] = {}
    for row in summary(table):
        if row["return_difference"] is not None:
            pairs.setdefault((row["optimizer"], row["reference"]), {})[row["task"], row["policy"]] = row
    sentences = []
    for (optimizer, reference), rows in pairs.items():
        differences = [row["return_difference"] for row in rows.values()]
        apart = sum(row["return_difference_low"] > 0 or row["return_difference_high"] < 0 for row in rows.values())
        significant = sum(row["p_holm"] <= 0.05 for row in rows.values())
        span = (
            f"{min(differences):+.1f} to {max(differences):+.1f}" if len(differences) > 1 else f"{differences[0]:+.1f}"
        )
        sentences.append(
            f"{said[optimizer]} earns a larger return than {said[reference]} in {sum(d > 0 for d in differences)} of "
            f"{len(differences)} settings ({span}); the 95 % interval leaves out 0 in {apart}, significant after Holm's correction: "
            f"{significant}."
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
