"""Demonstrations from a task's expert."""

from collections.abc import Callable, Generator, Iterable, Sized
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dopr_robot.envs import Expert, RememberingExpert, check_start, get_task, load_expert, make_vec


def measure_expert(name: str, seeds: Iterable[int], *, noise: float | None = None, **kwargs: Any) -> float:
    """The share of ``seeds`` on which the task's expert succeeds.

    Args:
        name: a task.
        seeds: one an episode.
        noise: multiple of the noise that :func:`demonstrations` injects; None: 1.
        **kwargs: see :func:`demonstrations`.
    """
    episodes = demonstrations(name, seeds, noise=noise, keep_failures=True, **kwargs)
    return float(np.mean([episode.success for episode in episodes]))


@dataclass(frozen=True)
class Demonstration:
    """One episode: ``arrays`` holds every observation and ``action``, ``[T, ...]``, and where a task's reward says more than success
    ``rewards`` ``[T]``, so that a return can be told beside that of the demonstrations; ``meta``: what an expert noted."""

    seed: int
    success: bool
    arrays: dict[str, NDArray[Any]]
    meta: dict[str, Any] = field(default_factory=dict)


def demonstrations(
    name: str,
    seeds: Iterable[int],
    *,
    noise: float | None = None,
    num_envs: int = 32,
    keep_failures: bool = False,
    make_expert: Callable[[Any], Expert] | None = None,
    **kwargs: Any,
) -> Generator[Demonstration, None, None]:
    """Episodes of the task's expert, in the order of their seeds; successful ones unless told otherwise.

    White noise is injected on the executed action while the clean one is recorded (DART: Laskey et al., 2017), so that the data
    show how to come back from small errors. An episode depends on its seed alone.

    Args:
        name: a task.
        seeds: one an episode; may be without end, since no more are drawn than are asked for.
        noise: multiple of the expert's own scale; None: 1.
        num_envs: copies that run side by side; no more than there are seeds.
        keep_failures: yield episodes in which the expert failed too.
        make_expert: from the environment; None: the task's own.
        **kwargs: of the environment.

    Raises:
        UserError: the task has no expert, or ignores its seed.
        SimulatorError: the simulator failed.
    """
    spec = get_task(name)
    make_expert = make_expert or load_expert(spec)
    longest = kwargs.get("max_steps", spec.max_steps)  # a simulator need not have a limit of its own
    if isinstance(seeds, Sized):
        num_envs = max(1, min(num_envs, len(seeds)))
    queue = zip(count(), seeds, strict=False)
    env = make_vec(name, num_envs, **kwargs)
    try:
        expert = make_expert(env)
        scale = expert.noise * (1.0 if noise is None else noise)
        running: list[tuple[int, int, np.random.Generator] | None] = [None] * num_envs
        traces: list[list[dict[str, NDArray[Any]]]] = [[] for _ in range(num_envs)]
        notes: list[dict[str, Any]] = [{} for _ in range(num_envs)]
        finished: dict[int, Demonstration] = {}
        following, started = 0, False
        low, high = env.single_action_space.low, env.single_action_space.high  # type: ignore[attr-defined]
        observation: dict[str, NDArray[Any]] = {}
        while True:
            fresh = np.zeros(num_envs, bool)
            reset_seeds = [0] * num_envs
            for copy in range(num_envs):
                if running[copy] is None and (job := next(queue, None)) is not None:
                    running[copy] = (*job, np.random.default_rng((job[1], 1)))
                    fresh[copy], reset_seeds[copy] = True, job[1]
            if fresh.any():
                if not started:
                    check_start(env, spec, reset_seeds[0])
                observation, _ = env.reset(seed=reset_seeds, options={"reset_mask": fresh} if started else None)  # type: ignore[arg-type]
                started = True
            if isinstance(expert, RememberingExpert):
                for copy in map(int, np.flatnonzero(fresh)):
                    notes[copy] = expert.begin(copy, reset_seeds[copy])
            if not any(running):
                return
            clean = expert.act().astype(np.float32)
            executed = clean.copy()
            for copy, current in enumerate(running):
                if current is not None:
                    traces[copy].append(
                        {key: value[copy].copy() for key, value in observation.items()} | {"action": clean[copy]}
                    )
                    executed[copy] += scale * current[2].standard_normal(len(scale))
            observation, reward, terminated, truncated, infos = env.step(np.clip(executed, low, high))
            if spec.reward:
                for copy, current in enumerate(running):
                    if current is not None:
                        traces[copy][-1]["rewards"] = np.asarray(reward[copy], np.float64)
            timed_out = np.array([len(trace) >= longest for trace in traces])
            for copy in map(int, np.flatnonzero(terminated | truncated | timed_out)):
                ended = running[copy]
                if ended is not None:
                    arrays = {key: np.stack([step[key] for step in traces[copy]]) for key in traces[copy][0]}
                    finished[ended[0]] = Demonstration(ended[1], bool(infos["success"][copy]), arrays, notes[copy])
                    running[copy], traces[copy] = None, []
            while following in finished:
                done = finished.pop(following)
                following += 1
                if done.success or keep_failures:
                    yield done
    finally:
        env.close()
