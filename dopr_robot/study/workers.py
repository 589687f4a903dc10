"""Jobs on one machine or on many: a pool of processes, or Ray. Both call the same function on the same values."""

import logging
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from dopr_robot.errors import DoprError, MissingExtraError, UserError
from dopr_robot.study.work import work
from dopr_robot.training.signals import deferred_signals

Jobs = Sequence[Any]


def answers(jobs: Jobs, *, workers: int, ray: str | None, threads: int) -> Iterator[tuple[int, Any]]:
    """Position and answer of every job, in the order in which they are done.

    Args:
        jobs: for :func:`dopr_robot.study.work.work`.
        workers: processes on this machine; 1: this one.
        ray: address of a Ray cluster (``auto``: the one this machine is in; ``local``: one for this call); None: no Ray.
        threads: CPU threads of a job.

    Raises:
        MissingExtraError: Ray is asked for and not installed.
        DoprError: a worker process died.
        Exception: whatever a job raised.
    """
    if not jobs:
        return
    if ray is not None:
        yield from _on_ray(jobs, ray, threads)
    elif workers == 1:
        for position, job in enumerate(jobs):
            yield position, work(job)
    else:
        yield from _in_pool(jobs, workers)


def _in_pool(jobs: Jobs, workers: int) -> Iterator[tuple[int, Any]]:
    before = set(multiprocessing.active_children())
    level = logging.getLogger("dopr_robot").level
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)), multiprocessing.get_context("spawn"), initializer=_say_as_much, initargs=(level,)
    )
    try:
        # A process that is left half started, or that Ctrl-C meets while it imports, leaves a traceback.
        with deferred_signals() as pending, _deaf_children():
            futures = {pool.submit(work, job): position for position, job in enumerate(jobs)}
        if pending.signum is not None:
            signal.raise_signal(pending.signum)
        while futures:
            done, _ = wait(futures, return_when=FIRST_COMPLETED)
            for future in done:
                yield futures.pop(future), future.result()
        pool.shutdown()
    except BrokenProcessPool:
        raise DoprError(
            f"a worker process died (killed, or out of memory with {workers} workers): the same call goes on with what is left"
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in (
            set(multiprocessing.active_children()) - before
        ):  # stopped half-way: they save their state on SIGTERM
            child.terminate()


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


def _on_ray(jobs: Jobs, address: str, threads: int) -> Iterator[tuple[int, Any]]:
    try:
        import ray
    except ModuleNotFoundError:
        raise MissingExtraError("--ray", "ray") from None
    mine = not ray.is_initialized()
    if mine:
        try:
            ray.init(address=None if address == "local" else address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(
                f"--ray {address}: no cluster answers there ({error}); ray start --head starts one"
            ) from None
    try:
        # A job whose node is lost runs again on another one, however often; one that raises is not tried again.
        remote: Callable[..., Any] = ray.remote(num_cpus=threads, max_retries=-1, retry_exceptions=False)(work).remote
        waiting = {remote(job): position for position, job in enumerate(jobs)}
        while waiting:
            done, _ = ray.wait(list(waiting), num_returns=1)
            for reference in done:
                try:
                    yield waiting.pop(reference), ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
    finally:
        if mine:
            ray.shutdown()
