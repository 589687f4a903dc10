"""Rollouts of a policy in a batched environment, with the same records for any number of copies.

What makes an episode depend on its seed alone:

- the environment promises it (``reset(seed=...)``, no state shared between copies);
- the policy's noise comes from a generator of the episode's own, seeded by the episode's seed;
- inference always runs on a padded batch of :data:`~dopr_robot.evaluation.rollouts.episode.INFERENCE_BATCH` rows on one thread, and an
  episode always sits in the same row. Matrix kernels choose their order of summation by shape, by number of threads and by
  position: none of the three changes.

Copies are split into groups, one thread a group: while one group's batch is in the network, another's is in the simulator (both
release the GIL).
"""

import logging
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from gymnasium.vector import VectorEnv

from dopr_robot.envs.faults import describe
from dopr_robot.envs.workers import cores
from dopr_robot.errors import UserError
from dopr_robot.evaluation.rollouts.episode import INFERENCE_BATCH, Job, Queue
from dopr_robot.evaluation.rollouts.group import ActingPolicy, EnvironmentFault, Group, Observer
from dopr_robot.evaluation.rollouts.records import EpisodeRecord
from dopr_robot.policies.products import fast_products

logger = logging.getLogger(__name__)
OnRecord = Callable[[EpisodeRecord], None]


@dataclass(frozen=True)
class Rollout:
    """How to run episodes; :meth:`run` runs them.

    Args:
        policy: who acts.
        make_env: gives a VectorEnv of n copies with autoreset disabled, which may use so many cores.
        kind: "attain" or "sustain".
        horizon: steps after which an episode ends undecided.
        metrics: ``{info key: "max" | "mean" | "final"}``, figures that go into the records.
        stages: keys in info of the task's parts.
        observer: sees every reset and step.
        copies: of a group where nobody says how many.
        returns_at: steps at which the sum of rewards is noted in the record.
    """

    policy: ActingPolicy
    make_env: Callable[[int, int], VectorEnv]
    kind: str
    horizon: int
    metrics: Mapping[str, str] = field(default_factory=dict)
    stages: Sequence[str] = ()
    observer: Observer | None = None
    copies: int = INFERENCE_BATCH
    returns_at: Sequence[int] = ()

    def run(
        self,
        jobs: Iterable[Job],
        on_record: OnRecord,
        num_envs: int | None = None,
        workers: int | None = None,
        cpus: int | None = None,
    ) -> list[str]:
        """Run every job; ``on_record`` gets each record as its episode ends, one call at a time.

        Where the simulator raises (or a worker of it dies), the episodes under way are run again, each alone. The one that raises
        again gets a record with outcome "exception"; the others end as they would have.

        Args:
            jobs: what to run.
            on_record: gets the records, in the order in which episodes end.
            num_envs: copies, over all groups. None: :attr:`copies` a group.
            workers: groups, and so threads. None: one a core. One group runs in the calling thread.
            cpus: cores that the simulators of all groups may use, where others run beside this rollout. None: all of this process.

        Returns:
            Faults that every episode survived, one line each.

        Raises:
            UserError: policy and environment do not fit each other.
            Exception: whatever the policy or ``on_record`` raised. Records of episodes that had ended were handed over.
        """
        jobs = list(jobs)
        if not jobs:
            return []
        queue, stop, lock = Queue(jobs), threading.Event(), threading.Lock()
        faults: list[str] = []

        def hand_over(record: EpisodeRecord) -> None:
            with lock:
                on_record(record)

        # In the calling thread: an environment with worker processes forks, and that is safe only before there are threads.
        sizes = group_sizes(num_envs, workers, len(jobs), self.copies)
        share = max(1, (cpus or cores()) // len(sizes))
        groups = [self._group(size, share) for size in sizes]
        runs = [_bind(self._run_group, group, share, queue, hand_over, stop, faults) for group in groups]
        with one_torch_thread(), fast_products():
            if len(runs) == 1:
                runs[0]()
            else:
                _run_in_threads(runs, stop)
        return faults

    def _group(self, num_envs: int, share: int) -> Group:
        env = self.make_env(num_envs, share)
        try:
            more = (self.metrics, self.stages, self.observer, self.returns_at)
            return Group(env, self.policy, self.kind, self.horizon, *more)
        except BaseException:
            env.close()
            raise

    def _run_group(
        self, group: Group, share: int, queue: Queue, on_record: OnRecord, stop: threading.Event, faults: list[str]
    ) -> None:
        while True:
            try:
                group.run(queue, on_record, stop)
                return
            except EnvironmentFault as fault:
                logger.warning(
                    "the simulator failed (%s): %d episodes are run again, each alone", fault, len(group.running)
                )
                self._run_alone(group, str(fault), on_record, stop, faults)
            finally:
                _close(group.env)
            group = self._group(group.env.num_envs, share)

    def _run_alone(
        self, group: Group, fault: str, on_record: OnRecord, stop: threading.Event, faults: list[str]
    ) -> None:
        """Run a failed group's episodes one by one, so that a fault meets the episode that caused it."""
        if len(group.running) == 1 and group.env.num_envs == 1:
            (episode,) = group.running.values()
            on_record(episode.record("exception", error=fault))
            return
        raised = False
        for episode in list(group.running.values()):
            if stop.is_set():
                return
            alone = self._group(1, 1)
            try:
                alone.run(Queue([episode.job]), on_record, stop)
            except EnvironmentFault as error:
                raised = True
                (again,) = alone.running.values()
                on_record(again.record("exception", error=str(error)))
            finally:
                _close(alone.env)
        if not raised:
            numbers = sorted(episode.job.episode for episode in group.running.values())
            faults.append(f"{fault} (once, while episodes {numbers} ran; run again, they ended)")


def group_sizes(num_envs: int | None, workers: int | None, episodes: int, copies: int = INFERENCE_BATCH) -> list[int]:
    """Copies in each group: ``num_envs`` over all, else ``copies`` in each; a group holds at most :data:`INFERENCE_BATCH`.

    >>> group_sizes(7, 2, 100), group_sizes(40, 1, 100), group_sizes(None, 2, 100), group_sizes(None, 2, 3)
    ([4, 3], [14, 13, 13], [16, 16], [2, 1])
    """
    for name, value in (("num_envs", num_envs), ("workers", workers)):
        if value is not None and value < 1:
            raise UserError(f"{name}={value} has to be at least 1")
    workers = workers or cores()
    total = min(num_envs or workers * copies, episodes)
    groups = max(min(workers, total), math.ceil(total / INFERENCE_BATCH))
    return [total // groups + (i < total % groups) for i in range(groups)]


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Inference on one thread a group, whatever the machine has: the number of threads is part of the answer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _run_in_threads(runs: Sequence[Callable[[], None]], stop: threading.Event) -> None:
    """Run all; the first exception (Ctrl-C in the calling thread included) stops the others and is raised when they have
    ended."""
    with ThreadPoolExecutor(len(runs), thread_name_prefix="rollout") as pool:
        futures = {pool.submit(run) for run in runs}
        try:
            while futures:
                # A time-out, because a wait without one can not be interrupted on every platform.
                done, futures = wait(futures, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
        finally:
            stop.set()


def _bind(function: Callable[..., None], *arguments: object) -> Callable[[], None]:
    return lambda: function(*arguments)


def _close(env: VectorEnv) -> None:
    try:
        env.close()
    except Exception as error:  # a dead worker can not be closed in order, and the records matter more
        logger.warning("an environment did not close: %s", describe(error))
