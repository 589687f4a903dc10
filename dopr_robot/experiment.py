"""From an experiment to a run folder: the configuration, what it says beforehand, and training with rollouts on selection states."""

import logging
import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dopr_robot.errors import UserError
from dopr_robot.locks import held
from dopr_robot.progress import tell
from dopr_robot.settings import parse_words
from dopr_robot.training import Run, RunConfig, compose_config, whole_keys

if TYPE_CHECKING:
    from dopr_robot.training import TrainingData

LOG = logging.getLogger(__name__)
Experiment = str | os.PathLike[str] | RunConfig


def train(
    experiment: Experiment | None = None,
    *words: str,
    resume: str | os.PathLike[str] | None = None,
    force: bool = False,
    out: str | os.PathLike[str] | None = None,
    profile: bool = False,
    **settings: Any,
) -> Run:
    """Train a policy on a store, as ``dopr train`` does, into ``runs/<name>``.

    A store that is not there is collected first, where the configuration says how (``collect.demonstrations``), as those of the
    experiments do whose task has an expert. One that is there is used as it is.

    >>> run = train("pick_place", steps=50)                                                       # doctest: +SKIP
    >>> run = train("pick_place", "optimizer.lr=1e-3", policy="flow_unet", batch_size=128)        # doctest: +SKIP
    >>> run = train(resume="runs/pick_place")                                                     # doctest: +SKIP

    Args:
        experiment: a name (``dopr_robot/configs/experiment``), a YAML file, or a configuration; None: the defaults.
        words: settings as the command takes them, ``"optimizer.lr=1e-3"``.
        resume: a run folder to go on with, from its last checkpoint; an experiment is not named then.
        force: resume although settings were changed.
        out: the run folder, which may be there already; None: ``runs/<name>``, or ``runs/<name>-2``, ... where that is taken.
        profile: measure what the first steps spend, into ``profile/`` of the run folder: a table and a trace.
        settings: the same by name: a whole key (``**{"training.steps": 50}``), or its last part where only one key ends in it
            (``steps=50``, ``lr=1e-3``, ``store="data/lift.zarr"``).

    Returns:
        The run.

    Raises:
        UserError: an unknown name or key (the closest is named), a value of another type, a configuration that does not fit its store.
        Interrupted: SIGINT or SIGTERM came; the state was saved first.
        DoprError: the work failed.
    """
    changes = {**parse_words(words), **whole_keys(settings)}
    config = configuration(experiment, changes, resume=resume, force=force)
    from dopr_robot.training import from_main, train  # a mistake above is told without torch

    named = "name" in changes
    folder = Path(resume) if resume is not None else Path(out) if out is not None else None
    data: list[TrainingData] = []  # of the process that prepares; the others load it themselves

    def prepare() -> Path:
        # Under several processes the first one alone names and makes the folder.
        place = folder or Run.free_folder(config.name, given=named)
        config.name = place.name
        if resume is None:
            collect_missing(config)
        if folder is None or not folder.exists():
            data.append(begin(config, place))
        else:
            with held(folder):  # nothing is said of a run that another process is training
                data.append(begin(config, place))
        return place

    place = from_main(prepare, cpu=config.training.device == "cpu")
    config.name = place.name
    rollout = selection_rollout(config) if config.training.rollout_every else None
    train(config, place, rollout, data[0] if data else None, profile=profile)
    return Run(place)


def configuration(
    experiment: Experiment | None = None,
    changes: Mapping[str, Any] | Sequence[str] = (),
    *,
    resume: str | os.PathLike[str] | None = None,
    force: bool = False,
) -> RunConfig:
    """What :func:`train` trains with; arguments and errors are its."""
    if resume is None:
        if isinstance(experiment, RunConfig):
            if changes:
                raise UserError(f"a configuration is whole: set {next(iter(changes))} in it")
            return deepcopy(experiment)  # which is named, and may be used again
        return compose_config(None if experiment is None else os.fspath(experiment), changes)
    if experiment is not None:
        raise UserError(f"--resume {resume} has a configuration of its own: leave {experiment!r} out")
    path = str(Run(resume).folder / "config.yaml")
    before, after = compose_config(path), compose_config(path, changes)
    changed = _differences(asdict(before), asdict(after))
    if changed and not force:
        raise UserError(
            f"resuming with other settings ({'; '.join(changed)}) is another experiment: add --force if it is meant"
        )
    return after


def selection_rollout(config: RunConfig) -> Any:
    """What ``training.rollout_every`` calls: ``policy -> {"success_rate": ...}``, from the same initial states each time."""
    from dopr_robot.envs import Task
    from dopr_robot.evaluation.selection import SelectionRollout
    from dopr_robot.training.data import settled_task

    told = settled_task(config)
    if told.name is None:
        raise UserError("training.rollout_every needs a task to roll out in: set task, or training.rollout_every=0")
    return SelectionRollout(
        Task(told.name, told.options or {}), config.training.rollout_episodes, num_envs=config.evaluation.num_envs
    )


def collect_missing(config: RunConfig) -> None:
    """Make the store, where it is not there and the configuration says how, as ``dopr collect`` does.

    What is collected lies beside its place until it is whole, so that a call after a stop goes on, and no part of it is ever trained on.

    Raises:
        UserError: as :func:`dopr_robot.collect`.
        DoprError: the expert fails too often.
    """
    from dopr_robot.training.demonstrations import collect_command, is_missing

    number = config.collect.demonstrations
    if number is None or not is_missing(config) or not (command := collect_command(config, number)):
        return
    from dopr_robot.collection.collect import collect
    from dopr_robot.envs import get_task

    about, task, place = config.collect, get_task(config.task.name or ""), Path(config.data.store or "")
    beside = place.with_name(f"{place.stem}.unfinished{place.suffix}")
    tell(
        f"{place} is not there: {'going on with' if beside.exists() else 'first'} {number} demonstrations of {task.id}, as by `{command}`"
    )
    collect(
        task.id,
        number,
        beside,
        noise=about.noise,
        options=config.task.options,
        cameras=about.cameras,
        camera_size=about.camera_size,
        source=about.source,
    )
    beside.rename(place)


def begin(config: RunConfig, folder: Path) -> "TrainingData":
    """Make the run folder, with the configuration in it, once the configuration is known to fit its store; say what is to be known.

    Returns:
        The data that was loaded for that.
    """
    from dopr_robot.policies import make_policy
    from dopr_robot.training import build_optimizer, import_tracker, load_data, write_config
    from dopr_robot.training.advice import without_effect
    from dopr_robot.training.data import short_episodes

    if config.training.tracker:
        import_tracker(config.training.tracker)
    rollout = selection_rollout(config) if config.training.rollout_every else None
    data = load_data(config)
    if rollout is not None:
        rollout.task.seen_by({key: each.shape for key, each in data.spec.observations.items()}).check_drawing()
    config.task = data.task
    policy = make_policy(config.policy, data.spec)
    build_optimizer(policy, config)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "config.yaml").exists():
        write_config(config, folder)
    tell(
        f"{folder}: {config.policy['name']} under {config.optimizer['name']}, {len(data.train):,} windows of "
        f"{len(data.train.episodes)} episodes, {config.training.steps:,} steps of {config.training.batch_size}"
    )
    if still := policy.hardly_moved(data.statistics):
        named = ", ".join(f"{key}{entries}" for key, entries in still.items())
        LOG.warning("%s hardly move in the demonstrations and are not stretched", named)
    if short := short_episodes(data.train):
        LOG.warning("%s", short)
    if idle := without_effect(config):
        LOG.warning("without full effect: %s", "; ".join(idle))
    return data


def _differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in before.keys() | after.keys():
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key}: {old} -> {new}")
    return sorted(found)
