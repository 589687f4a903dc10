"""Write docs/benchmarks.md from the records in benchmarks/field: ``python -P .ci/benchmarks.py``.

A benchmark is a YAML file, and beside it a folder of its name with the ``episodes.jsonl`` of its evaluations, a training seed each:
``last-0.jsonl``, ``best-0.jsonl`` (the averaged weights at the end, and the checkpoint that was best on selection states; ``best: last``
in the YAML file where that is the last one). One that stands for groups of tasks names a study, of whose tests its figures are.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dopr_robot import seeds
from dopr_robot.envs import get_task
from dopr_robot.evaluation import statistics
from dopr_robot.evaluation.rollouts.records import EpisodeRecord, read_records

ROOT = Path(__file__).parents[1]
PAGE, FIELD = ROOT / "docs" / "benchmarks.md", ROOT / "benchmarks" / "field"
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
        ours = (
            " | ".join(figure(name, about, which) for which in WEIGHTS)
            if "task" in about
            else f"{of_groups(about)} | –"
        )
        made.append(f"| [{about['benchmark']}](#{place(about)}) | {published} | {ours} |")
    for about in texts.values():
        made += ["", f"## {about['benchmark']}", ""]
        made += [f"Figure: {described(about)}. What differs in protocol: {about['differs']}.", ""]
        listed = [f"- {each['figure']}: {each['of']}, {each['source']}" for each in about["published"]]
        listed += [f"- ours: {about['took']}"] if "took" in about else []
        made += [*listed, *([""] if listed else []), "```", about["commands"].strip(), "```"]
    return "\n".join([*made, ""])


def place(about: dict[str, Any]) -> str:
    """Where the benchmark's own part of the page is."""
    return re.sub(r"[^\w -]", "", about["benchmark"].lower()).replace(" ", "-")


def described(about: dict[str, Any]) -> str:
    """What the figure is, in words."""
    if "groups" in about:
        return f"success over {about['episodes']} fresh initial states of each task, mean over the tasks of a group"
    task = get_task(about["task"])
    if about["figure"] == "success":
        return f"success within {task.max_steps} steps over {about['episodes']} fresh initial states"
    how = {"max": "the largest of an episode", "mean": "an episode's mean", "final": "at an episode's end"}
    return (
        f"{about['figure']}, {how[task.metrics[about['figure']]]}, mean over {about['episodes']} fresh initial states"
    )


def figure(name: str, about: dict[str, Any], which: str) -> str:
    """Ours, with its interval and how many runs it is of; "–" where there are no records. Raises ValueError for other episodes."""
    runs = [read_records(file) for file in sorted((FIELD / name).glob(f"{about.get(which, which)}-*.jsonl"))]
    if not runs:
        return "–"
    for records in runs:
        if [record.seed for record in records] != list(seeds.block("final", 0, about["episodes"])):
            raise ValueError(f"benchmarks/field/{name}: {which} is not of the {about['episodes']} episodes of seed 0")
    return said(np.stack([values(records, about) for records in runs]), about["figure"] == "success")


def said(figures: np.ndarray, rate: bool) -> str:
    """Figures ``[training seeds, episodes]`` in words."""
    mean, (low, high) = over_runs(figures, rate)
    scale, digits = (100, 1) if rate else (1, 3)
    number = f"**{scale * mean:.{digits}f}** ({scale * low:.{digits}f} to {scale * high:.{digits}f})"
    return f"{number}{' %' if rate else ''}, {len(figures)} seed{'s' * (len(figures) > 1)}"


def of_groups(about: dict[str, Any]) -> str:
    """A line for each group of tasks, with the optimizers of a study: of those tasks that nothing was chosen on."""
    study = ROOT / "studies" / about["study"]
    arms = [json.loads(line) for line in (study / "arms.jsonl").read_text(encoding="utf-8").splitlines()]
    by_weights = {arm["weights_sha256"]: arm for arm in arms}
    found: dict[tuple[str, str], dict[int, list[np.ndarray]]] = {}
    for test in sorted(study.glob("test/*/test.json")):
        arm = by_weights[json.loads(test.read_text(encoding="utf-8"))["weights_sha256"]]
        succeeded = values(read_records(test.with_name("episodes.jsonl")), {"task": arm["task"], "figure": "success"})
        (group,) = set(about["groups"]) & set(get_task(arm["task"]).groups)
        found.setdefault((arm["optimizer"], group), {}).setdefault(arm["seed"], []).append(succeeded)
    lines = []
    for group in about["groups"]:
        each = {optimizer: found[optimizer, group] for optimizer in about["optimizers"]}
        told = [
            f"{name} {said(np.stack([np.concatenate(tasks) for _, tasks in sorted(seeded.items())]), rate=True)}"
            for name, seeded in each.items()
        ]
        (tasks, *_) = {len(tasks) for seeded in each.values() for tasks in seeded.values()}
        lines.append(f"{group.rpartition('/')[2]} ({tasks} tasks): {'; '.join(told)}")
    return "<br>".join(lines)


def values(records: Sequence[EpisodeRecord], about: dict[str, Any]) -> np.ndarray:
    """The figure of every episode; one that broke off has the least."""
    if about["figure"] == "success":
        task = get_task(about["task"])
        return statistics.succeeded(records, task.kind, task.max_steps).astype(float)
    return np.array([record.metrics.get(about["figure"], 0.0) for record in records])


def over_runs(figures: np.ndarray, rate: bool) -> tuple[float, tuple[float, float]]:
    """Mean and interval of figures in [0, 1], ``[training seeds, episodes]``."""
    if len(figures) > 1:
        found = statistics.difference_curve(figures[..., None], np.zeros((*figures.shape, 1)))
        return float(found.difference[0]), (max(0.0, float(found.low[0])), float(found.high[0]))
    if rate:
        return float(figures.mean()), statistics.wilson(int(figures.sum()), figures.size)
    found_one = statistics.mean_with_interval(figures[0], 0.0, 1.0)
    return found_one["mean"], tuple(found_one["ci95"])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
