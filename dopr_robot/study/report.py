"""The report of a study: its table, its curves, its answer over the tasks, and what was held equal, in one page that opens from disk."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from dopr_robot.evaluation import EpisodeRecord
from dopr_robot.evaluation.reports import plots
from dopr_robot.evaluation.reports.pages import svg, write_page
from dopr_robot.evaluation.reports.provenance import store_text
from dopr_robot.files import replacing
from dopr_robot.study.choice import Record
from dopr_robot.study.config import Arm, Study, task_of
from dopr_robot.study.figures import curves_figure, tasks_figure
from dopr_robot.study.naming import file_name, label, short_labels
from dopr_robot.study.over_tasks import FILE, over_tasks, sentences, to_json
from dopr_robot.study.table import TABLE, answers, methods, rows, summary, to_csv

DRAWN = 12
"""Curves of more tasks and policies than these are left to the records: nobody looks at 90 pictures, and a page of them is slow."""


def write_report(
    study: Study,
    chosen: Sequence[Arm],
    done: Mapping[str, Record],
    tests: Mapping[str, Sequence[EpisodeRecord]],
    horizons: Mapping[str, Sequence[int]],
    out: Path,
) -> None:
    """Write ``table.csv``, ``curves-<task>-<policy>.png`` and ``report.html``; from three tasks on ``over_tasks.json`` and its pictures."""
    every = methods(study, chosen, done, tests, horizons)
    table = rows(study, every, horizons)
    said = short_labels(study.policies) | short_labels(study.optimizers)
    with replacing(out / TABLE) as beside:
        beside.write_text(to_csv(table), encoding="utf-8")
    across = over_tasks(study, every)
    pictures = {}
    if across:
        with replacing(out / FILE) as beside:
            beside.write_text(to_json(across), encoding="utf-8")
        for policy in dict.fromkeys(row["policy"] for row in across):
            pictures[policy] = tasks_figure([method for method in every if method.policy == policy], study, said)
            plots.save(pictures[policy], out / f"over_tasks-{file_name(said[policy])}.png")
    panels = []
    settings = list(dict.fromkeys((method.task, method.policy) for method in every))
    for task, policy in settings:
        group = [method for method in every if (method.task, method.policy) == (task, policy)]
        whole = [row for row in table if (row["task"], row["policy"]) == (task, policy)]
        figure = curves_figure(group, max(horizons[task]), said) if len(settings) <= DRAWN else None
        if figure is not None:
            name = task.replace(task.split(" ")[0], task_of(task).name, 1)
            plots.save(figure, out / f"curves-{file_name(f'{name}-{said[policy]}')}.png")
        last = [row | {"own": json.loads(row["figures"] or "{}")} for row in summary(whole)]
        figures = list(dict.fromkeys(name for row in last for name in row["own"]))
        panels.append(
            {"task": task, "policy": policy, "last": last, "rows": whole, "figures": figures, "svg": svg(figure)}
        )
    write_page(
        out / "report.html",
        "study.html.j2",
        package="dopr_robot.study",
        panels=panels,
        study=study,
        said=said,
        answers=[*sentences(across, said), *answers(table, said)],
        across=across,
        pictures={policy: svg(figure) for policy, figure in pictures.items()},
        optimizers=[label(entry) for entry in study.optimizers],
        stores=[(entry.label, store_text(entry.store)) for entry in study.entries()],
        arms=len(done),
        diverged=[record for record in done.values() if record["error"]],
        settings=study.to_yaml(),
    )
