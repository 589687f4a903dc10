"""A model's card: what the policy is, how often it succeeds, with intervals, and the calls that give these figures again."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dopr_robot import __version__
from dopr_robot.envs import get_task
from dopr_robot.envs.task import in_words
from dopr_robot.errors import UserError
from dopr_robot.evaluation.reports.provenance import evaluation_command, training_rows
from dopr_robot.files import shown
from dopr_robot.tables import interval
from dopr_robot.training import Run


def model_card(
    address: str,
    description: Mapping[str, Any],
    results: Mapping[str, Any] | None,
    run: Run | None = None,
    licence: str | None = None,
) -> str:
    """The card, in Markdown, with what the hub reads of it at its head.

    Args:
        address: of the model, ``hf://user/name``.
        description: its ``policy.json``.
        results: a ``results.json`` whose checkpoint is at ``address``; None: it was not evaluated.
        run: that it is of.
        licence: of the weights.
    """
    name = address.rpartition("/")[2]
    task = in_words(description.get("task"), description.get("task_options")) or "no task"
    lines = [f"# {name}", "", f"A policy `{description['policy']['name']}` for {task}, of dopr-robot {__version__}."]
    lines += _found(results) if results else ["", "It has not been evaluated."]
    observations = ", ".join(f"`{key}` {each['shape']}" for key, each in description["observations"].items())
    lines += [
        "",
        "## What it reads and does",
        "",
        f"It observes {description['To']} steps of {observations}, predicts {description['H']} actions "
        f"{description['action']['shape']} and executes {description['Ta']} of them.",
        "",
        "```python",
        "import dopr_robot",
        "",
        f'policy = dopr_robot.load_policy("{address}")',
        "```",
    ]
    lines += _trained(address, run) if run else []
    return (
        f"---\n{yaml.safe_dump(_head(name, description, results, licence), sort_keys=False)}---\n\n"
        + "\n".join(lines)
        + "\n"
    )


def _head(
    name: str, description: Mapping[str, Any], results: Mapping[str, Any] | None, licence: str | None
) -> dict[str, Any]:
    head: dict[str, Any] = {"library_name": "dopr-robot", "pipeline_tag": "robotics"}
    head["tags"] = ["robotics", "imitation-learning", "dopr-robot"]
    if licence:
        head["license"] = licence
    if results and results["curve"]:
        last = results["curve"][-1]
        metric = {"type": "success_rate", "name": f"success at {last['horizon']} steps", "value": last["success_rate"]}
        found = {
            "task": {"type": "robotics", "name": "Robotics"},
            "dataset": {"type": results["task"], "name": in_words(results["task"], results["env_options"])},
            "metrics": [metric],
        }
        head["model-index"] = [{"name": name, "results": [found]}]
    return head


def _found(results: Mapping[str, Any]) -> list[str]:
    """The figures, and the call that gives them."""
    checkpoint, perturbed = results["checkpoint"], results.get("perturbed") or []
    try:
        hz = get_task(results["task"]).control_hz
    except UserError:  # a task of a package that is not here
        hz = None
    kind = {"attain": "the task is done by that step", "sustain": "it has not failed by that step"}[results["kind"]]
    lines = [
        "",
        "## Success versus horizon",
        "",
        f"{in_words(results['task'], results['env_options'])}: {results['episodes']} episodes from initial states that nobody trained or "
        f"chose a checkpoint on (block {results['seed']}); success at a horizon: {kind}.",
        "",
        *_table(
            ["horizon", "seconds", "success", "95 % interval (Wilson)", "episodes"],
            [
                [
                    point["horizon"],
                    f"{point['horizon'] / hz:.1f}" if hz else "",
                    f"{point['success_rate']:.1%}",
                    interval(point["ci95"]),
                    f"{point['successes']} of {point['episodes']}",
                ]
                for point in results["curve"]
            ],
        ),
    ]
    if results["metrics"]:
        rows = [
            [name, f"{value['mean']:.3f}", interval(value["ci95"], "{:.3f}") if value["ci95"] else ""]
            for name, value in results["metrics"].items()
        ]
        lines += ["", *_table(["figure", "mean", "95 % interval"], rows)]
    if perturbed:
        rows = [
            [
                " ".join(f"{name}={value:g}" for name, value in arm["options"].items()),
                f"{arm['curve'][-1]['success_rate']:.1%}",
                interval(arm["curve"][-1]["ci95"]),
                f"{100 * arm['difference']['mean']:+.1f} ({interval([100 * bound for bound in arm['difference']['ci95']], '{:+.1f}')})",
            ]
            for arm in perturbed
        ]
        lines += ["", *_table(["under", "success", "95 % interval", "paired difference, points"], rows)]
    versions = ", ".join(f"{name} {version}" for name, version in (results.get("versions") or {}).items())
    return [
        *lines,
        "",
        "The same call gives the same episodes" + (f" (measured with {versions})" if versions else "") + ":",
        "",
        "```",
        str(evaluation_command(results)),
        "```",
        "",
        f"Checkpoint: step {checkpoint['step']}, SHA-256 of the weights `{checkpoint['sha256']}`. The records, one line an episode, are in "
        "`eval/episodes.jsonl`, and success versus horizon is computed from them.",
        "",
        "![success versus horizon](eval/horizon.png)",
    ]


def _trained(address: str, run: Run) -> list[str]:
    store = run.config.data.store
    own = {"run": "", "trained by": ""}
    rows = [[what, value] for what, value in training_rows(run) if what not in own]
    if store:  # where it lay is nobody's business
        rows = [[what, value.replace(shown(store), Path(store).name)] for what, value in rows]
    folder = shlex.quote(address.rpartition("/")[2])
    return [
        "",
        "## How it was trained",
        "",
        *_table(["", ""], rows),
        "",
        "With the demonstrations at hand:",
        "",
        "```",
        f"dopr fetch {address.replace('hf://', 'hf://models/')} --out {folder}",
        f"dopr train {folder}/config.yaml data.store=" + shlex.quote(Path(store).name if store else "STORE"),
        "```",
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    def row(cells: Sequence[Any]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

    return [row(head), "|" + "---|" * len(head), *(row(each) for each in rows)]
