"""The study file."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import product
from typing import Any

from dopr_robot.envs import get_task
from dopr_robot.errors import UserError
from dopr_robot.settings import convert, leaves, to_yaml
from dopr_robot.study.naming import entry_name, file_name, label, settings
from dopr_robot.study.search import Candidate, Search, check_known, option_defaults
from dopr_robot.study.tasks import TaskEntry, Tune, each_task
from dopr_robot.training.config import RunConfig, TrainingConfig

COUNTS = ("steps", "warmup_steps", "validate_every", "rollout_every")
"""Settings of a training that shrink with its budget."""


@dataclass
class StudyEvaluation:
    """On how much figures are reported.

    Args:
        selection_episodes: from which hyperparameters and best checkpoints are chosen.
        test_episodes: on which figures are reported.
        best: whether each run's best checkpoint on selection states is tested too, beside its last.
    """

    selection_episodes: int = 50
    test_episodes: int = 200
    best: bool = True


@dataclass
class Study:
    """A study file, checked when made.

    Args:
        tasks: with a store each.
        tune: other tasks, on which alone hyperparameters are chosen; the study's tasks then see the chosen ones only.
        select_seeds: hyperparameters are chosen on the first so many of the seeds, and all seeds are run for the chosen ones only; None:
            on all.
        budgets: shares of ``training.steps`` at which figures are reported. Each is a training of its own, whose schedule, warm-up and
            looks shrink with it, and chooses hyperparameters of its own: the best rate of a short training is not that of a long one.
        choose_budget: the share at which hyperparameters are chosen for all budgets instead: cheap where it is small, and unfair to
            optimizers whose best rate depends on the length of training; None: each budget chooses its own.
        policies, optimizers: names, or mappings with ``name`` and options that differ from the defaults; ``label`` is what one is called
            in tables and records instead of its name and options.
        learning_rates: a list for all optimizers; or one for each (``{adamw: [...], muon: [...]}``, of equal length); or
            ``{budget: N, factor: F}``: N rates around each optimizer's default, a factor F apart.
        search: instead of ``learning_rates``: a space of several hyperparameters, see :class:`~dopr_robot.study.search.Search`.
        seeds: of initial weights, data order and noise.
        horizons: control steps, for tasks without their own; null: 4 equal ones up to each task's longest.
        data, training: settings of ``dopr train`` for all arms.
        evaluation: how many episodes.

    Raises:
        UserError: an empty list, a rate that is not positive, unequal budgets, two arms of one name.
    """

    tasks: list[TaskEntry] = field(default_factory=list)
    tune: Tune | None = None
    select_seeds: int | None = None
    budgets: list[float] = field(default_factory=lambda: [1.0])
    choose_budget: float | None = None
    policies: list[Any] = field(default_factory=list)
    optimizers: list[Any] = field(default_factory=list)
    learning_rates: Any = None
    search: Search | None = None
    seeds: list[int] = field(default_factory=lambda: [0])
    horizons: list[int] | None = None
    data: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    evaluation: StudyEvaluation = field(default_factory=StudyEvaluation)

    def __post_init__(self) -> None:
        if self.tune is not None:
            self.tune.tasks = each_task(self.tune.tasks)
        self.tasks = each_task(self.tasks, {get_task(entry.task).id for entry in self.tune.tasks} if self.tune else ())
        for name in ("tasks", "policies", "optimizers", "seeds", "budgets"):
            if not getattr(self, name):
                raise UserError(f"a study needs {name}: {name}=[...]")
        for name in ("selection_episodes", "test_episodes"):
            if getattr(self.evaluation, name) < 1:
                raise UserError(f"evaluation.{name}={getattr(self.evaluation, name)} has to be at least 1")
        for name in ("policies", "optimizers", "seeds", "budgets"):
            labels = [label(entry) for entry in getattr(self, name)]
            if len(set(labels)) < len(labels):
                raise UserError(f"{name} names one twice: {', '.join(labels)}")
        for name, entries in (("tasks", self.tasks), ("tune.tasks", self.tune.tasks if self.tune else [])):
            labels = [entry.label for entry in entries]
            if twice := [each for each in labels if labels.count(each) > 1]:
                raise UserError(
                    f"{name} names {twice[0]} twice: a variant tells entries of one task apart ({{variant: half}})"
                )
        for key in ("rollout_every", "validate_every"):
            self.training.setdefault(key, max(1, int(self.training.get("steps", TrainingConfig.steps)) // 4))
        self.training["rollout_episodes"] = self.evaluation.selection_episodes
        self.training.setdefault("threads", 1)  # the bits of a sum depend on the number of threads
        self.training.setdefault("device", "cpu")
        self._check_budgets()
        self._check_choosing()
        tried = {label(entry): len(self.candidates(entry)) for entry in self.optimizers}
        if len(set(tried.values())) > 1:
            raise UserError(
                f"some optimizers have more rates than others ({', '.join(f'{name}: {n}' for name, n in tried.items())}): a comparison is "
                "fair where each has as many; search.budget draws as many for each"
            )

    def _check_budgets(self) -> None:
        self.budgets = sorted(self.budgets)
        steps: dict[int, float] = {}
        for budget in self.choosing_budgets + self.budgets:
            if not 0 < budget <= 1:
                raise UserError(
                    f"a budget of {budget:g}: shares of training.steps={self.steps()} lie above 0 and up to 1"
                )
            if steps.setdefault(self.steps(budget), budget) != budget:
                raise UserError(
                    f"budgets {steps[self.steps(budget)]:g} and {budget:g} are both {self.steps(budget)} steps"
                )

    @property
    def choosing_budgets(self) -> list[float]:
        """At which hyperparameters are chosen."""
        return self.budgets if self.choose_budget is None else [self.choose_budget]

    def steps(self, budget: float = 1.0) -> int:
        """Of a training at a budget."""
        return int(self.training_at(budget)["steps"])

    def training_at(self, budget: float) -> dict[str, Any]:
        """The settings of ``training`` at a budget: what counts steps shrinks with it, and so the schedule keeps its shape."""
        whole = {name: self.training.get(name, getattr(TrainingConfig, name)) for name in COUNTS}
        return {**self.training, **{name: max(1, round(n * budget)) if n > 0 else n for name, n in whole.items()}}

    def _check_choosing(self) -> None:
        if self.search is not None:
            if self.learning_rates is not None:
                raise UserError("learning_rates and search: one of the two says what is tried")
            check_known(self.search.space, self.optimizers)
        if self.select_seeds is not None and not 1 <= self.select_seeds <= len(self.seeds):
            raise UserError(
                f"select_seeds={self.select_seeds} has to be from 1 to the number of seeds, {len(self.seeds)}"
            )
        if self.tune is None:
            return
        if not self.tune.tasks:
            raise UserError("tune has no tasks: tune: {tasks: [{task: PickPlace, store: data/pick_place.zarr}]}")
        if self.select_seeds is not None:
            raise UserError("tune.seeds says on which seeds is chosen: select_seeds is for a study without tune")
        own = {entry.label for entry in self.tasks}
        if both := [entry.label for entry in self.tune.tasks if entry.label in own]:
            raise UserError(
                f"tune.tasks has {both[0]}, a task of the study: what is chosen on a task says nothing new about it"
            )

    def candidates(self, optimizer: Any) -> list[Candidate]:
        """Hyperparameters that are tried for an optimizer, the least learning rate first."""
        if self.search is not None:
            return self.search.candidates(optimizer)
        return [{"lr": rate} for rate in self.rates(optimizer)]

    def rates(self, optimizer: Any) -> list[float]:
        """Learning rates that are tried for an optimizer."""
        name, given = entry_name(optimizer), self.learning_rates
        if isinstance(given, Mapping) and "budget" in given:
            factor = convert(given.get("factor", 3.0), float, "learning_rates.factor")
            budget = convert(given["budget"], int, "learning_rates.budget")
            centre = option_defaults(optimizer)["lr"]
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
        """Every arm from which hyperparameters are chosen, all of the first seed first."""
        tune = self.tune or Tune(self.tasks, self.seeds[: self.select_seeds])
        return [
            Arm(self, task, policy, optimizer, candidate, seed, budget)
            for seed, budget, task, policy, optimizer in product(
                tune.seeds or self.seeds, self.choosing_budgets, tune.tasks, self.policies, self.optimizers
            )
            for candidate in self.candidates(optimizer)
        ]

    def final_arms(self, chosen: Mapping[tuple[str, ...], Candidate]) -> list["Arm"]:
        """The arms of which figures are reported: every task and seed under the chosen hyperparameters, ``{arm.choice: candidate}``."""
        return [
            Arm(self, task, policy, optimizer, chosen[self.choice(task, policy, optimizer, budget)], seed, budget)
            for budget, task, policy, optimizer, seed in product(
                self.budgets, self.tasks, self.policies, self.optimizers, self.seeds
            )
        ]

    def choice(self, task: TaskEntry, policy: Any, optimizer: Any, budget: float = 1.0) -> tuple[str, ...]:
        """For what hyperparameters are chosen together: a policy and an optimizer, on one task, or on all of those of ``tune``, at one
        budget."""
        own = self.choosing_budgets[0] if self.choose_budget is not None else budget
        return (*([] if self.tune else [task.label]), label(policy), label(optimizer), f"{own:g}")

    def entries(self) -> Iterator[TaskEntry]:
        """Every task with a store, those of ``tune`` first."""
        yield from self.tune.tasks if self.tune else ()
        yield from self.tasks

    @cached_property
    def _configs(self) -> dict[str, tuple[RunConfig, dict[str, Any]]]:
        """What :attr:`Arm.config` has made."""
        return {}

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
    candidate: Candidate
    seed: int
    budget: float = 1.0

    @property
    def learning_rate(self) -> float:
        return float(self.candidate["lr"])

    @property
    def hyperparameters(self) -> Candidate:
        """Those that were searched for beside the learning rate."""
        return {name: value for name, value in self.candidate.items() if name != "lr"}

    @property
    def choice(self) -> tuple[str, ...]:
        """With which others hyperparameters are chosen for it, see :meth:`Study.choice`."""
        return self.study.choice(self.entry, self.policy_entry, self.optimizer_entry, self.budget)

    @property
    def key(self) -> dict[str, Any]:
        """What distinguishes it, as in ``arms.jsonl``."""
        return {
            "task": self.entry.label,
            "policy": label(self.policy_entry),
            "optimizer": label(self.optimizer_entry),
            "learning_rate": self.learning_rate,
            **({"hyperparameters": self.hyperparameters} if self.hyperparameters else {}),
            **({"budget": self.budget} if self.budget != 1 else {}),  # what had none was the whole training
            "seed": self.seed,
        }

    @property
    def name(self) -> str:
        """Of its folders."""
        task = self.entry.label.rsplit("/", 1)[-1]
        more = "".join(f"-{name}={value}" for name, value in self.hyperparameters.items())
        optimizer = f"{label(self.optimizer_entry)}-lr{self.learning_rate:g}{more}"
        optimizer += f"-budget{self.budget:g}" if self.budget != 1 else ""
        return file_name(f"{task}-{label(self.policy_entry)}-{optimizer}-seed{self.seed}")

    @cached_property
    def config(self) -> RunConfig:
        """The run's configuration. Raises UserError where the study's settings do not make one."""
        config = deepcopy(self._of_all_seeds[0])
        config.name, config.training.seed = self.name, self.seed
        return config

    @property
    def _of_all_seeds(self) -> tuple[RunConfig, dict[str, Any]]:
        """The configuration that differs from seed to seed in seed and name alone, and its settings; made once for all: a study has a
        thousand arms."""
        told = [asdict(self.entry), self.policy_entry, self.optimizer_entry, self.candidate, self.budget]
        key = json.dumps(told, default=str)
        made = self.study._configs
        if key not in made:
            made[key] = (config := self._made()), _flat(config)
        return made[key]

    def _made(self) -> RunConfig:
        from dopr_robot.training import config_from

        study = self.study
        return config_from(
            {
                "name": self.name,
                "task": {"name": get_task(self.entry.task).id, "options": self.entry.options},
                "data": {**study.data, **self._demonstrations()},
                "policy": settings(self.policy_entry),
                "optimizer": {**settings(self.optimizer_entry), **self.candidate},
                "training": {**study.training_at(self.budget), "seed": self.seed},
            }
        )

    def _demonstrations(self) -> dict[str, Any]:
        entry = self.entry
        used = {} if entry.episodes is None else {"max_episodes": entry.episodes}
        return {"store": entry.store, "observations": entry.observations, **used}

    def config_sha256(self) -> str:
        """Of everything that decides the run, by which records without :meth:`decides` are known."""
        decides = _decisive(self.config)
        if not decides["task"]["options"]:  # as it was before there were any
            decides["task"] = decides["task"]["name"]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    def decides(self) -> dict[str, Any]:
        """Every setting by its dotted name, as it stands in the arm's record."""
        return {**self._of_all_seeds[1], "name": self.name, "training.seed": self.seed}

    def changed(self, then: Mapping[str, Any]) -> list[str]:
        """Settings that are not what :meth:`decides` said then, in words. One that there was not yet counts as its default, so that a
        study goes on under a later version."""
        from dopr_robot.training import config_from

        now = self.decides()
        if now == then:  # before the defaults are composed: a study has a thousand arms
            return []
        names = {"policy": entry_name(self.policy_entry), "optimizer": entry_name(self.optimizer_entry)}
        defaults = _flat(config_from({**names, "task": {"name": get_task(self.entry.task).id}}))
        gone = object()
        return [
            f"{name} is {now.get(name, 'no setting any more')}, and was {then.get(name, defaults.get(name))}"
            for name in sorted({*now, *then})
            if then.get(name, defaults.get(name, gone)) != now.get(name, gone)
        ]


def _flat(config: RunConfig) -> dict[str, Any]:
    return dict(leaves(json.loads(json.dumps(_decisive(config)))))


def _decisive(config: RunConfig) -> dict[str, Any]:
    """A configuration without how its store would be made: a study's are there."""
    return {name: value for name, value in asdict(config).items() if name != "collect"}
