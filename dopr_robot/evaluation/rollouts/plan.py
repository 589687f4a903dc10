"""What is evaluated."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from gymnasium.vector import VectorEnv

from dopr_robot import seeds
from dopr_robot.envs import Task, TaskSpec, list_tasks
from dopr_robot.envs.contract import check_start
from dopr_robot.errors import UserError
from dopr_robot.evaluation.rollouts.episode import INFERENCE_BATCH, Job
from dopr_robot.evaluation.rollouts.group import ActingPolicy, Observer, check_fit
from dopr_robot.evaluation.rollouts.horizons import check_horizons
from dopr_robot.evaluation.rollouts.rollout import Rollout
from dopr_robot.policies import Policy

_CHECKED: set[tuple[str, str, int]] = set()
"""Tasks in processes of their own, with their options and first seed, that were found to keep the contract."""


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated; everything that decides the records, checked when made.

    Args:
        policy: who acts.
        task: a task, or a name that :func:`dopr_robot.envs.get_task` knows; becomes the task with all its options.
        episodes: how many initial states.
        seed: block of initial states inside the range of ``use``.
        horizons: control steps at which success is reported; None: 8 equal ones up to the task's longest. Rollouts stop at the
            largest. Beyond the task's longest, episodes are made longer where the task allows it (``TaskSpec.extensible``).
        use: "final", or "selection" for choosing a checkpoint.
        checkpoint: the checkpoint's folder, for ``results.json``; None for a policy that has none.
        env_options: of the task, over its own; become all that it has.

    The cameras that are made are those that the policy reads, at the size at which it reads them.

    Raises:
        UserError: an unknown task, option or camera, a horizon beyond the task's longest, a policy that does not fit, a task that
            ignores its seed.
    """

    policy: ActingPolicy
    task: Task | str
    episodes: int = 100
    seed: int = 0
    horizons: Sequence[int] | None = None
    use: str = "final"
    checkpoint: Path | None = None
    env_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise UserError(f"episodes={self.episodes} has to be at least 1")
        task = Task(self.task) if isinstance(self.task, str) else self.task
        task = task.given(self.env_options).seen_by(self.policy.observations)
        object.__setattr__(self, "task", task)
        object.__setattr__(self, "env_options", task.varied)
        object.__setattr__(self, "horizons", check_horizons(self.horizons, self.spec.max_steps, self.spec.extensible))
        self._check(self.jobs[0].seed)

    def _check(self, seed: int) -> None:
        """Whether policy and task fit, and the seed decides the start. What takes a new interpreter is checked once: a training rolls out
        many times, and its groups check the fit each time."""
        about = (self.spec.entry_point, str(self.task), seed)
        if about in _CHECKED:
            return
        env = self.make_env(1)
        try:
            check_fit(self.policy, env)
            check_start(env, self.spec, seed)
        finally:
            env.close()
        if self.spec.in_workers:
            _CHECKED.add(about)

    @cached_property
    def spec(self) -> TaskSpec:
        """The task."""
        assert isinstance(self.task, Task)
        return self.task.spec

    @property
    def horizon(self) -> int:
        """The longest horizon asked for."""
        assert self.horizons
        return max(self.horizons)

    @property
    def length(self) -> int | None:
        """Of the task, where this evaluation sets it."""
        return self.env_options.get(self.spec.length) if self.spec.length else None

    def at_length(self, length: int) -> "Evaluation":
        """The same evaluation of the task at another length.

        Raises:
            UserError: the task has no length, or not this one.
        """
        name = self.spec.length
        if name is None:
            known = ", ".join(spec.name for spec in list_tasks() if spec.length) or "none is registered"
            raise UserError(f"{self.spec.id} has no length to vary (tasks that have one: {known})")
        if length < 1:
            raise UserError(f"length {length} of {self.spec.id} has to be at least 1")
        return replace(self, env_options={name: length})

    @property
    def jobs(self) -> list[Job]:
        """Episodes and their seeds."""
        return [Job(i, seed) for i, seed in enumerate(seeds.block(self.use, self.seed, self.episodes))]

    def make_env(self, num_envs: int, cores: int | None = None, **kwargs: Any) -> VectorEnv:
        """``num_envs`` copies of the task, which may use so many cores."""
        assert isinstance(self.task, Task)
        processes = {"workers": cores} if cores and self.spec.in_workers else {}
        return self.task.make_vec(num_envs, **processes, **self.spec.lasting(self.horizon), **kwargs)

    @property
    def copies(self) -> int:
        """Of the task in one group of a rollout where nobody says how many."""
        assert isinstance(self.task, Task)
        return min(self.task.copies_per_core or INFERENCE_BATCH, INFERENCE_BATCH)

    def rollout(self, observer: Observer | None = None, **kwargs: Any) -> Rollout:
        """Rollouts as they are evaluated; ``kwargs`` go to the environment."""
        return Rollout(
            self.policy,
            lambda num_envs, cores: self.make_env(num_envs, cores, **kwargs),
            self.spec.kind,
            self.horizon,
            self.spec.metrics,
            self.spec.stages,
            observer,
            self.copies,
            tuple(self.horizons or ()) if self.spec.reward else (),
        )

    def identity(self) -> dict[str, Any]:
        """What has to agree for two sets of records to be of one evaluation."""
        return {
            "task": self.spec.id,
            "kind": self.spec.kind,
            "checkpoint": describe_checkpoint(self.checkpoint),
            "seed": self.seed,
            "use": self.use,
            "horizons": list(self.horizons or []),
            "env_options": dict(self.env_options),
            "acting": _acting(self.policy),
        }


def _acting(policy: ActingPolicy) -> dict[str, Any] | None:
    """How the policy's plans become actions; None for a policy that is not ours."""
    if not isinstance(policy, Policy):
        return None
    config = asdict(policy.acting.config)
    del config["threads"]  # rollouts have one, whatever it says
    return config | policy.changed


def describe_checkpoint(folder: Path | None) -> dict[str, Any] | None:
    """``{path, step, sha256}`` of a checkpoint folder, the checksum over the weights."""
    if folder is None:
        return None
    folder = folder.resolve() if folder.is_symlink() else folder
    digest = hashlib.sha256((folder / "policy.safetensors").read_bytes()).hexdigest()
    return {"path": str(folder), "step": int(folder.name) if folder.name.isdigit() else None, "sha256": digest}
