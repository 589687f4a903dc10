"""A simulator's single environments as one ``gymnasium.vector.VectorEnv``, in processes of their own or in this one.

A simulator may leak, crash, or hold an OpenGL context that belongs to one process: here each worker makes its environments, and their
contexts, itself. A worker is a fresh interpreter (no fork, so no inherited locks or contexts), ends with the process that started it,
and is replaced when it dies. A simulator that is too light for that lives in this process, under the same contract.
"""

import os
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from dopr_robot.envs.contract import need_dict
from dopr_robot.envs.faults import START_S, STEP_S, SimulatorError, ask
from dopr_robot.envs.loading import load
from dopr_robot.envs.registration import TaskSpec
from dopr_robot.errors import UserError


def cores() -> int:
    """CPU cores of this process; of the machine where the system does not say (macOS, Windows)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class WorkerVectorEnv(VectorEnv):
    """N copies of a task in worker processes or in this one, as :func:`dopr_robot.envs.make_vec` gives it.

    Where a worker dies, hangs or raises, the call raises :class:`SimulatorError` and a new worker stands ready: its copies have to be
    reset, the others go on.

    Args:
        task: which.
        num_envs: copies.
        autoreset_mode: as Gymnasium defines it. With ``DISABLED``, a finished copy stands still until ``reset`` with a ``reset_mask``.
        workers: processes; None: one a core, at most one a copy; 0: the copies live in this process.
        **kwargs: of the single environment.
    """

    def __init__(
        self,
        task: TaskSpec,
        num_envs: int = 1,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        workers: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.task, self.num_envs = task, num_envs
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.render_mode = kwargs.get("render_mode")
        count = 1 if workers == 0 else min(num_envs, workers or cores())
        kind = _Here if workers == 0 else _Worker
        shares = np.array_split(np.arange(num_envs), count)
        self._workers = [kind(task.entry_point, kwargs, [int(copy) for copy in share]) for share in shares]
        try:
            made = [worker.answer(START_S) for worker in self._workers]
        except BaseException:
            self.close()
            raise
        self.single_observation_space, self.single_action_space, metadata = made[0]
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.metadata = {**metadata, "autoreset_mode": self.autoreset_mode}
        self.observation: dict[str, NDArray[Any]] = {
            key: np.zeros(space.shape or (), space.dtype)
            for key, space in self.observation_space.items()  # type: ignore[attr-defined]
        }
        """What every copy showed last, ``[N, ...]``; a scripted expert reads it."""
        self._waiting = np.ones(num_envs, bool)
        self._infos: list[dict[str, Any]] = [{} for _ in range(num_envs)]

    @property
    def envs(self) -> list[gymnasium.Env]:
        """The copies themselves, for an expert that reads more than :attr:`observation`. Raises UserError where they live elsewhere."""
        (here, *_) = self._workers
        if not isinstance(here, _Here):
            raise UserError(
                f"the copies of {self.task.id} live in processes of their own: its TaskSpec has to say in_process=True"
            )
        return [here.inside.envs[copy] for copy in here.copies]

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Start episodes: all, or those of ``options["reset_mask"]``."""
        mask = np.ones(self.num_envs, bool)
        if options and "reset_mask" in options:
            mask = np.asarray(options["reset_mask"])
        if isinstance(seed, int | np.integer):
            seed = [int(seed) + copy for copy in range(self.num_envs)]
        seeds = [None] * self.num_envs if seed is None else list(seed)
        if len(seeds) != self.num_envs:
            raise UserError(f"{len(seeds)} seeds for {self.num_envs} copies: give one a copy")
        self._start(np.flatnonzero(mask), seeds)
        return self._observations(), self._info()

    def step(self, actions: Any) -> tuple[dict[str, NDArray[Any]], Any, Any, Any, dict[str, Any]]:
        """One step of every copy that is not waiting for its reset."""
        action = np.asarray(actions)
        if action.shape != self.action_space.shape:
            raise UserError(
                f"actions have shape {list(action.shape)}, {self.task.id} expects {list(self.action_space.shape or ())}"
            )
        bad = ~np.isfinite(action).reshape(self.num_envs, -1).all(1) & ~self._waiting
        if bad.any():
            copy = int(np.argmax(bad))
            raise UserError(f"the action of copy {copy} is not finite: {action[copy]}")
        fresh = (
            self._waiting.copy() if self.autoreset_mode == AutoresetMode.NEXT_STEP else np.zeros(self.num_envs, bool)
        )
        self._start(np.flatnonzero(fresh), [None] * self.num_envs)
        running = ~self._waiting & ~fresh
        reward, terminated, truncated = (
            np.zeros(self.num_envs),
            np.zeros(self.num_envs, bool),
            np.zeros(self.num_envs, bool),
        )
        shares = [[copy for copy in worker.copies if running[copy]] for worker in self._workers]
        answers = self._each("step", [(share, action[share]) if share else None for share in shares])
        for share, answer in zip(filter(None, shares), answers, strict=True):
            observation, reward[share], terminated[share], truncated[share], infos = answer
            for key, values in self.observation.items():
                values[share] = observation[key]
            for copy, info in zip(share, infos, strict=True):
                self._infos[copy] = info
        done = terminated | truncated
        self._waiting |= done
        info = self._info()
        if self.autoreset_mode == AutoresetMode.SAME_STEP and done.any():
            final = {"final_obs": self._observations(), "_final_obs": done, "final_info": info, "_final_info": done}
            self._start(np.flatnonzero(done), [None] * self.num_envs)
            info = {**self._info(), **final}
        return self._observations(), reward, terminated, truncated, info

    def render(self) -> tuple[NDArray[np.uint8], ...]:  # type: ignore[override]
        """A frame of every copy."""
        return self.render_copies(range(self.num_envs))

    def render_copies(self, copies: Sequence[int]) -> tuple[NDArray[np.uint8], ...]:
        """Frames of some copies."""
        frames = self._ask("render", dict.fromkeys(copies))
        return tuple(frames[copy] for copy in copies)

    def apply(self, function: str, arguments: Mapping[int, Sequence[Any]], seconds: float = STEP_S) -> dict[int, Any]:
        """What ``function`` (``module:name``) gives, called where each copy lives as ``function(env, *arguments)``, by copy."""
        return self._ask("apply", {copy: (function, *each) for copy, each in arguments.items()}, seconds)

    def close_extras(self, **kwargs: Any) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.end()

    def _start(self, copies: NDArray[np.intp], seeds: Sequence[int | None]) -> None:
        for copy, (observation, info) in self._ask("reset", {int(copy): seeds[copy] for copy in copies}).items():
            for key, values in self.observation.items():
                values[copy] = observation[key]
            self._infos[copy] = info
            self._waiting[copy] = False

    def _observations(self) -> dict[str, NDArray[Any]]:
        return {key: values.copy() for key, values in self.observation.items()}

    def _info(self) -> dict[str, Any]:
        info: dict[str, Any] = {}
        for copy, single in enumerate(self._infos):
            info = self._add_info(info, single, copy)
        return info

    def _ask(self, what: str, copies: Mapping[int, Any], seconds: float = STEP_S) -> dict[int, Any]:
        """The same of several copies, all workers at once."""
        shares = [{copy: copies[copy] for copy in worker.copies if copy in copies} for worker in self._workers]
        return {copy: answer for each in self._each(what, shares, seconds) for copy, answer in each.items()}

    def _each(self, what: str, shares: Sequence[Any], seconds: float = STEP_S) -> list[Any]:
        """What every worker that has a share answers, all at once."""
        asked = [(worker, share) for worker, share in zip(self._workers, shares, strict=True) if share]
        for worker, share in asked:
            worker.ask(what, share)
        answers = []
        failed: SimulatorError | None = None
        for worker, _ in asked:
            try:
                answers.append(worker.answer(seconds))
            except SimulatorError as error:
                self._waiting[worker.copies] = True
                failed = failed or error
                worker.replace()
        if failed:
            raise failed
        return answers


class _Worker:
    """One process and the copies that live in it."""

    def __init__(self, entry_point: str, kwargs: Mapping[str, Any], copies: list[int]) -> None:
        self.entry_point, self.kwargs, self.copies = entry_point, dict(kwargs), copies
        self._begin()

    def _begin(self) -> None:
        ours, theirs = socket.socketpair()
        code = f"from dopr_robot.envs.workers import serve; serve({theirs.fileno()})"
        self.said = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        # -P: the working directory's own folders are no packages.
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", "-c", code],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self.said,
            stderr=self.said,
        )
        theirs.close()
        self.connection = Connection(ours.detach())
        self.ask("make", (self.entry_point, self.kwargs, self.copies))

    def ask(self, what: str, about: Any) -> None:
        with suppress(OSError):  # where it has died, the answer says so
            self.connection.send((what, about))

    def answer(self, seconds: float) -> Any:
        """Raises what the user did wrong, and SimulatorError for everything else."""
        try:
            if not wait([self.connection], seconds):
                raise SimulatorError(f"the simulator's process did not answer within {seconds:g} s")
            kind, payload = self.connection.recv()
        except (EOFError, OSError):
            code = self.process.wait()
            self.said.seek(0)
            last = self.said.read().decode(errors="replace").strip().splitlines()[-1:]
            raise SimulatorError(": ".join([f"the simulator's process ended (exit code {code})", *last])) from None
        if kind == "error":
            raise SimulatorError(payload)
        if kind == "user_error":
            raise payload
        return payload

    def replace(self) -> None:
        """End this process and begin another."""
        self.end()
        self._begin()
        self.answer(START_S)

    def end(self) -> None:
        self.connection.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.said.close()


class _Here:
    """The copies that live in this process, asked as a worker is."""

    def __init__(self, entry_point: str, kwargs: Mapping[str, Any], copies: list[int]) -> None:
        self.copies, self._make = copies, (entry_point, dict(kwargs), copies)
        self._begin()

    def _begin(self) -> None:
        self.inside = _Copies()
        self.ask("make", self._make)

    def ask(self, what: str, about: Any) -> None:
        self._asked = getattr(self.inside, what), about

    def answer(self, seconds: float) -> Any:
        """As a worker's."""
        function, about = self._asked
        return ask(function, about, seconds=seconds)

    def replace(self) -> None:
        """Make the copies anew: what a simulator has come to that raised, nobody knows."""
        self.end()
        self._begin()
        self.answer(START_S)

    def end(self) -> None:
        for env in self.inside.envs.values():
            with suppress(SimulatorError):
                ask(env.close)


class _Copies:
    """The environments that live in one process, by the number of their copy."""

    def __init__(self) -> None:
        self.envs: dict[int, gymnasium.Env] = {}

    def make(self, about: Any) -> Any:
        entry_point, kwargs, copies = about
        for copy in copies:
            self.envs[copy] = load(entry_point)(**kwargs)
        first = self.envs[copies[0]]
        need_dict(first.observation_space, entry_point)
        self.keys = list(first.observation_space)  # type: ignore[call-overload]
        return first.observation_space, first.action_space, dict(first.metadata)

    def reset(self, seeds: Mapping[int, int | None]) -> Any:
        return {copy: self.envs[copy].reset(seed=seed) for copy, seed in seeds.items()}

    def step(self, about: tuple[Sequence[int], NDArray[Any]]) -> Any:
        """All copies' outcomes in one array each: as many objects as copies would cost more to send than some simulators' steps."""
        observations, *outcomes = zip(
            *(self.envs[copy].step(action) for copy, action in zip(*about, strict=True)), strict=True
        )
        return {key: np.stack([seen[key] for seen in observations]) for key in self.keys}, *outcomes

    def apply(self, calls: Mapping[int, Sequence[Any]]) -> Any:
        return {copy: load(function)(self.envs[copy], *each) for copy, (function, *each) in calls.items()}

    def render(self, copies: Mapping[int, None]) -> Any:
        return {copy: self.envs[copy].render() for copy in copies}


def serve(descriptor: int) -> None:
    """A worker's life: make the environments, then answer until the other end is closed."""
    connection, inside = Connection(descriptor), _Copies()
    while True:
        try:
            what, about = connection.recv()
        except (EOFError, OSError, KeyboardInterrupt):
            os._exit(0)  # without the simulators' finalisers, which print or crash
        try:
            reply = "ok", getattr(inside, what)(about)
        except UserError as error:
            reply = "user_error", UserError(str(error))
        except Exception as error:
            text = traceback.format_exception_only(error)[-1].strip().splitlines() or [type(error).__name__]
            reply = "error", text[0]
        connection.send(reply)
