"""What a simulator in this process does wrong, told as a worker process's faults are: it raises, hangs, or ends the program.

A simulator that calls ``sys.exit(0)`` would end an evaluation as if it were done, and one that raises KeyboardInterrupt would pass for the
user. :func:`ask` makes both a :class:`SimulatorError`, tells the user's own Ctrl-C and SIGTERM apart by the signal, and holds a call to a
time limit.
"""

import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

from dopr_robot.errors import DoprError

logger = logging.getLogger(__name__)
T = TypeVar("T")

START_S, STEP_S = 600.0, 300.0
"""Longest time that a simulator may take to be loaded, and for a step or a reset, in seconds."""
TICK_S, AGAIN_S, ATTEMPTS = 1.0, 10.0, 6
"""How often the watch looks, and how often and how many times it tries to end what hangs before it ends the process."""


class SimulatorError(DoprError):
    """A simulator raised, hung or died; what it said is the message."""


class SimulatorHang(SimulatorError):
    """A simulator did not answer in time."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(
            message or f"the simulator did not answer in time (a step or reset: {STEP_S:g} s, loading: {START_S:g} s)"
        )


def describe(error: BaseException) -> str:
    """Type and first line of an exception; of a simulator's, what it said."""
    first = (str(error).splitlines() or [""])[0]
    if isinstance(error, SimulatorError) and first:
        return first
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def ask(function: Callable[..., T], *args: Any, seconds: float | None = None, **kwargs: Any) -> T:
    """What ``function``, a simulator's, gives.

    Time is counted while this process runs, so that one that was stopped and goes on is not taken for one that hangs. Python code that
    hangs is ended by an exception; where the hang is outside Python, nothing in this process can end it: after a minute more the process
    says so and ends with exit code 1. A hang that never releases the interpreter's lock can not even be seen.

    Args:
        function, args, kwargs: the call.
        seconds: its limit; None: :data:`STEP_S`.

    Raises:
        SimulatorError: it raised, SystemExit and KeyboardInterrupt included.
        SimulatorHang: it took longer.
        DoprError: as raised.
        BaseException: what the handler of a SIGINT or SIGTERM raised that came meanwhile, whatever the simulator made of it. Where such a
            handler is not known (see :func:`note_stops`), KeyboardInterrupt and SystemExit are taken for the user's.
    """
    thread = threading.get_ident()
    main = thread == threading.main_thread().ident  # signals are handled in no other
    if main:
        _Noted.raised = None
    call = _WATCH.begin(thread, STEP_S if seconds is None else seconds)
    try:
        try:
            answer = function(*args, **kwargs)
        finally:
            call.over = True  # before anything in which the watch's exception could arrive
            if call.fired:
                _WATCH.take_back(call)
    except BaseException as error:
        stop = _stop(error) if main else None
        if stop is not None:
            raise stop from None
        if isinstance(error, DoprError):
            raise
        raise SimulatorError(describe(error)) from error
    if main and _Noted.raised is not None:  # the simulator has swallowed it
        raise _Noted.raised
    return answer


def note_stops() -> None:
    """Let :func:`ask` know what the handlers of SIGINT and SIGTERM raise; called where an environment is made."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        handler = signal.getsignal(number)
        if callable(handler) and not isinstance(handler, _Noted):
            signal.signal(number, _Noted(handler))


class _Noted:
    """A signal's handler; what it raises is noted, since a simulator may swallow or rename it."""

    raised: BaseException | None = None

    def __init__(self, handler: Callable[[int, FrameType | None], Any]) -> None:
        self.handler = handler

    def __call__(self, number: int, frame: FrameType | None) -> None:
        try:
            self.handler(number, frame)
        except BaseException as error:
            _Noted.raised = error
            raise


def _stop(error: BaseException) -> BaseException | None:
    """The user's wish to stop, where that is what an exception means."""
    if _Noted.raised is not None or not isinstance(error, KeyboardInterrupt | SystemExit):
        return _Noted.raised
    handler = signal.getsignal(signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM)
    return error if callable(handler) and not isinstance(handler, _Noted) else None


class _Call:
    """A call under way in one thread."""

    __slots__ = ("attempts", "fired", "left", "over", "sending")

    def __init__(self, seconds: float) -> None:
        self.left = seconds
        self.attempts = 0
        self.over = self.fired = self.sending = False


class _Watch:
    """A thread that raises :class:`SimulatorHang` in the threads whose calls take too long. No locks: an exception that arrives from
    outside may arrive while one is held."""

    def __init__(self) -> None:
        self._calls: dict[int, _Call] = {}
        self._thread: threading.Thread | None = None

    def begin(self, thread: int, seconds: float) -> _Call:
        outer = self._calls.get(thread)
        if outer is not None and not outer.over:
            return _Call(seconds)  # the outer call is watched
        call = self._calls[thread] = _Call(seconds)
        if sys.is_finalizing():  # a simulator that is closed by the interpreter's end: no thread starts any more
            return call
        if self._thread is None or not self._thread.is_alive():  # a forked process has none
            self._thread = threading.Thread(target=self._run, name="simulator watch", daemon=True)
            self._thread.start()
        return call

    def _run(self) -> None:
        while True:
            time.sleep(TICK_S)
            for thread, call in list(self._calls.items()):
                if call.over:
                    continue
                call.left -= TICK_S
                if call.left > 0:
                    continue
                if call.attempts == ATTEMPTS:
                    _give_up()
                call.attempts += 1
                call.left = AGAIN_S
                call.fired = call.sending = True  # first: whoever ends the call now waits and takes the exception back
                if not call.over:
                    _raise_in(thread, SimulatorHang)
                call.sending = False

    def take_back(self, call: _Call) -> None:
        """An exception that was sent to this thread and has not arrived, arrives now or never."""
        while call.sending:
            time.sleep(0.001)
        _raise_in(threading.get_ident(), None)


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    what = None if error is None else ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), what)


def _give_up() -> None:
    logger.error(
        "the simulator hangs outside Python, where its process can not go on without it: this process ends. What was recorded is kept; "
        "a task without in_process and vector_entry_point runs in processes of its own, and costs one episode"
    )
    os._exit(1)


_WATCH = _Watch()
