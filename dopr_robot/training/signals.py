"""Stopping with the state saved."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from dopr_robot.errors import DoprError


class Interrupted(DoprError):
    """Work stopped on a signal after its state was saved; ``exit_code`` is 128 + the signal's number."""

    def __init__(self, signum: int, saved: str) -> None:
        super().__init__(f"{signal.Signals(signum).name}: stopped, {saved}")
        self.exit_code = 128 + signum


class Pending:
    """Which signal has come, if any."""

    signum: int | None = None


@contextmanager
def deferred_signals() -> Iterator[Pending]:
    """SIGINT and SIGTERM are noted and not acted on, so that a step is finished before the state is saved.

    A second one of either is acted on at once.
    """
    pending = Pending()
    before: dict[int, object] = {}

    def note(signum: int, _frame: FrameType | None) -> None:
        pending.signum = signum
        signal.signal(signum, before[signum])  # type: ignore[arg-type]

    try:
        for signum in (signal.SIGINT, signal.SIGTERM):
            before[signum] = signal.signal(signum, note)
    except ValueError:  # not the main thread: signals are somebody else's affair
        yield pending
        return
    try:
        yield pending
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
