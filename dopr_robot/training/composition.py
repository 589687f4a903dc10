"""From names, files and ``key=value`` words to a configuration; ``dopr_robot/configs`` is composed by Hydra.

What can be checked without a policy and an optimizer is checked first: they are seconds of import.
"""

import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, fields
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from dopr_robot.errors import MissingExtraError, UnknownNameError, UserError, closest
from dopr_robot.settings import leaves, like, parse_words, plain, read_yaml, typed, typed_part, unknown_key
from dopr_robot.training.config import (
    CollectConfig,
    DataConfig,
    EvaluationConfig,
    RunConfig,
    TaskConfig,
    TrainingConfig,
    read_config,
)

LOG = logging.getLogger(__name__)
GROUPS = ("policy", "optimizer")
SECTIONS: dict[str, type[Any]] = {
    "data": DataConfig,
    "collect": CollectConfig,
    "training": TrainingConfig,
    "evaluation": EvaluationConfig,
}
TASK = [f"task.{each.name}" for each in fields(TaskConfig)]
USUAL = ["experiment", "policy", "policy.horizon", "optimizer", "optimizer.lr", "optimizer.weight_decay"]
"""Of the keys of policies and optimizers, those that a wrong key is compared with before any is loaded."""


def experiment_names() -> list[str]:
    """Names that ``dopr train`` takes."""
    files = resources.files("dopr_robot").joinpath("configs", "experiment").iterdir()
    return sorted(Path(file.name).stem for file in files if file.name.endswith(".yaml"))


def compose_config(experiment: str | None = None, overrides: Sequence[str] | Mapping[str, Any] = ()) -> RunConfig:
    """The configuration of an experiment, or of a YAML file, with ``key=value`` overrides, or a mapping of them.

    Where ``policy=NAME`` or ``optimizer=NAME`` takes the place of the one that the experiment or file has, settings of that one which the
    new one has too are kept, and a line of the log says so.

    >>> compose_config("pick_place", ["optimizer.lr=1e-3", "policy=flow_unet"]).optimizer["lr"]   # doctest: +SKIP
    0.001

    Raises:
        UnknownNameError: no such experiment, policy, optimizer or key; the message names the closest.
        UserError: a value of the wrong type or outside its range.
    """
    words: dict[str, Any] = dict(overrides if isinstance(overrides, Mapping) else parse_words(overrides))
    chosen = {}
    for group in GROUPS:
        for key in (f"{group}.name", group):
            if key in words:
                chosen[group] = str(plain(words.pop(key)))
    _check(words)
    if experiment is not None and experiment.endswith((".yaml", ".yml")):
        values = read_config(Path(experiment))
        check_sections(values)
        values |= {group: _switched(group, name, values.get(group), experiment) for group, name in chosen.items()}
        return _built(None, values, words)
    if experiment is not None and experiment not in experiment_names():
        raise UnknownNameError("experiment", experiment, experiment_names())
    values = {group: {"name": name} for group, name in chosen.items()}
    if experiment is not None:
        own = _ours(f"experiment/{experiment}")
        values = {
            group: _switched(group, name, {"name": _default_name(group, experiment), **own.get(group, {})}, experiment)
            for group, name in chosen.items()
        }
    config = _built(experiment, values, words)
    config.name = config.name or experiment
    return config


def config_from(values: Mapping[str, Any]) -> RunConfig:
    """The configuration that plain values give over the defaults of the policy and optimizer that they name.

    >>> config_from({"policy": "flow_unet", "optimizer": {"name": "adamw", "lr": 1e-3}}).optimizer["lr"]   # doctest: +SKIP
    0.001

    Raises:
        UnknownNameError, UserError: as :func:`compose_config`.
    """
    check_sections(values)
    return _built(None, values, {})


# Before policies and optimizers are loaded


def check_sections(values: Mapping[str, Any]) -> None:
    """Look at what can be checked without loading a policy or an optimizer: keys, and values of sections.

    Raises:
        UnknownNameError: a key that no configuration has.
        UserError: a value of another type.
    """
    _check(_by_key(values))


def _by_key(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of sections by dotted key; policy and optimizer as they are."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name not in SECTIONS:
            found[name] = value
        elif isinstance(value, Mapping):
            found |= {f"{name}.{key}": each for key, each in value.items()}
        elif plain(value) is not None:
            raise UserError(f"{name}={value}: a mapping {{key: value}} is expected")
    return found


def _check(values: Mapping[str, Any]) -> None:
    """Raise for a key that no configuration has, and for values of sections that are of another type."""
    known = [f"{section}.{each.name}" for section, schema in SECTIONS.items() for each in fields(schema)]
    known += [each.name for each in fields(RunConfig) if each.name not in SECTIONS]
    known += TASK
    _task(values)
    for key, value in values.items():
        section, _, name = key.partition(".")
        if section in GROUPS or key.startswith("task.options."):
            continue
        if key not in known:
            raise unknown_key(key, [*known, *USUAL])
        if section in SECTIONS:
            typed_part(SECTIONS[section], {name: value}, section)


def whole_keys(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by their whole keys, where they are named by the last part (``steps``) or nested (``policy={"network": {"dim": 64}}``).

    Raises:
        UnknownNameError: no key ends so.
        UserError: several do.
    """
    known = [f"{section}.{each.name}" for section, schema in SECTIONS.items() for each in fields(schema)] + USUAL
    own = [each.name for each in fields(RunConfig)]
    found = {}
    for key, value in leaves(settings):
        ends = [each for each in known if each.rpartition(".")[2] == key]
        if "." in key or key in own:
            found[key] = value
        elif len(ends) == 1:
            found[ends[0]] = value
        elif ends:
            raise UserError(f"{key} could be {' or '.join(ends)}: name the whole key")
        else:
            lasts = {each.rpartition(".")[2]: each for each in [*known, *own]}
            near = closest(key, lasts)
            raise UnknownNameError("config key", key, [*own, *known], lasts[near] if near else None)
    return found


# Composition


def _built(experiment: str | None, values: Mapping[str, Any], words: Mapping[str, Any]) -> RunConfig:
    """Our defaults, the experiment, values and words, each over the ones before, by the types of what they are for."""
    tree = _composed(experiment)
    task = _task(tree, values, words)
    if any(key == "data.store" or _of_task(key) for key in words) and not any(
        key.startswith("collect.") for key in words
    ):
        words = {**words, "collect.demonstrations": None}  # what is collected is of the store and the task before
    tree, values, words = ({k: v for k, v in layer.items() if not _of_task(k)} for layer in (tree, values, words))
    for group in GROUPS:
        given = values.get(group)
        name = given.get("name") if isinstance(given, Mapping) else given
        if name is not None and plain(name) is not None:
            tree[group] = _defaults(group, str(name))
    _set(tree, {**_flat(values, tree), **words})
    from dopr_robot.policies import POLICIES

    policy = tree["policy"]
    tree["policy"] = asdict(typed(POLICIES[str(policy["name"])].schema, policy, "policy"))
    from dopr_robot.optim import missing_package

    name = str(tree["optimizer"]["name"])
    if missing_package(name):
        raise MissingExtraError(f"optimizer={name}", "optimizers")
    standard = _defaults("optimizer", name)
    tree["optimizer"] = {
        key: value if value == standard[key] else _option(key, standard[key], value)
        for key, value in tree["optimizer"].items()
    }
    return typed(RunConfig, {**tree, "task": task})


def _of_task(key: str) -> bool:
    return key == "task" or key.startswith("task.")


def _task(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """The task's settings from layers of settings, nested or by dotted key, each over the ones before; a task that is named anew does not
    keep the options of the one before. Raises as :func:`~dopr_robot.settings.typed_part`."""
    found: dict[str, Any] = {}
    for layer in layers:
        told: dict[str, Any] = {}
        if "task" in layer:
            value = plain(layer["task"])
            told = value if isinstance(value, dict) else {"name": value}
        told = told | {key.partition(".")[2]: layer[key] for key in TASK if key in layer}
        if "name" in told:
            found = {}
        found |= typed_part(TaskConfig, told, "task")
        single = {
            key.removeprefix("task.options."): plain(layer[key]) for key in layer if key.startswith("task.options.")
        }
        if single:
            found["options"] = {**(found.get("options") or {}), **single}
    return found


def _option(key: str, standard: Any, value: Any) -> Any:
    """An optimizer's setting by the type of its default; the damping may be a schedule instead, which the optimizer itself looks at."""
    if key == "damping" and isinstance(plain(value), Mapping):
        return plain(value)
    return like(standard, value, f"optimizer.{key}")


def _composed(experiment: str | None) -> dict[str, Any]:
    """Our own YAML files as Hydra composes them, once: a study has hundreds of configurations."""
    return deepcopy(_composed_once(experiment))


@cache
def _composed_once(experiment: str | None) -> dict[str, Any]:
    from hydra import compose, initialize_config_module
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    store = ConfigStore.instance()
    for group in GROUPS:  # of the many that there are the named ones alone, since each costs time
        for name in {_default_name(group), _default_name(group, experiment)}:
            store.store(group=group, name=name, node=_defaults(group, name))
    for group, schema in SECTIONS.items():
        store.store(group=group, name="default", node=schema)
    with initialize_config_module("dopr_robot.configs", version_base="1.3"):
        composed = compose("train", [f"+experiment={experiment}"] if experiment else [])
    tree = OmegaConf.to_container(composed)
    assert isinstance(tree, dict)
    return tree  # type: ignore[return-value]


def _flat(values: Mapping[str, Any], beside: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted key, as deep as the configuration beside them is nested."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner, name = beside.get(key), f"{prefix}{key}"
        if not (isinstance(inner, Mapping) and inner):
            flat[name] = value
        elif isinstance(value, Mapping):
            flat |= _flat(value, inner, f"{name}.")
        elif name not in GROUPS and plain(value) is not None:  # a group's name alone was taken already
            raise UserError(f"{name}={value}: a mapping {{key: value}} is expected")
    return flat


def _set(tree: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Values over those of a tree; a mapping takes the place of the one before. Raises UnknownNameError for a key that it does not have."""
    known = [key for key, _ in leaves(tree)]
    for key, value in values.items():
        if key not in known:
            raise unknown_key(key, ["experiment", *GROUPS, *known])
        *path, last = key.split(".")
        node = tree
        for step in path:
            node = node[step]
        node[last] = value


def _defaults(group: str, name: str) -> dict[str, Any]:
    """All settings of a policy or an optimizer. Raises UnknownNameError."""
    from dopr_robot.optim import optimizer_names, optimizer_options
    from dopr_robot.policies import POLICIES

    if group == "policy":
        return deepcopy(POLICIES[name].default_config(name))
    if name not in optimizer_names():
        raise UnknownNameError("optimizer", name, optimizer_names())
    return {"name": name, **optimizer_options(name)}


# One policy or optimizer in another's place


def _switched(group: str, name: str, given: Any, where: str) -> dict[str, Any]:
    """Settings of a group under another name: those that both have, except of parts that are another's."""
    if not isinstance(given, Mapping):
        return {"name": name}
    before = str(given.get("name", _default_name(group)))
    if before == name:
        return {**given, "name": name}
    old, new = _defaults(group, before), _defaults(group, name)
    kept = _shared(given, old, new)
    standard, past, left = dict(leaves(new)), dict(leaves(old)), dict(leaves(kept))
    told = [
        f"{key}={plain(value)} ({name}'s own: {standard[key]})"
        for key, value in left.items()
        if plain(value) != standard.get(key)
    ]
    gone = [
        f"{key}={plain(value)}"
        for key, value in leaves(given)
        if key != "name" and key not in left and plain(value) != past.get(key)
    ]
    if told or gone:
        said = [f"keeps {', '.join(told)}"] * bool(told) + [f"has no place for {', '.join(gone)}"] * bool(gone)
        LOG.warning("%s=%s over %s %s", group, name, where, "; ".join(said))
    return {**kept, "name": name}


def _shared(given: Mapping[str, Any], old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in given.items():
        if key == "name" or key not in new:
            continue
        inner, past = new[key], old.get(key)
        if isinstance(inner, Mapping) and inner and isinstance(value, Mapping):
            past = past if isinstance(past, Mapping) else {}
            if str(value.get("name", past.get("name"))) == str(inner.get("name")):
                kept[key] = _shared(value, past, inner)
        else:
            kept[key] = value
    return kept


# Our own files


@cache
def _ours(file: str) -> dict[str, Any]:
    return read_yaml(Path(str(resources.files("dopr_robot"))) / "configs" / f"{file}.yaml", "configuration", ())


def _default_name(group: str, experiment: str | None = None) -> str:
    """The policy or optimizer in our defaults, or in an experiment's."""
    entries = [entry for entry in _ours("train")["defaults"] if isinstance(entry, Mapping)]
    if experiment:
        entries += _ours(f"experiment/{experiment}").get("defaults", [])
    names = {key.removeprefix("override ").lstrip("/"): str(name) for entry in entries for key, name in entry.items()}
    return names[group]
