"""What a worker does: train one arm, test one arm. Jobs and answers are plain values, so that they travel between machines."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dopr_robot.datasets import Store
from dopr_robot.envs import Task
from dopr_robot.errors import DoprError, UserError
from dopr_robot.evaluation import EpisodeRecord
from dopr_robot.evaluation.selection import SelectionRollout, rolled_out
from dopr_robot.evaluation.statistics import succeeded
from dopr_robot.policies import find_checkpoint, load_policy
from dopr_robot.reading import read_json
from dopr_robot.training import Interrupted, config_from, read_metrics, train
from dopr_robot.training.checkpoints import BEST
from dopr_robot.training.data import settled_task
from dopr_robot.training.demonstrations import stores_held
from dopr_robot.training.metrics import FIGURES

_held: dict[str, dict[str, Store]] = {}
POLICY_FILES = ("policy.json", "policy.safetensors")


@dataclass(frozen=True)
class TrainJob:
    """An arm to train.

    Attributes:
        key: what distinguishes it.
        config: of the run; ``decides``: the same as its record keeps it, see :meth:`~dopr_robot.study.config.Arm.decides`.
        folder: the run's, on the worker's file system; where it holds a part of the run, that is gone on with.
        horizons: control steps; the rate is chosen at the longest.
        cpus: cores that its simulators may use.
        study: which call this is for: under one, a process reads a store once.
    """

    key: dict[str, Any]
    config: dict[str, Any]
    decides: dict[str, Any]
    folder: str
    horizons: tuple[int, ...]
    cpus: int
    study: str


@dataclass(frozen=True)
class Trained:
    """Its line of ``arms.jsonl``, and the files of its policy by name; ``best``: of its best checkpoint, where that is not the last."""

    record: dict[str, Any]
    files: dict[str, bytes]
    best: dict[str, bytes]


@dataclass(frozen=True)
class TestJob:
    """An arm to test, from its policy's files; ``part``: from which to before which of the ``episodes``."""

    __test__ = False  # no test of pytest's

    key: dict[str, Any]
    files: dict[str, bytes]
    task: str
    episodes: int
    part: tuple[int, int]
    horizons: tuple[int, ...]
    threads: int
    cpus: int


def work(job: TrainJob | TestJob) -> Any:
    """Do a job, in any process on any machine."""
    if isinstance(job, TestJob):
        return test_arm(job)
    if job.study not in _held:  # a study before: stores may have changed since
        forget_stores()
    with stores_held(_held.setdefault(job.study, {})):
        return train_arm(job)


def forget_stores() -> None:
    """Give back the memory of the store that the last job of this process was trained on."""
    _held.clear()


def train_arm(job: TrainJob) -> Trained:
    """Train an arm to its end and roll it out on selection seeds.

    A run that diverges is a result, not a fault: it has no success, and ``error`` says what happened.

    Raises:
        UserError, Interrupted: as :func:`dopr_robot.training.train`.
    """
    config, folder = config_from(job.config), Path(job.folder)
    config.task = settled_task(config)
    rollout = SelectionRollout(
        Task(config.task.name or "", config.task.options or {}),
        config.training.rollout_episodes,
        job.horizons,
        cpus=job.cpus,
    )
    files: dict[str, bytes] = {}
    best: dict[str, bytes] = {}
    error, best_step, selection = None, None, []
    try:
        checkpoint = train(config, folder, rollout)
        if not rollout.records:  # trained to the end by a worker that did not come to tell
            rollout(load_policy(checkpoint))
        selection = rollout.records
        files = {name: (checkpoint / name).read_bytes() for name in POLICY_FILES}
        best_step, best = _best(checkpoint)
        state_bytes = (checkpoint / "training_state" / "state.safetensors").stat().st_size
    except (UserError, Interrupted):
        raise
    except DoprError as broken:
        error, state_bytes = str(broken), 0
    start = read_json(folder / "start.json")
    weights, best_weights = (
        sha256(each["policy.safetensors"]).hexdigest() if each else None for each in (files, best or files)
    )
    curve, seconds, skipped = _curve(read_metrics(folder))
    kind, last = rollout.spec.kind, curve[-1] if curve else {}
    record = {
        **job.key,
        "config": job.decides,
        **start,
        "weights_sha256": weights,
        "best_step": best_step,
        "best_weights_sha256": best_weights,
        "selection_states_sha256": states_sha256(selection),
        "selection_episodes": rollout.episodes,
        "selection_successes": {
            str(h): int(succeeded(selection, kind, h).sum()) if selection else 0 for h in job.horizons
        },
        "selection_return": float(np.mean([episode.return_ for episode in selection])) if selection else None,
        "validation_loss": None if error else last.get("validation_loss"),
        "validation_loss_without_ema": None if error else last.get("validation_loss_without_ema"),
        "curve": curve,
        "skipped_steps": skipped,
        "state_bytes": state_bytes,
        "error": error,
        # Clocks and machines, apart from what has to be the same everywhere.
        "cost": {
            "seconds_per_step": seconds[-1] / last["step"] if curve and last["step"] else None,
            "seconds": seconds,
            "peak_cuda_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        },
    }
    return Trained(record, files, best)


def _best(last: Path) -> tuple[int, dict[str, bytes]]:
    """Step and files of the checkpoint that succeeded most often in a run's rollouts; without files where that is the last."""
    best = find_checkpoint(last.parent / BEST).resolve() if os.path.lexists(last.parent / BEST) else last
    if best.name == last.name:
        return int(last.name), {}
    return int(best.name), {name: (best / name).read_bytes() for name in POLICY_FILES}


def test_arm(job: TestJob) -> list[str]:
    """Lines of ``episodes.jsonl`` of an arm on test seeds, or on a part of them."""
    torch.set_num_threads(job.threads)
    with tempfile.TemporaryDirectory() as folder:
        for name, content in job.files.items():
            (Path(folder) / name).write_bytes(content)
        policy = load_policy(folder)
        task = Task(job.task, policy.task_options)
        part = slice(*job.part)
        records = rolled_out(policy, task, job.episodes, job.horizons, "final", part=part, cpus=job.cpus)
    return [record.to_json() for record in records]


test_arm.__test__ = False  # type: ignore[attr-defined]


def states_sha256(records: Sequence[EpisodeRecord]) -> str | None:
    """Checksum of the initial states, seed by seed; None without records."""
    if not records:
        return None
    digest = sha256()
    for record in records:
        digest.update(f"{record.seed} {record.initial_state_sha256}\n".encode())
    return digest.hexdigest()


def _curve(lines: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[float], int]:
    """Validation loss and success by step, the training seconds at each of these steps, and the number of steps left out."""
    points: dict[int, dict[str, Any]] = {}
    clock: dict[int, float] = {}
    elapsed, skipped = 0.0, 0
    for line in lines:
        elapsed = line.get("seconds", elapsed)
        skipped += "skipped" in line
        told: dict[str, Any] = {key: line[key] for key in FIGURES if key in line}
        if told:
            points.setdefault(line["step"], {"step": line["step"]}).update(told)
            clock[line["step"]] = elapsed
    return list(points.values()), list(clock.values()), skipped
