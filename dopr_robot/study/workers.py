"""Jobs on one machine or on many: a pool of processes, or Ray. Both call the same function on the same values."""

import logging
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Self
from uuid import uuid4

from dopr_robot.cluster import Cluster
from dopr_robot.envs.workers import cores
from dopr_robot.errors import DoprError
from dopr_robot.study.work import forget_stores, work
from dopr_robot.training.signals import deferred_signals

Jobs = Sequence[Any]


class Workers:
    """Where a study's jobs run. Processes are started when there is work for them and stay warm from one round of jobs to the next, which
    saves them the seconds of CPU that an import of torch is.

    Args:
        workers: processes on this machine; 1: this one.
        ray: address of a Ray cluster, see :class:`~dopr_robot.cluster.Cluster`; None: no Ray.
        threads: CPU threads of a job.

    Attributes:
        study: which call its jobs are of, see :class:`~dopr_robot.study.work.TrainJob`.
    """

    def __init__(self, workers: int, ray: str | None = None, threads: int = 1) -> None:
        self.workers, self.ray, self.threads = workers, ray, threads
        self.study = uuid4().hex
        self._pool: ProcessPoolExecutor | None = None
        self._before: set[Any] = set()
        self._cluster: Cluster | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._pool is not None:
            if kind is None:
                self._pool.shutdown()
            self._pool.shutdown(wait=False, cancel_futures=True)
            # Stopped half-way: they save their state on SIGTERM.
            for child in set(multiprocessing.active_children()) - self._before:
                child.terminate()
            self._pool = None
        if self._cluster is not None:
            self._cluster.close()
        forget_stores()

    @property
    def at_once(self) -> int:
        """Jobs that run side by side."""
        return self.workers if self.ray is None else max(1, self._joined(self.ray).cpus // self.threads)

    @property
    def cpus(self) -> int:
        """A job's share of the cores: a simulator that lives in processes of its own starts as many. Were it one a core in every job, their
        number would grow with the square of the cores."""
        return self.threads if self.ray is not None else max(1, cores() // self.workers)

    def answers(self, jobs: Jobs) -> Iterator[tuple[int, Any]]:
        """Position and answer of every job (see :func:`dopr_robot.study.work.work`), in the order in which they are done.

        Raises:
            MissingExtraError, UserError: Ray is asked for and not installed, or no cluster answers.
            DoprError: a worker process died.
            Exception: whatever a job raised.
        """
        if not jobs:
            return
        if self.ray is not None:
            yield from self._joined(self.ray).answers(work, [(job,) for job in jobs], self.threads)
        elif self.workers == 1:
            for position, job in enumerate(jobs):
                yield position, work(job)
        else:
            yield from self._in_pool(jobs)

    def _joined(self, address: str) -> Cluster:
        if self._cluster is None:
            self._cluster = Cluster(address)
        return self._cluster

    def _in_pool(self, jobs: Jobs) -> Iterator[tuple[int, Any]]:
        if self._pool is None:
            self._before = set(multiprocessing.active_children())
            self._pool = ProcessPoolExecutor(
                self.workers,
                multiprocessing.get_context("spawn"),
                initializer=_say_as_much,
                initargs=(logging.getLogger("dopr_robot").level,),
            )
        try:
            # A process that is left half started, or that Ctrl-C meets while it imports, leaves a traceback.
            with deferred_signals() as pending, _deaf_children():
                futures = {self._pool.submit(work, job): position for position, job in enumerate(jobs)}
            if pending.signum is not None:
                signal.raise_signal(pending.signum)
            while futures:
                done, _ = wait(futures, return_when=FIRST_COMPLETED)
                for future in done:
                    yield futures.pop(future), future.result()
        except BrokenProcessPool:
            raise DoprError(
                f"a worker process died (killed, or out of memory with {self.workers} workers): the same call goes on with what is left"
            ) from None


def _say_as_much(level: int) -> None:
    """In a worker: as much as in the process that started it."""
    logging.getLogger("dopr_robot").setLevel(level)


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes that are started meanwhile never get SIGINT: Ctrl-C, which a terminal sends to all, is for this one, which ends them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
