"""Episodes to run, under way, and ended."""

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import torch

from dopr_robot.evaluation.rollouts.records import EpisodeRecord

INFERENCE_BATCH = 16
"""Rows of every inference call, and the most copies of a group. Part of the answer: another number may change the last bits."""

REDUCE: Mapping[str, Callable[[Sequence[float]], float]] = {
    "max": max,
    "mean": lambda values: math.fsum(values) / len(values),
    "final": lambda values: values[-1],
}


@dataclass(frozen=True)
class Job:
    """One episode to run."""

    episode: int
    seed: int

    @property
    def row(self) -> int:
        """Its place in the inference batch."""
        return self.episode % INFERENCE_BATCH


class Queue:
    """Episodes still to run, shared by all groups of copies."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._jobs = list(jobs)
        self._lock = threading.Lock()

    def take(self, busy_rows: set[int]) -> Job | None:
        """The next episode whose row is free in the group that asks, or None."""
        with self._lock:
            for position, job in enumerate(self._jobs):
                if job.row not in busy_rows:
                    return self._jobs.pop(position)
            return None


class Episode:
    """An episode under way in one copy.

    Args:
        job: its number and seed.
        generator: source of the policy's noise, its own.
        kind: "attain" or "sustain".
        horizon: steps after which it ends undecided.
        metrics: ``{info key: "max" | "mean" | "final"}``.
        stages: keys in info of the task's parts.
        returns_at: steps at which the sum of rewards is noted.
    """

    def __init__(
        self,
        job: Job,
        generator: torch.Generator,
        kind: str,
        horizon: int,
        metrics: Mapping[str, str],
        stages: Sequence[str] = (),
        returns_at: Sequence[int] = (),
    ) -> None:
        self.job = job
        self.generator = generator.manual_seed(job.seed)
        self.memory: dict[str, Any] = {}  # what a policy that remembers keeps of this episode
        self.kind = kind
        self.horizon = horizon
        self.metrics = metrics
        self.initial_state_sha256: str | None = None
        self.steps = 0
        self.return_ = 0.0
        self.values: dict[str, list[float]] = {key: [] for key in metrics}
        self.stages = stages
        self.stage_steps: dict[str, int] = {}
        self.returns_at = returns_at
        self.returns: dict[str, float] = {}

    def begin(self, observation: Mapping[str, np.ndarray], info: Mapping[str, Any]) -> None:
        """Take note of the initial state: the physics state where the task gives it, the observation otherwise."""
        parts = (
            [info["initial_state"]] if "initial_state" in info else [observation[key] for key in sorted(observation)]
        )
        digest = sha256()
        for part in parts:
            digest.update(np.ascontiguousarray(part).tobytes())
        self.initial_state_sha256 = digest.hexdigest()

    def step(self, reward: float, terminated: bool, truncated: bool, info: Mapping[str, Any]) -> EpisodeRecord | None:
        """Take note of one step; the record if it decided the episode."""
        self.steps += 1
        figures = {"reward": reward} | {key: float(info[key]) for key in self.metrics if key in info}
        for name, value in figures.items():
            if not math.isfinite(value):
                error = f"FloatingPointError: the task's {name} is {value} at step {self.steps}"
                return self.record("exception", error=error)
        self.return_ += reward
        if self.steps in self.returns_at:
            self.returns[str(self.steps)] = self.return_
        for key, values in self.values.items():
            if key in info:
                values.append(float(info[key]))
        for stage in self.stages:
            if info.get(stage, False) and stage not in self.stage_steps:
                self.stage_steps[stage] = self.steps
        success, over = bool(info["success"]), self.steps >= self.horizon or truncated
        if self.kind == "attain":
            if success:
                return self.record("success")
            if terminated:
                return self.record("failure", cause=_text(info.get("cause")))
            return self.record("timeout") if over else None
        if not success:
            return self.record("failure", cause=_text(info.get("cause")))
        return self.record("success") if over or terminated else None

    def record(self, outcome: str, error: str | None = None, cause: str | None = None) -> EpisodeRecord:
        """The record of this episode, ended now."""
        return EpisodeRecord(
            episode=self.job.episode,
            seed=self.job.seed,
            initial_state_sha256=self.initial_state_sha256,
            outcome=outcome,
            first_success_step=self.steps if outcome == "success" and self.kind == "attain" else None,
            first_failure_step=self.steps if outcome == "failure" else None,
            length=self.steps,
            return_=self.return_,
            error=error,
            cause=cause,
            metrics={key: REDUCE[self.metrics[key]](values) for key, values in self.values.items() if values},
            stages=self.stage_steps,
            returns=self.returns,
        )


def _text(cause: Any) -> str | None:
    return str(cause) if cause else None
