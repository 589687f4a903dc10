"""The study file."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from dopr_robot.envs import TaskSpec, get_task
from dopr_robot.envs.task import words
from dopr_robot.errors import UnknownNameError, UserError
from dopr_robot.settings import convert, leaves, parse_words, plain, read_yaml, to_yaml, typed, typed_part
from dopr_robot.training.composition import check_sections
from dopr_robot.training.config import DataConfig, RunConfig, TrainingConfig

LONGEST_NAME = 120
"""Characters of a run's folder; file systems end at 255 bytes, and what is written beside it has a longer name."""


@dataclass
class TaskEntry:
    """A task of a study: its name, its demonstrations, its options (null: those of the store), which of the store's keys are observed
    (null: as the store says), and horizons in control steps of its own."""

    task: str = ""
    store: str = ""
    options: dict[str, Any] | None = None
    observations: list[str] | None = None
    horizons: list[int] | None = None

    @property
    def label(self) -> str:
        """What the task is called in the study's tables: two entries may be one task under two options."""
        return " ".join([self.task, *words(self.options or {})])


def task_of(label: str) -> TaskSpec:
    """The task of an entry's label."""
    return get_task(label.split(" ")[0])


@dataclass
class StudyEvaluation:
    """Episodes from which a learning rate is chosen, and on which figures are reported."""

    selection_episodes: int = 50
    test_episodes: int = 200


@dataclass
class Study:
    """A study file, checked when made.

    Args:
        tasks: with a store each.
        policies, optimizers: names, or mappings with ``name`` and options that differ from the defaults.
        learning_rates: a list for all optimizers; or one for each (``{adamw: [...], muon: [...]}``, of equal length); or
            ``{budget: N, factor: F}``: N rates around each optimizer's default, a factor F apart.
        seeds: of initial weights, data order and noise.
        horizons: control steps, for tasks without their own; null: 4 equal ones up to each task's longest.
        data, training: settings of ``dopr train`` for all arms.
        evaluation: how many episodes.

    Raises:
        UserError: an empty list, a rate that is not positive, unequal budgets, two arms of one name.
    """

    tasks: list[TaskEntry] = field(default_factory=list)
    policies: list[Any] = field(default_factory=list)
    optimizers: list[Any] = field(default_factory=list)
    learning_rates: Any = None
    seeds: list[int] = field(default_factory=lambda: [0])
    horizons: list[int] | None = None
    data: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    evaluation: StudyEvaluation = field(default_factory=StudyEvaluation)

    def __post_init__(self) -> None:
        for name in ("tasks", "policies", "optimizers", "seeds"):
            if not getattr(self, name):
                raise UserError(f"a study needs {name}: {name}=[...]")
        for name in ("selection_episodes", "test_episodes"):
            if getattr(self.evaluation, name) < 1:
                raise UserError(f"evaluation.{name}={getattr(self.evaluation, name)} has to be at least 1")
        for name in ("policies", "optimizers", "seeds"):
            labels = [label(entry) for entry in getattr(self, name)]
            if len(set(labels)) < len(labels):
                raise UserError(f"{name} names one twice: {', '.join(labels)}")
        for key in ("rollout_every", "validate_every"):
            self.training.setdefault(key, max(1, int(self.training.get("steps", TrainingConfig.steps)) // 4))
        self.training["rollout_episodes"] = self.evaluation.selection_episodes
        self.training.setdefault("threads", 1)  # the bits of a sum depend on the number of threads
        self.training.setdefault("device", "cpu")
        rates = [self.rates(entry) for entry in self.optimizers]
        if len({len(each) for each in rates}) > 1:
            raise UserError(
                "learning_rates gives some optimizers more rates than others: a comparison is fair where each has as many"
            )

    def rates(self, optimizer: Any) -> list[float]:
        """Learning rates that are tried for an optimizer."""
        name, given = entry_name(optimizer), self.learning_rates
        if isinstance(given, Mapping) and "budget" in given:
            from dopr_robot.optim import optimizer_options

            factor = convert(given.get("factor", 3.0), float, "learning_rates.factor")
            budget = convert(given["budget"], int, "learning_rates.budget")
            centre = optimizer_options(name)["lr"]
            rates = [float(f"{centre * factor ** (i - (budget - 1) / 2):.3g}") for i in range(budget)]
        elif isinstance(given, Mapping):
            if label(optimizer) not in given and name not in given:
                raise UserError(f"learning_rates has none for {label(optimizer)}: it has {', '.join(map(str, given))}")
            rates = convert(given.get(label(optimizer), given.get(name)), list[float], f"learning_rates.{name}")
        elif isinstance(given, Sequence) and not isinstance(given, str):
            rates = convert(given, list[float], "learning_rates")
        else:
            raise UserError("a study needs learning_rates: [1e-4, 3e-4, 1e-3], {adamw: [...]}, or {budget: 3}")
        if not rates or min(rates) <= 0 or len(set(rates)) < len(rates):
            raise UserError(f"learning_rates for {label(optimizer)} are {rates}: positive ones, each once")
        return sorted(rates)

    def arms(self) -> list["Arm"]:
        """Every arm, all of the first seed first."""
        return [
            Arm(self, task, policy, optimizer, rate, seed)
            for seed, task, policy, optimizer in product(self.seeds, self.tasks, self.policies, self.optimizers)
            for rate in self.rates(optimizer)
        ]

    def to_yaml(self) -> str:
        """Every setting, as ``study.yaml`` has it."""
        return to_yaml(asdict(self))


@dataclass(frozen=True)
class Arm:
    """One training run of a study."""

    study: Study
    entry: TaskEntry
    policy_entry: Any
    optimizer_entry: Any
    learning_rate: float
    seed: int

    @property
    def key(self) -> dict[str, Any]:
        """What distinguishes it, as in ``arms.jsonl``."""
        return {
            "task": self.entry.label,
            "policy": label(self.policy_entry),
            "optimizer": label(self.optimizer_entry),
            "learning_rate": self.learning_rate,
            "seed": self.seed,
        }

    @property
    def name(self) -> str:
        """Of its folders."""
        task = self.entry.label.rsplit("/", 1)[-1]
        return file_name(
            f"{task}-{label(self.policy_entry)}-{label(self.optimizer_entry)}-lr{self.learning_rate:g}-seed{self.seed}"
        )

    @cached_property
    def config(self) -> RunConfig:
        """The run's configuration. Raises UserError where the study's settings do not make one."""
        from dopr_robot.training import config_from

        study = self.study
        optimizer = (
            self.optimizer_entry if isinstance(self.optimizer_entry, Mapping) else {"name": self.optimizer_entry}
        )
        return config_from(
            {
                "name": self.name,
                "task": {"name": get_task(self.entry.task).id, "options": self.entry.options},
                "data": {**study.data, "store": self.entry.store, "observations": self.entry.observations},
                "policy": self.policy_entry,
                "optimizer": {**optimizer, "lr": self.learning_rate},
                "training": {**study.training, "seed": self.seed},
            }
        )

    def config_sha256(self) -> str:
        """Of everything that decides the run."""
        decides = asdict(self.config)
        if not decides["task"]["options"]:  # as it was before there were any
            decides["task"] = decides["task"]["name"]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def entry_name(entry: Any) -> str:
    """The registered name in an entry of ``policies`` or ``optimizers``."""
    if isinstance(entry, Mapping):
        if "name" not in entry:
            raise UserError(f"{dict(entry)} has no name: {{name: adamw, weight_decay: 0.01}}")
        return str(entry["name"])
    return str(entry)


def label(entry: Any) -> str:
    """An entry in words: its name, and the options that it sets.

    >>> label({"name": "dopr_adamw", "damping": 0.3})
    'dopr_adamw damping=0.3'
    """
    if not isinstance(entry, Mapping):
        return str(entry)
    options = [f"{key}={value}" for key, value in leaves(entry) if key != "name"]
    return " ".join([entry_name(entry), *options])


def file_name(text: str) -> str:
    """A text as the name of a file on any system; a long one is cut and told from the others by a checksum.

    >>> file_name("gym_pusht/PushT-v0 dim=64")
    'gym_pusht-PushT-v0-dim=64'
    """
    name = re.sub(r"[^A-Za-z0-9_.+=-]+", "-", text)
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def short_labels(entries: Sequence[Any]) -> dict[str, str]:
    """What entries are called where people read, by their :func:`label`: the name, and the options that tell those of one name apart.

    >>> short_labels(["adamw", {"name": "dopr_adamw", "damping": 0.1, "rank": 8}, {"name": "dopr_adamw", "damping": 0.3, "rank": 8}])
    {'adamw': 'adamw', 'dopr_adamw damping=0.1 rank=8': 'dopr_adamw damping=0.1', 'dopr_adamw damping=0.3 rank=8': 'dopr_adamw damping=0.3'}
    """
    options = {label(entry): dict(leaves(entry)) if isinstance(entry, Mapping) else {} for entry in entries}
    names = {label(entry): entry_name(entry) for entry in entries}
    short = {}
    for whole, own in options.items():
        alike = [options[other] for other, name in names.items() if name == names[whole]]
        telling = [f"{key}={value}" for key, value in own.items() if any(other.get(key) != value for other in alike)]
        short[whole] = " ".join([names[whole], *telling])
    return short


def load_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study file, with ``key=value`` over it (``training.steps=100 seeds=[0,1]``).

    Raises:
        UnknownNameError: a key that a study does not have; the message names the closest.
        UserError: not a file, not YAML, or values that make no study.
    """
    values = read_yaml(path, "study", [each.name for each in fields(Study)])
    for key, word in parse_words(overrides).items():
        _set(values, key.split("."), word)
    values = {key: value for key, value in values.items() if plain(value) is not None}
    _check_keys(values)
    for name, schema in (("data", DataConfig), ("training", TrainingConfig)):
        if isinstance(given := values.get(name), Mapping):
            check_sections({name: given})
            values[name] = typed_part(schema, given, name)
    return typed(Study, values)


def _set(values: dict[str, Any], path: Sequence[str], word: Any) -> None:
    for step in path[:-1]:
        if not isinstance(values.get(step), dict):
            values[step] = {}
        values = values[step]
    values[path[-1]] = word


def _check_keys(values: Mapping[str, Any]) -> None:
    """Keys of the study's own."""
    _known(values, Study, "study key")
    tasks = plain(values.get("tasks"))
    for task in tasks if isinstance(tasks, list) else []:
        if not isinstance(task, Mapping) or not {"task", "store"} <= task.keys():
            raise UserError(f"tasks: {task!r} has to be of the form {{task: PickPlace, store: data/pick_place.zarr}}")
        _known(task, TaskEntry, "key of a task")
    if isinstance(values.get("evaluation"), Mapping):
        _known(values["evaluation"], StudyEvaluation, "key of evaluation")


def _known(values: Mapping[str, Any], schema: Any, kind: str) -> None:
    known = [each.name for each in fields(schema)]
    for key in values:
        if key not in known:
            raise UnknownNameError(kind, str(key), known)
