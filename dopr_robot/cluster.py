"""One function called on many machines, by Ray."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

from dopr_robot.errors import MissingExtraError, UserError


class Cluster:
    """A Ray cluster; as a context manager it is left at the end.

    Args:
        address: ``auto``: the one that this machine is in; ``local``: one for this program; or ``head:6379``. A program that is in a
            cluster already stays in that.

    Raises:
        MissingExtraError: Ray is not installed.
        UserError: no cluster answers.
    """

    def __init__(self, address: str) -> None:
        try:
            import ray
        except ModuleNotFoundError:
            raise MissingExtraError("--ray", "ray") from None
        self._ray: Any = ray
        self._entered = not ray.is_initialized()
        if self._entered:
            try:
                local = None if address == "local" else address
                ray.init(address=local, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise UserError(
                    f"--ray {address}: no cluster answers there ({error}); ray start --head starts one"
                ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the cluster, where this entered it; what still runs is stopped."""
        if self._entered:
            self._ray.shutdown()

    @property
    def cpus(self) -> int:
        """How many it has now; another may join."""
        return int(self._ray.cluster_resources().get("CPU", 0))

    def put(self, value: Any) -> Any:
        """What stands for a value in jobs: it travels once to each machine."""
        return self._ray.put(value)

    def answers(
        self, function: Callable[..., Any], jobs: Sequence[Sequence[Any]], cpus: int = 1
    ) -> Iterator[tuple[int, Any]]:
        """Position and answer of every job, in the order in which they are done.

        A job whose machine is lost runs again on another one, however often; one that raises is not tried again.

        Args:
            function: called with a job's values, each of which may be what :meth:`put` gave.
            jobs: the values.
            cpus: that a job asks for.

        Raises:
            Exception: whatever a job raised.
        """
        ray = self._ray
        task = ray.remote(num_cpus=cpus, max_retries=-1, retry_exceptions=False)(function)
        waiting = {task.remote(*job): position for position, job in enumerate(jobs)}
        try:
            while waiting:
                (done,), _ = ray.wait(list(waiting), num_returns=1)
                try:
                    answer = ray.get(done)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                yield waiting.pop(done), answer
        finally:
            for reference in waiting:
                ray.cancel(reference)
