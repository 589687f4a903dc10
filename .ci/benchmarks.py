"""Write docs/benchmarks.md from the records in benchmarks/field: ``python -P .ci/benchmarks.py``.

A benchmark is a YAML file, and beside it a folder of its name with the ``episodes.jsonl`` of its evaluations, a training seed each:
``last-0.jsonl``, ``best-0.jsonl`` (the averaged weights at the end, and the checkpoint that was best on selection states; ``best: last``
in the YAML file where that is the last one). One of several lines (groups of tasks, variants of one) names a study, of whose tests its
figures are. ``means`` says what the figure is, ``beside`` names further ones of the same records.
"""

import csv
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dopr_robot import seeds
from dopr_robot.envs import get_task
from dopr_robot.envs.task import words
from dopr_robot.evaluation import statistics
from dopr_robot.evaluation.rollouts.records import EpisodeRecord, read_records

ROOT = Path(__file__).parents[1]
PAGE, FIELD = ROOT / "docs" / "benchmarks.md", ROOT / "benchmarks" / "field"
WRITTEN = {"success": (100, 1, " %"), "coverage": (1, 3, ""), "score": (1, 3, ""), "return": (1, 0, "")}
"""Of a figure its scale, digits and unit."""
WEIGHTS = {"last": "last averaged weights", "best": "best checkpoint"}
HEAD = """# Beside published figures

Does published success come back? Each row below is computed from episode records, those in [benchmarks/field](../benchmarks/field) or
those of the study that it names, and from nothing else. The averaged weights at the end are the figure that a user gets; the best
checkpoint, chosen on selection states that the evaluation does not see, is what papers often report. Intervals are 95 %, over initial
states, and over training seeds where there are several. "–": not measured yet.
"""


def page() -> str:
    """The page, from the files that are there."""
    made = [HEAD, f"| benchmark | published | {' | '.join(WEIGHTS.values())} |", "|---|---|---|---|"]
    texts = {file.stem: yaml.safe_load(file.read_text(encoding="utf-8")) for file in sorted(FIELD.glob("*.yaml"))}
    for name, about in texts.items():
        published = "<br>".join(f"{each['figure']} ({each['of']})" for each in about["published"]) or "none found"
        ours = [of_study(about), "–"] if "study" in about else [figure(name, about, which) for which in WEIGHTS]
        made.append(f"| [{about['benchmark']}](#{place(about)}) | {published} | {' | '.join(ours)} |")
    for name, about in texts.items():
        made += ["", f"## {about['benchmark']}", ""]
        made += [f"Figure: {described(about)}. What differs in protocol: {about['differs']}.", ""]
        listed = [f"- {each['figure']}: {each['of']}, {each['source']}" for each in about["published"]]
        for other in about.get("beside", []):
            each = [f"{figure(name, about | {'figure': other}, which)} ({of})" for which, of in WEIGHTS.items()]
            listed.append(f"- ours, {other}: {'; '.join(each)}")
        listed += [f"- ours: {about['took']}"] if "took" in about else []
        made += [*listed, *([""] if listed else []), "```", about["commands"].strip(), "```"]
    return "\n".join([*made, ""])


def place(about: dict[str, Any]) -> str:
    """Where the benchmark's own part of the page is."""
    return re.sub(r"[^\w -]", "", about["benchmark"].lower()).replace(" ", "-")


def described(about: dict[str, Any]) -> str:
    """What the figure is, in words."""
    if "study" in about:
        return f"{about['figure']} over {about['episodes']} fresh initial states of each task, mean over the tasks of a line"
    task = get_task(about["task"])
    if about["figure"] == "success":
        return f"success within {task.max_steps} steps over {about['episodes']} fresh initial states"
    if about["figure"] == "return":
        return f"return of {task.max_steps} steps, mean over {about['episodes']} fresh initial states"
    how = {"max": "the largest of an episode", "mean": "an episode's mean", "final": "at an episode's end"}
    name = f"{about['figure']} ({about['means']})" if "means" in about else about["figure"]
    return f"{name}, {how[task.metrics[about['figure']]]}, mean over {about['episodes']} fresh initial states"


def figure(name: str, about: dict[str, Any], which: str) -> str:
    """Ours, with its interval and how many runs it is of; "–" where there are no records. Raises ValueError for other episodes."""
    runs = [read_records(file) for file in sorted((FIELD / name).glob(f"{about.get(which, which)}-*.jsonl"))]
    if not runs:
        return "–"
    for records in runs:
        if [record.seed for record in records] != list(seeds.block("final", 0, about["episodes"])):
            raise ValueError(f"benchmarks/field/{name}: {which} is not of the {about['episodes']} episodes of seed 0")
    return said(np.stack([values(records, about["task"], about["figure"]) for records in runs]), about["figure"])


def said(figures: np.ndarray, name: str) -> str:
    """Figures ``[training seeds, episodes]`` in words."""
    mean, (low, high) = over_runs(figures, name)
    scale, digits, unit = WRITTEN[name]
    number = f"**{scale * mean:,.{digits}f}** ({scale * low:,.{digits}f} to {scale * high:,.{digits}f})"
    return f"{number}{unit}, {len(figures)} seed{'s' * (len(figures) > 1)}"


def of_study(about: dict[str, Any]) -> str:
    """A line for each group of tasks, or each variant of one, with the optimizers of a study: of what nothing was chosen on."""
    study = ROOT / "studies" / about["study"]
    arms = [json.loads(line) for line in (study / "arms.jsonl").read_text(encoding="utf-8").splitlines()]
    with (study / "table.csv").open(encoding="utf-8", newline="") as rows:
        chosen = {
            (row["task"], row["optimizer"], float(row["learning_rate"]), row["hyperparameters"])
            for row in csv.DictReader(rows)
        }
    by_weights = {arm["weights_sha256"]: arm for arm in arms}
    found: dict[tuple[str, str], dict[int, dict[str, np.ndarray]]] = {}
    for test in sorted(study.glob("test/*/test.json")):
        arm = by_weights[json.loads(test.read_text(encoding="utf-8"))["weights_sha256"]]
        more = " ".join(words(arm.get("hyperparameters", {})))
        if (arm["task"], arm["optimizer"], arm["learning_rate"], more) not in chosen:
            continue  # it was, before other rates were tried
        task = arm["config"]["task.name"]
        (line,) = {arm["task"], *get_task(task).groups} & set(about["lines"])
        figures = values(read_records(test.with_name("episodes.jsonl")), task, about["figure"])
        found.setdefault((line, arm["optimizer"]), {}).setdefault(arm["seed"], {})[arm["task"]] = figures
    lines = []
    for line, name in about["lines"].items():
        each = {optimizer: found[line, optimizer] for optimizer in about["optimizers"]}
        told = [f"{optimizer} {said(_by_seed(tasks), about['figure'])}" for optimizer, tasks in each.items()]
        (tasks,) = {len(figures) for seeded in each.values() for figures in seeded.values()}
        lines.append(f"{name}{f' ({tasks} tasks)' if tasks > 1 else ''}: {'; '.join(told)}")
    return "<br>".join(lines)


def _by_seed(found: dict[int, dict[str, np.ndarray]]) -> np.ndarray:
    """``[seeds, episodes of all tasks]``."""
    return np.stack([np.concatenate([figures for _, figures in sorted(found[seed].items())]) for seed in sorted(found)])


def values(records: Sequence[EpisodeRecord], task_id: str, name: str) -> np.ndarray:
    """The figure of every episode; one that broke off has the least."""
    if name == "success":
        task = get_task(task_id)
        return statistics.succeeded(records, task.kind, task.max_steps).astype(float)
    return np.array([record.return_ if name == "return" else record.metrics.get(name, 0.0) for record in records])


def over_runs(figures: np.ndarray, name: str) -> tuple[float, tuple[float, float]]:
    """Mean and interval of figures ``[training seeds, episodes]``."""
    least, most = (-math.inf, math.inf) if name == "return" else (0.0, 1.0)
    if len(figures) > 1:
        found = statistics.difference_curve(figures[..., None], np.zeros((*figures.shape, 1)), rates=name == "success")
        return float(found.difference[0]), (max(least, float(found.low[0])), min(most, float(found.high[0])))
    if name == "success":
        return float(figures.mean()), statistics.wilson(int(figures.sum()), figures.size)
    found_one = statistics.mean_with_interval(figures[0], least, most)
    return found_one["mean"], tuple(found_one["ci95"])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
