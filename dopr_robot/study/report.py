"""The report of a study: its table, its curves, its answer over the tasks, and what was held equal, in one page that opens from disk."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dopr_robot.evaluation import EpisodeRecord
from dopr_robot.evaluation.reports import plots
from dopr_robot.evaluation.reports.pages import svg, write_page
from dopr_robot.evaluation.reports.provenance import store_text
from dopr_robot.evaluation.reports.returns import returns_figure
from dopr_robot.evaluation.statistics import returns_of_seeds
from dopr_robot.files import replacing
from dopr_robot.study import budgets
from dopr_robot.study.choice import Record
from dopr_robot.study.config import Arm, Study
from dopr_robot.study.figures import budgets_figure, curves_figure, tasks_figure
from dopr_robot.study.methods import Method, methods
from dopr_robot.study.naming import file_name, label, short_labels
from dopr_robot.study.over_tasks import FILE, over_tasks, sentences, to_json
from dopr_robot.study.returns import Range
from dopr_robot.study.summary import TABLE, answers, return_answers, summary
from dopr_robot.study.table import rows, to_csv
from dopr_robot.study.tasks import task_of

DRAWN = 12
"""Curves of more tasks and policies than these are left to the records: nobody looks at 90 pictures, and a page of them is slow."""


def write_report(
    study: Study,
    chosen: Sequence[Arm],
    done: Mapping[str, Record],
    tests: Mapping[str, Sequence[EpisodeRecord]],
    best: Mapping[str, Sequence[EpisodeRecord]],
    horizons: Mapping[str, Sequence[int]],
    ranges: Mapping[str, Range],
    out: Path,
) -> None:
    """Write ``table.csv``, ``curves-<task>-<policy>.png``, where a task's figure is its return ``returns-<task>-<policy>.png``, and
    ``report.html``; from three tasks on ``over_tasks.json`` and its pictures;
    for several budgets ``budgets-<task>-<policy>.png``, and curves of each.

    ``tests`` and ``best``: episodes on test seeds of last and best checkpoints, by the arm's name; ``ranges``: of
    :func:`~dopr_robot.study.returns.return_ranges`.
    """
    every = methods(study, chosen, done, tests, best, horizons, ranges)
    table = rows(study, every, horizons)
    said = short_labels(study.policies) | short_labels(study.optimizers)
    with replacing(out / TABLE) as beside:
        beside.write_text(to_csv(table), encoding="utf-8")
    across = over_tasks(study, every)
    pictures = {}
    if across:
        with replacing(out / FILE) as beside:
            beside.write_text(to_json(across), encoding="utf-8")
        for budget, policy, variant in dict.fromkeys((row["budget"], row["policy"], row["variant"]) for row in across):
            group = [m for m in every if (m.budget, m.policy, m.variant) == (budget, policy, variant)]
            words = f"{said[policy]} {variant}".rstrip()
            name = words + _after(study, budget)
            pictures[name] = tasks_figure(group, study, said)
            plots.save(pictures[name], out / f"over_tasks-{file_name(words)}{_suffix(budget)}.png")
    panels = []
    settings = list(dict.fromkeys(method.setting for method in every))
    for task, policy, budget in settings:
        group = [method for method in every if method.setting == (task, policy, budget)]
        whole = [row for row in table if (row["task"], row["policy"], row["budget"]) == (task, policy, budget)]
        figure = curves_figure(group, horizons[task], said) if len(settings) <= DRAWN else None
        if figure is not None:
            plots.save(figure, out / f"curves-{_place(task, said[policy])}{_suffix(budget)}.png")
        earned = [
            (said[method.optimizer], returns_of_seeds(method.returns, horizons[task]))
            for method in group
            if method.returns is not None
        ]
        returns = returns_figure(earned, task_of(task), f"{task}, {said[policy]}") if earned else None
        if returns is not None:
            plots.save(returns, out / f"returns-{_place(task, said[policy])}{_suffix(budget)}.png")
        last = [row | {"own": json.loads(row["figures"] or "{}")} for row in summary(whole)]
        figures = list(dict.fromkeys(name for row in last for name in row["own"]))
        panels.append(
            {
                "task": task, "policy": policy, "after": _after(study, budget), "last": last, "rows": whole, "figures": figures,
                "svg": svg(figure), "steps": study.steps(budget), "returns_svg": svg(returns), "reward": task_of(task).reward,
            }
        )  # fmt: skip
    write_page(
        out / "report.html",
        "study.html.j2",
        package="dopr_robot.study",
        panels=panels,
        study=study,
        said=said,
        answers=[
            *sentences(across, said),
            *budgets.sentences(summary(table), said),
            *answers(table, said),
            *return_answers(table, said),
        ],
        across=across,
        returns={entry.label: ranges[entry.label] for entry in study.tasks if entry.label in ranges},
        pictures={name: svg(figure) for name, figure in pictures.items()},
        budgets=_budgets(study, every, table, said, out) if len(study.budgets) > 1 else [],
        best=any(row["best_success"] is not None for row in table),
        optimizers=[label(entry) for entry in study.optimizers],
        stores=[(entry.label, store_text(entry.store)) for entry in study.entries()],
        arms=len(done),
        diverged=[record for record in done.values() if record["error"]],
        settings=study.to_yaml(),
    )


def _budgets(
    study: Study,
    every: Sequence[Method],
    table: Sequence[Mapping[str, Any]],
    said: Mapping[str, str],
    out: Path,
) -> list[dict[str, Any]]:
    """Of each task and policy the rows at the longest horizon, by optimizer over the budgets, and their picture."""
    clock, found, last = budgets.training_seconds(every), [], summary(table)
    settings = list(dict.fromkeys((method.task, method.policy) for method in every))
    for task, policy in settings:
        group = [method for method in every if (method.task, method.policy) == (task, policy)]
        figure = budgets_figure(group, clock, said) if len(settings) <= DRAWN else None
        if figure is not None:
            plots.save(figure, out / f"budgets-{_place(task, said[policy])}.png")
        of = {
            name: [row for row in last if (row["task"], row["policy"], row["optimizer"]) == (task, policy, name)]
            for name in map(label, study.optimizers)
        }
        found.append({"task": task, "policy": policy, "of": of, "svg": svg(figure)})
    return found


def _after(study: Study, budget: float) -> str:
    return f", {budgets.budget_text(budget)}" if len(study.budgets) > 1 else ""


def _suffix(budget: float) -> str:
    return f"-budget{budget:g}" if budget != 1 else ""


def _place(task: str, policy: str) -> str:
    """A task and a policy in the name of a picture."""
    return file_name(f"{task.replace(task.split(' ')[0], task_of(task).name, 1)}-{policy}")
