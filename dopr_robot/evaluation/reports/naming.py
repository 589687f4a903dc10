"""What the methods of a comparison are called: the name that a person would say, and then only what distinguishes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dopr_robot.errors import UserError
from dopr_robot.evaluation.reports.provenance import flat
from dopr_robot.training import Run

NAMES = ("policy.name", "optimizer.name")
Settings = dict[str, Any]


def method_labels(paths: Sequence[Path], labels: Sequence[str] | None = None) -> list[tuple[str, int | None]]:
    """Label and training seed of each run: runs whose configurations agree but for seed and name get one label.

    A label is the policy's or the optimizer's name, whichever differs between the runs, with those settings that differ between runs of
    that name: ``dopr_adamw``, ``adamw lr=0.001``. A folder without a configuration is labelled by its own name.

    Args:
        paths: run, checkpoint or evaluation folders.
        labels: to use instead, one a method in the order in which they are named, or one a run.

    Raises:
        UserError: as many labels as neither, or one given to two methods.
    """
    configs = [settings(path) for path in paths]
    seeds = [None if config is None else config.pop("training.seed", None) for config in configs]
    found = [
        path.name if config is None else name
        for path, config, name in zip(paths, configs, _names(configs), strict=True)
    ]
    if len(set(found)) == 1 or len(set(zip(found, seeds, strict=True))) < len(found):
        found = [path.name for path in paths]
    if labels is not None:
        found = _given(found, labels)
    return list(zip(found, seeds, strict=True))


def settings(path: Path) -> Settings | None:
    """A run's configuration, flat, without what does not make a method; None where the path is of no run."""
    run = Run.of(path)
    if run is None:
        return None
    found = flat(run.config)
    return {key: value for key, value in found.items() if key != "name" and not key.startswith("evaluation.")}


def differing(configs: Sequence[Settings | None]) -> list[str]:
    """The settings in which these configurations differ, the training seed apart."""
    known = [config for config in configs if config is not None]
    keys = dict.fromkeys(key for config in known for key in config if key != "training.seed")
    return [key for key in keys if any(config.get(key) != known[0].get(key) for config in known)]


def unique_ends(keys: Sequence[str]) -> dict[str, str]:
    """Each dotted key by its last parts, as few as tell it from the others.

    >>> unique_ends(["optimizer.lr", "policy.network.dim", "policy.objective.dim"])
    {'optimizer.lr': 'lr', 'policy.network.dim': 'network.dim', 'policy.objective.dim': 'objective.dim'}
    """
    short = {}
    for key in keys:
        parts = key.split(".")
        ends = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        short[key] = next(end for end in ends if sum(f".{other}".endswith(f".{end}") for other in keys) == 1)
    return short


def value_text(value: Any) -> str:
    """A setting's value in a label."""
    return (
        f"{value:g}"
        if isinstance(value, float)
        else "none"
        if value is None
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
    )


def _names(configs: Sequence[Settings | None]) -> list[str]:
    varying = differing(configs)
    said = [key for key in NAMES if key in varying]
    if not said:  # one policy under one optimizer: whichever has the settings that differ
        said = ["policy.name" if any(key.startswith("policy.") for key in varying) else "optimizer.name"]
    bases = [" ".join(str(config.get(key)) for key in said) if config else "" for config in configs]
    names = []
    for config, base in zip(configs, bases, strict=True):
        alike = [other for other, name in zip(configs, bases, strict=True) if name == base]
        keys = differing(alike)
        ends = unique_ends(keys)
        names.append(" ".join([base, *(f"{ends[key]}={value_text((config or {}).get(key))}" for key in keys)]))
    return names


def _given(found: Sequence[str], labels: Sequence[str]) -> list[str]:
    methods = list(dict.fromkeys(found))
    if len(labels) == len(methods):
        if len(set(labels)) < len(labels):
            raise UserError(f"--labels {','.join(labels)} names two methods alike")
        return [labels[methods.index(name)] for name in found]
    if len(labels) == len(found):
        return list(labels)
    raise UserError(
        f"--labels names {len(labels)}, and there are {len(methods)} methods ({'; '.join(methods)}) of {len(found)} runs: "
        "one a method or one a run"
    )


def details(configs: Mapping[str, Settings | None]) -> dict[str, list[str]]:
    """The table of what distinguishes methods: ``{setting: [a value for each method]}``, "" where one has no such setting."""
    keys = differing(list(configs.values()))
    return {
        key: [value_text(config[key]) if config is not None and key in config else "" for config in configs.values()]
        for key in keys
    }
