"""A group of copies of a task, stepped together by one thread."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import VectorEnv

from dopr_robot.envs.faults import describe
from dopr_robot.errors import UserError
from dopr_robot.evaluation.rollouts.episode import INFERENCE_BATCH, Episode, Job, Queue
from dopr_robot.evaluation.rollouts.records import EpisodeRecord


class ActingPolicy(Protocol):
    """What a rollout needs of a policy; :func:`dopr_robot.policies.load_policy` gives one."""

    @property
    def n_obs_steps(self) -> int: ...
    @property
    def n_action_steps(self) -> int: ...
    @property
    def observations(self) -> Mapping[str, tuple[int, ...]]: ...
    @property
    def action_dim(self) -> int: ...

    def act(self, observation: Mapping[str, torch.Tensor], generator: list[torch.Generator]) -> torch.Tensor:
        """Actions ``[B, Ta, A]`` for observations ``{key: [B, To, ...]}``; row b's noise comes from the b-th generator alone.

        Where the policy has ``remembers`` and it is true, it is also given ``memory``: B dicts, each empty at its episode's beginning
        and the same one at all its calls.
        """
        ...


class Observer(Protocol):
    """Sees what happens in a group of copies: for video, and for measures along the rollout."""

    def __call__(
        self,
        env: VectorEnv,
        copies: Mapping[int, Episode],
        observation: Mapping[str, np.ndarray],
        executed: np.ndarray | None,
        planned: np.ndarray | None,
    ) -> None:
        """After a reset (no action) or a step.

        Args:
            env: the group's environment.
            copies: the episode in each copy that was reset or stepped.
            observation: what the copies show now, ``{key: [N, ...]}``.
            executed: the actions of this step ``[N, A]``.
            planned: what the policy asked for at its last call, before it was cut to the action space, for this step and those
                after it, ``[N, K, A]``; K is at its largest where a chunk begins.
        """
        ...


class EnvironmentFault(Exception):
    """The simulator raised; which of the group's episodes did it is not known."""


class Group:
    """Copies that begin their action chunks together, so that one inference serves them all.

    A copy whose episode has ended waits for the next chunk with the rest. It is stepped meanwhile, as every copy of a VectorEnv
    is, with an action that nobody looks at; where it terminates, it is reset, because Gymnasium refuses to step a terminated
    copy.

    Args:
        env: n <= :data:`INFERENCE_BATCH` copies, autoreset disabled.
        policy: who acts.
        kind, horizon, metrics, stages, returns_at: see :class:`~dopr_robot.evaluation.rollouts.episode.Episode`.
        observer: sees every reset and step.
    """

    def __init__(
        self,
        env: VectorEnv,
        policy: ActingPolicy,
        kind: str,
        horizon: int,
        metrics: Mapping[str, str],
        stages: Sequence[str] = (),
        observer: Observer | None = None,
        returns_at: Sequence[int] = (),
    ) -> None:
        check_fit(policy, env)
        self.env = env
        self.policy = policy
        self.kind, self.horizon, self.metrics, self.stages = kind, horizon, metrics, stages
        self.returns_at = returns_at
        self.observer = observer
        self.device = next(policy.parameters()).device if isinstance(policy, torch.nn.Module) else torch.device("cpu")
        n = env.num_envs
        self.running: dict[int, Episode] = {}
        self.stale = np.ones(n, dtype=bool)  # copies that have to be reset before they are stepped
        self.history: dict[str, np.ndarray] = {}  # {key: [N, To, ...]}
        self.idle_generator = torch.Generator(self.device)
        self.remembers = bool(getattr(policy, "remembers", False))

    def run(self, queue: Queue, on_record: Callable[[EpisodeRecord], None], stop: threading.Event) -> None:
        """Run episodes until the queue has none left for this group, or ``stop`` is set.

        Raises:
            EnvironmentFault: the simulator raised; :attr:`running` holds the episodes under way.
        """
        while not stop.is_set():
            self._fill(queue)
            if not self.running:
                return
            plan = self._plan(on_record)
            for k in range(self.policy.n_action_steps):
                if stop.is_set() or not self.running:
                    break
                self._step(plan[:, k:], on_record)

    def _fill(self, queue: Queue) -> None:
        fresh: dict[int, Episode] = {}
        for copy in range(self.env.num_envs):
            if copy not in self.running:
                job = queue.take({episode.job.row for episode in self.running.values()})
                if job is None:
                    break
                self.running[copy] = fresh[copy] = self._episode(job)
        if not fresh:
            return
        mask = self.stale.copy()
        mask[list(fresh)] = True
        observation, info = self._reset(mask)
        for copy, episode in fresh.items():
            for key, steps in self.history.items():
                steps[copy] = observation[key][copy]  # the first observation stands for those before it
            episode.begin({key: value[copy] for key, value in observation.items()}, _of_copy(info, copy))
        if self.observer:
            self.observer(self.env, fresh, observation, None, None)

    def _episode(self, job: Job) -> Episode:
        generator = torch.Generator(self.device)
        return Episode(job, generator, self.kind, self.horizon, self.metrics, self.stages, self.returns_at)

    def _reset(self, mask: np.ndarray) -> tuple[Mapping[str, np.ndarray], Mapping[str, Any]]:
        some_seed = next(iter(self.running.values())).job.seed
        seeds: Any = [  # a list is fine; the base class's annotation does not know it
            self.running[copy].job.seed if copy in self.running else some_seed for copy in range(self.env.num_envs)
        ]
        try:
            observation, info = self.env.reset(seed=seeds, options={"reset_mask": mask.copy()})
        except UserError:  # a task that does not keep to the contract does so in every episode
            raise
        except Exception as error:
            raise EnvironmentFault(describe(error)) from error
        self.stale &= ~mask
        if not self.history:
            to = self.policy.n_obs_steps
            self.history = {key: np.repeat(observation[key][:, None], to, axis=1) for key in self.policy.observations}
        return observation, info

    def _plan(self, on_record: Callable[[EpisodeRecord], None]) -> np.ndarray:
        """The next chunk of every copy, ``[N, Ta, A]``; copies without an episode get somebody else's."""
        rows = {episode.job.row: (copy, episode) for copy, episode in self.running.items()}
        batch = {}
        for key, steps in self.history.items():
            padded = np.zeros((INFERENCE_BATCH, *steps.shape[1:]), _torch_dtype(steps.dtype))
            for row, (copy, _) in rows.items():
                padded[row] = steps[copy]
            batch[key] = torch.from_numpy(padded).to(self.device)
        generators = [rows[row][1].generator if row in rows else self.idle_generator for row in range(INFERENCE_BATCH)]
        more: dict[str, Any] = {}
        if self.remembers:
            more["memory"] = [rows[row][1].memory if row in rows else {} for row in range(INFERENCE_BATCH)]
        with torch.inference_mode():
            actions = self.policy.act(batch, generators, **more).cpu().numpy()
        first_row = next(iter(rows))
        plan = np.repeat(actions[[first_row]], self.env.num_envs, axis=0)
        for row, (copy, episode) in rows.items():
            plan[copy] = actions[row]
            if not np.isfinite(actions[row]).all():
                error = (
                    f"FloatingPointError: the policy returned an action that is not finite at step {episode.steps + 1}"
                )
                self._end(copy, episode.record("exception", error=error), on_record)
        return np.nan_to_num(plan)

    def _step(self, planned: np.ndarray, on_record: Callable[[EpisodeRecord], None]) -> None:
        if self.stale.any():
            self._reset(self.stale)
        space = self.env.single_action_space
        assert isinstance(space, Box)
        executed = np.clip(planned[:, 0], space.low, space.high).astype(space.dtype)
        try:
            observation, reward, terminated, truncated, info = self.env.step(executed)
        except UserError:  # a task that does not keep to the contract does so in every episode
            raise
        except Exception as error:
            raise EnvironmentFault(describe(error)) from error
        self.stale |= terminated | truncated
        for key, steps in self.history.items():
            steps[:, :-1] = steps[:, 1:]
            steps[:, -1] = observation[key]
        if self.observer:
            self.observer(self.env, dict(self.running), observation, executed, planned)
        for copy, episode in list(self.running.items()):
            record = episode.step(
                float(reward[copy]), bool(terminated[copy]), bool(truncated[copy]), _of_copy(info, copy)
            )
            if record:
                self._end(copy, record, on_record)

    def _end(self, copy: int, record: EpisodeRecord, on_record: Callable[[EpisodeRecord], None]) -> None:
        del self.running[copy]
        on_record(record)


def check_fit(policy: ActingPolicy, env: VectorEnv) -> None:
    """Refuse a policy that does not fit the environment. Raises UserError naming what differs."""
    space = env.single_action_space
    if not isinstance(space, Box) or space.shape != (policy.action_dim,):
        raise UserError(
            f"the policy's actions have shape {[policy.action_dim]}, the task wants {space}: it was trained for another task"
        )
    given = getattr(env.single_observation_space, "spaces", {})
    for key, shape in policy.observations.items():
        if key not in given:
            raise UserError(
                f"the policy reads observation {key!r}, the task gives {', '.join(given) or 'no named one'}"
            )
        if tuple(given[key].shape) != tuple(shape):
            raise UserError(
                f"observation {key!r} has shape {list(given[key].shape)} in the task, {list(shape)} in the policy"
            )


def _of_copy(info: Mapping[str, Any], copy: int) -> dict[str, Any]:
    """One copy's part of a vector environment's info; ``_key`` says where ``key`` holds."""
    return {
        key: value[copy]
        for key, value in info.items()
        if not key.startswith("_") and isinstance(value, np.ndarray) and np.all(info.get("_" + key, _ALL)[copy])
    }


class _All:
    """A mask that holds everywhere."""

    def __getitem__(self, copy: int) -> bool:
        return True


_ALL = _All()


def _torch_dtype(dtype: np.dtype) -> np.dtype:
    """Networks compute in float32; integers (images) stay as they are."""
    return np.dtype(np.float32) if np.issubdtype(dtype, np.floating) else dtype
