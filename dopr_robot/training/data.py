"""From a store to what a policy is trained on."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dopr_robot.datasets import Batch, Store, Windows, split_episodes, statistics
from dopr_robot.envs import Task, TaskSpec, get_task
from dopr_robot.envs.task import varied
from dopr_robot.errors import UnknownNameError, UserError
from dopr_robot.images import is_image
from dopr_robot.policies import ArraySpec, Policy, PolicySpec
from dopr_robot.training.config import RunConfig, TaskConfig
from dopr_robot.training.demonstrations import open_store


@dataclass(frozen=True)
class TrainingData:
    """Windows of the two splits, statistics of the training split, the interface that the store implies, and the task."""

    train: Windows
    validation: Windows | None
    statistics: dict[str, dict[str, NDArray[np.float64]]]
    spec: PolicySpec
    task: TaskConfig


def load_data(config: RunConfig) -> TrainingData:
    """Open the store that the configuration names and split it.

    Raises:
        UserError: no store, keys that it does not have, another task's store or one of other options, another control rate or shape than
            the task's, NaN, or too few windows for a batch.
    """
    store = open_store(config)
    if not store.num_episodes:
        raise UserError(f"{store.path} holds no episode yet")
    task = _task(config.task, store)
    observations = config.data.observations or store.observations
    if not observations:
        raise UserError(
            f"{store.path} does not say which keys are observations: data.observations=[...] (keys: {', '.join(store.keys)})"
        )
    if config.data.action in observations:
        raise UserError(
            f"data.observations has {config.data.action!r}, which is the action that is learned: leave one of the two out"
        )
    for key in (*observations, config.data.action):
        if key not in store.keys:
            raise UserError(f"{store.path} has no key {key!r}: it has {', '.join(store.keys)}")
    for key in (*observations, config.data.action):
        if store.keys[key].dtype.kind not in "fiub":
            numbers = ",".join(name for name in observations if store.keys[name].dtype.kind in "fiub")
            raise UserError(
                f"{store.path} holds {store.keys[key].dtype} in {key!r}, and a policy reads and gives numbers: "
                f"data.observations=[{numbers}]"
            )
    _check_task(store, task, observations, config.data.action)
    steps = {key: config.policy[key] for key in ("n_obs_steps", "horizon", "n_action_steps")}
    spec = PolicySpec(
        observations={key: _array_spec(store, key) for key in observations},
        action=_array_spec(store, config.data.action),
        task=task.name,
        task_options=task.options or {},
        action_meaning=store.attributes.to_json()["action"],
        **steps,
    )
    episodes = min(config.data.max_episodes or store.num_episodes, store.num_episodes)
    train, held_out = split_episodes(episodes, config.data.validation_fraction, config.training.seed)

    def windows(chosen: NDArray[np.int64]) -> Windows:
        return Windows(store, observations, config.data.action, episodes=chosen, **steps)

    # Images have a range of their own, and are too many to read for one.
    vectors = [key for key, each in spec.observations.items() if not is_image(each.shape, each.dtype)]
    data = TrainingData(
        train=windows(train),
        validation=windows(held_out) if len(held_out) else None,
        statistics=_named(statistics(store, [*vectors, config.data.action], train), config.data.action),
        spec=spec,
        task=task,
    )
    for key, found in data.statistics.items():
        if not all(np.isfinite(value).all() for value in found.values()):
            raise UserError(
                f"{store.path} holds NaN or inf in {key!r}: dopr info {store.path} --check names the episodes"
            )
    if len(data.train) < config.training.batch_size:
        short = short_episodes(data.train)
        raise UserError(
            f"training.batch_size={config.training.batch_size} is more than the {len(data.train)} windows of {store.path}: "
            + (f"{short}. Lower policy.horizon or training.batch_size" if short else "lower it or collect more")
        )
    return data


def short_episodes(windows: Windows) -> str:
    """How many episodes are too short for the windows asked for, in words; empty where none is."""
    if not len(windows.short):
        return ""
    least = windows.horizon - windows.n_obs_steps - windows.n_action_steps + 2
    return (
        f"{len(windows.short)} of {len(windows.episodes)} episodes have fewer than {least} steps, which policy.horizon={windows.horizon} "
        "asks for: they give one window each, their last step repeated"
    )


def _registered(name: str) -> bool:
    try:
        get_task(name)
    except UnknownNameError:
        return False
    return True


def task_id(name: str | None) -> str | None:
    """The Gymnasium id of a task that may be given by its bare name; a task that is not registered stays as it is."""
    return get_task(name).id if name and _registered(name) else name


def settled_task(config: RunConfig) -> TaskConfig:
    """The task of a run with its options: what the configuration says, and else its store. Raises UserError where the two differ."""
    return config.task if config.data.store is None else _task(config.task, open_store(config))


def _task(wanted: TaskConfig, store: Store) -> TaskConfig:
    about, name = store.attributes, task_id(wanted.name)
    if name and about.task and name != task_id(about.task):
        raise UserError(
            f"task={wanted.name} but {store.path} holds demonstrations of {about.task}: leave task out, or use its store"
        )
    name = name or about.task
    theirs = varied(about.options)
    options = theirs if wanted.options is None else varied(wanted.options)
    if name and _registered(name):
        options = dict(Task(name, options).options)
    if about.task and options != theirs:
        raise UserError(
            f"task.options={options} but {store.path} was collected with {theirs or 'none'}: leave task.options out, or use its store"
        )
    return TaskConfig(name, options)


def _check_task(store: Store, of: TaskConfig, observations: Sequence[str], action: str) -> None:
    """Raise UserError where the task gives no such observation, runs at another control rate than the store, or has other shapes."""
    if of.name is None or not _registered(of.name):
        return  # trained for a task that is not here
    spec = get_task(of.name)
    strangers = [key for key in observations if key not in {*spec.observations, *spec.cameras}]
    if strangers:
        raise UserError(
            f"{spec.id} does not give the observation {strangers[0]!r} of {store.path}, so what reads it could not be evaluated: "
            f"{_mend(store, spec, observations)}"
        )
    if "env_args" in spec.options:  # a robomimic file's environment may have options of its own
        return
    rate = store.attributes.control_hz
    if rate and not math.isclose(rate, spec.control_hz, rel_tol=1e-3):
        raise UserError(
            f"{store.path} was recorded at {rate:g} Hz, {spec.id} runs at {spec.control_hz:g} Hz: "
            f"dopr edit {store.path} OUT --rate {spec.control_hz:g}"
        )
    shapes = {key: shape for key, shape in spec.observations.items() if key in observations}
    for key, shape in (shapes | {action: (len(spec.action.names),)}).items():
        if tuple(store.keys[key].shape) != tuple(shape):
            raise UserError(
                f"{store.path} holds {key!r} of shape {list(store.keys[key].shape)}, {spec.id} has {list(shape)}: "
                "is it another task's, or recorded with other options?"
            )


def _mend(store: Store, spec: TaskSpec, observations: Sequence[str]) -> str:
    """What makes the store's observations those of the task, which gives others."""
    given = ", ".join(f"{key} {list(shape)}" for key, shape in spec.observations.items())
    present = [key for key in observations if key in {*spec.observations, *spec.cameras}]
    if present:
        return f"data.observations=[{','.join(present)}] (it gives {given})"
    for name, shape in spec.observations.items():
        alike = [key for key in observations if tuple(store.keys[key].shape) == tuple(shape)]
        if len(alike) == 1:
            return f"dopr edit {store.path} OUT --rename {alike[0]}={name} (it gives {given})"
    return f"it gives {given}: dopr edit {store.path} OUT --rename KEY=NAME, or --task none for another task's"


def to_tensors(batch: Batch, device: torch.device | str) -> dict[str, Any]:
    """A batch of arrays as tensors on the device; numbers become float32, uint8 stays as it is until the policy reads it."""

    def tensor(array: NDArray[Any]) -> torch.Tensor:
        value = torch.from_numpy(array)
        value = value if value.dtype == torch.uint8 else value.float()
        return value.to(device, non_blocking=True)

    return {
        "observation": {key: tensor(array) for key, array in batch["observation"].items()},
        "action": tensor(batch["action"]),
    }


def whole_split(windows: Windows, device: torch.device | str, batch_size: int = 256) -> Iterator[dict[str, Any]]:
    """Every window once, in order, in batches: what :meth:`Policy.fit` looks at."""
    for start in range(0, len(windows), batch_size):
        yield to_tensors(windows.batch(np.arange(start, min(start + batch_size, len(windows)))), device)


@torch.no_grad()
def validation_loss(policy: Policy, windows: Windows, *, max_windows: int = 4_096, batch_size: int = 256) -> float:
    """Mean training loss over held-out windows, evenly spaced, under noise that is the same at every call."""
    device = next(policy.parameters()).device
    chosen = np.linspace(0, len(windows) - 1, min(max_windows, len(windows))).round().astype(np.int64)
    was_training = policy.training
    policy.eval()
    total = 0.0
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        for start in range(0, len(chosen), batch_size):
            indices = chosen[start : start + batch_size]
            total += policy.loss(to_tensors(windows.batch(indices), device))[0].item() * len(indices)
    policy.train(was_training)
    return total / len(chosen)


def _array_spec(store: Store, key: str) -> ArraySpec:
    info = store.keys[key]
    return ArraySpec(tuple(info.shape), "uint8" if info.dtype == np.uint8 else "float32")


def _named(found: dict[str, dict[str, NDArray[np.float64]]], action: str) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Statistics under the names that policies use: the action is ``action`` whatever the store calls it."""
    return {("action" if key == action else key): value for key, value in found.items()}
