"""What a report says of where its figures come from: the run, how it was trained, on which demonstrations, and the call."""

import shlex
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from dopr_robot.collection.replay import collection
from dopr_robot.datasets import Store
from dopr_robot.envs.task import words
from dopr_robot.errors import DoprError
from dopr_robot.files import shown
from dopr_robot.training import Run, RunConfig


def flat(config: RunConfig) -> dict[str, Any]:
    """Settings by dotted key."""

    def leaves(value: Any, prefix: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            return {prefix: value}
        return {key: leaf for name, inner in value.items() for key, leaf in leaves(inner, f"{prefix}.{name}").items()}

    return {key[1:]: value for key, value in leaves(asdict(config), "").items()}


def training_rows(run: Run | None) -> list[tuple[str, str]]:
    """Name and value of what a run is: policy, optimizer, rate, training seed, length, demonstrations. Empty without a run folder."""
    if run is None:
        return []
    try:
        config = run.config
    except (DoprError, OSError, ValueError):  # the figures do not depend on it
        return [("run", shown(run.folder))]
    options, optimizer = config.training, config.optimizer
    rest = {key: value for key, value in optimizer.items() if key not in ("name", "lr", "conv") and value is not None}
    return [
        ("run", shown(run.folder)),
        ("policy", str(config.policy.get("name"))),
        ("optimizer", f"{optimizer.get('name')}: " + ", ".join(f"{key} {_text(value)}" for key, value in rest.items())),
        ("learning rate", f"{_text(optimizer.get('lr'))}, {options.schedule}, warm-up {options.warmup_steps:,} steps"),
        ("training seed", str(options.seed)),
        (
            "training",
            f"{options.steps:,} steps of {options.batch_size} windows, precision {options.precision.replace('no', 'fp32')}",
        ),
        ("demonstrations", demonstrations(config)),
        ("trained by", f"dopr train {shlex.quote(shown(run.folder / 'config.yaml'))}"),
    ]


def demonstrations(config: RunConfig) -> str:
    """The store that a run learned from: path, episodes used, and the noise under which they were collected."""
    data = config.data
    if data.store is None:
        return "not named"
    used = f", the first {data.max_episodes:,} used" if data.max_episodes else ""
    held_out = f", {data.validation_fraction:.0%} held out" if data.validation_fraction else ""
    return f"{store_text(data.store)}{used}{held_out}"


def store_text(path: str) -> str:
    """A store in a line: path and, where it is there, its episodes and the noise under which they were collected."""
    try:
        store = Store.open(path)
        collected = collection(store.attributes)
    except DoprError:
        return f"{shown(path)} (not there now)"
    noise = f", noise {collected['noise']:g}" if collected.get("noise") is not None else ""
    return f"{shown(path)}: {store.num_episodes:,} episodes{noise}"


def evaluation_command(results: Mapping[str, Any]) -> str | None:
    """The call that gives the records of a ``results.json``; None where the policy came from no checkpoint."""
    checkpoint = results.get("checkpoint")
    if not checkpoint:
        return None
    call = ["dopr", "eval", shown(checkpoint["path"]), "--task", results["task"]]
    call += ["--episodes", str(results["episodes_asked"]), "--seed", str(results["seed"])]
    call += ["--horizons", ",".join(map(str, results["horizons"]))]
    for option in words(results.get("env_options") or {}):
        call += ["--option", option]
    if results.get("lengths"):
        call += ["--lengths", ",".join(str(each["length"]) for each in results["lengths"])]
    strengths: dict[str, list[str]] = {}
    for arm in results.get("perturbed") or []:
        for name, value in arm["options"].items():
            strengths.setdefault(name, []).append(str(value))
    for name, values in strengths.items():
        call += ["--perturb", f"{name}={','.join(dict.fromkeys(values))}"]
    return shlex.join(call)


def metrics_of(run: Run | None) -> list[dict[str, Any]]:
    """Lines of a run's ``metrics.jsonl``; none where it can not be read."""
    try:
        return run.metrics if run is not None else []
    except (DoprError, OSError, ValueError):
        return []


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
