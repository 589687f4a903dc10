"""New stores from old ones. Each step takes a recording and gives another; nothing is read before it is written.

Every step adds a line of provenance. Statistics are no part of a store: they are computed from the steps that are trained on,
and by the LeRobot export from those it writes, so none can go stale.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dopr_robot.datasets.attributes import ActionAttributes, Attributes
from dopr_robot.datasets.episode import Episode
from dopr_robot.datasets.recording import Recording, read_store
from dopr_robot.datasets.store import Store
from dopr_robot.errors import UserError


def select(
    store: Store,
    *,
    success: bool = False,
    length: tuple[int, int | None] | None = None,
    known: NDArray[np.int8] | None = None,
) -> NDArray[np.int64]:
    """Episodes of a store that pass.

    Args:
        known: success of every episode (1, 0, -1: unknown), in place of what the store says.
        success: those that are known to have succeeded.
        length: ``(a, b)``: those with ``a <= steps < b``; None: no upper bound.
    """
    chosen = np.ones(store.num_episodes, bool)
    if success:
        known = store.success if known is None else known
        if store.num_episodes and (known < 0).all():
            raise UserError(
                f"{store.path}: does not say of any episode whether it succeeded: say it with --success-from KEY "
                f"(above 0 at any step; keys: {', '.join(store.keys)}) or --set-success true"
            )
        chosen &= known == 1
    if length is not None:
        low, high = length
        chosen &= (store.episode_lengths >= low) & (store.episode_lengths < (np.inf if high is None else high))
    return np.flatnonzero(chosen)


def subset(episodes: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """``count`` of the episodes, drawn without replacement, in their order; a larger subset of the same seed holds a smaller one."""
    if not 1 <= count <= len(episodes):
        raise UserError(f"--subset {count}: there are {len(episodes)} episodes to draw from")
    return np.sort(np.random.default_rng(seed).permutation(episodes)[:count])


def succeeded(store: Store, key: str) -> NDArray[np.int8]:
    """Of every episode, 1 where a key is above 0 at any of its steps, else 0."""
    if key not in store.keys:
        raise UserError(f"--success-from {key}: {store.path} has {', '.join(store.keys)}")
    return np.array([_any(key, store.episode(e, [key])[key]) for e in range(store.num_episodes)], np.int8)


def success_from(recording: Recording, key: str) -> Recording:
    """Episodes succeeded where a key is above 0 at any step: a task is attained once it is, whatever follows."""

    def episodes() -> Iterator[Episode]:
        for episode in recording.episodes:
            if key not in episode.arrays:
                raise UserError(f"--success-from {key}: there are {', '.join(episode.arrays)}")
            yield replace(episode, success=_any(key, episode.arrays[key]))

    return Recording(recording.attributes.with_provenance(f"success: {key} above 0 at any step"), episodes())


def _any(key: str, values: NDArray[Any]) -> bool:
    if values.dtype.kind not in "biuf":
        raise UserError(f"--success-from {key}: holds {values.dtype}, and numbers or flags are expected")
    return bool((values > 0).any())


def with_success(recording: Recording, success: Iterable[int]) -> Recording:
    """The same episodes, of which success (1, 0, -1: unknown) is known from elsewhere, in their order."""

    def episodes() -> Iterator[Episode]:
        for episode, known in zip(recording.episodes, success, strict=True):
            yield replace(episode, success=None if known < 0 else bool(known))

    return Recording(recording.attributes, episodes())


def merge(parts: Sequence[tuple[Store, Iterable[int]]]) -> Recording:
    """Episodes of several stores, one store after another.

    Raises UserError where keys, shapes, dtypes, control rates, tasks, their options or what an action means differ.
    """
    first = parts[0][0]
    for store, _ in parts[1:]:
        if store.keys != first.keys:
            different = next(
                key for key in sorted({*first.keys, *store.keys}) if first.keys.get(key) != store.keys.get(key)
            )
            kinds = [
                f"{key.dtype}{list(key.shape)}" if (key := each.keys.get(different)) else "absent"
                for each in (first, store)
            ]
            raise UserError(
                f"{store.path}: {different!r} is {kinds[1]}, and {kinds[0]} in {first.path}: "
                "bring them together with --keep, --drop or --rename first"
            )
        for name in ("control_hz", "task", "options", "action"):
            mine, theirs = getattr(first.attributes, name), getattr(store.attributes, name)
            if mine != theirs:
                raise UserError(
                    f"{store.path}: {name} is {_short(theirs)}, and {_short(mine)} in {first.path}: they cannot be merged"
                )
        if "task_index" in first.keys and _tasks(store) != _tasks(first):
            raise UserError(
                f"{store.path}: its task_index counts other tasks than {first.path}'s: they cannot be merged"
            )
    names = ", ".join(store.path for store, _ in parts)
    about = first.attributes
    if len(parts) > 1:
        history = dict.fromkeys(itertools.chain.from_iterable(store.attributes.provenance for store, _ in parts))
        about = replace(about, provenance=tuple(history)).with_provenance(f"merged: {names}")
    else:
        about = about.with_provenance(f"from {names}")
    episodes = itertools.chain.from_iterable(read_store(store, chosen).episodes for store, chosen in parts)
    return Recording(about, episodes)


def _tasks(store: Store) -> Any:
    return (store.attributes.carried.get("lerobot") or {}).get("tasks")


def _short(value: Any) -> str:
    if isinstance(value, ActionAttributes):
        kind = {True: "absolute ", False: "relative ", None: ""}[value.absolute]
        return f"{kind}{value.meaning or 'unknown'}"
    return repr(value)


def rename_keys(
    recording: Recording,
    keys: Iterable[str],
    *,
    keep: Sequence[str] = (),
    drop: Sequence[str] = (),
    names: Mapping[str, str],
) -> Recording:
    """Keep some keys (the action too, unless it is dropped), drop others, rename by ``{old: new}``; what formats recorded follows."""
    keys = list(keys)
    for key in (*keep, *drop, *names):
        if key not in keys:
            raise UserError(f"there is no key {key!r} (keys: {', '.join(keys)})")
    chosen = [key for key in keys if key not in drop and (not keep or key in keep or key == "action")]
    if not chosen:
        raise UserError("no key would be left")
    new = {key: names.get(key, key) for key in chosen}
    twice = next((name for name in new.values() if list(new.values()).count(name) > 1), None)
    if twice is not None:
        raise UserError(f"two keys would be called {twice!r}")
    about = recording.attributes
    carried = {name: _rename_carried(value, new) for name, value in about.carried.items()}
    changed = [f"dropped {key}" for key in keys if key not in new]
    changed += [f"renamed {key} to {name}" for key, name in new.items() if key != name]
    observations = tuple(new[key] for key in about.observations if key in new)
    about = replace(about, carried=carried, observations=observations)

    def episodes() -> Iterator[Episode]:
        for episode in recording.episodes:
            yield replace(episode, arrays={name: episode.arrays[key] for key, name in new.items()})

    return Recording(about.with_provenance("; ".join(changed)) if changed else about, episodes())


def _rename_carried(value: Any, new: Mapping[str, str]) -> Any:
    """A format's map from the store's keys to its own names, under the new keys."""
    if not isinstance(value, Mapping):
        return value
    return {
        field: {new[key]: name for key, name in entry.items() if key in new}
        if field in ("keys", "names") and isinstance(entry, Mapping)
        else entry
        for field, entry in value.items()
    }


def as_uint8(recording: Recording, keys: Sequence[str]) -> Recording:
    """Images that hold 0, 1, ..., 255 as floats, as uint8: exact, or refused."""

    def episodes() -> Iterator[Episode]:
        for index, episode in enumerate(recording.episodes):
            arrays = dict(episode.arrays)
            for key in keys:
                if key not in arrays:
                    raise UserError(f"there is no key {key!r} (keys: {', '.join(arrays)})")
                small = arrays[key].astype(np.uint8)
                if not (small == arrays[key]).all():
                    raise UserError(
                        f"{key} is not made of whole numbers from 0 to 255 (episode {index}): it would lose by --uint8"
                    )
                arrays[key] = small
            yield replace(episode, arrays=arrays)

    return Recording(recording.attributes.with_provenance(f"as uint8: {', '.join(keys)}"), episodes())


def resample(recording: Recording, hz: float) -> Recording:
    """Another control rate.

    Observations are those at the new instants: exact where they coincide with old ones, else interpolated between neighbours
    (vectors of floats) or the last one before (everything else). An absolute action is the target in force at the end of its
    new step; relative ones are added up over it (averaged where their unit is a speed, "/s"), except entries whose name says
    gripper or opening, which are targets in every common controller. Rewards are added up; flags (bool, or dones and the
    like) are true where one was. A rotation given as a relative vector is added up too, which is exact for small turns only.

    Raises UserError where the rate, or whether actions are absolute, is unknown.
    """
    about = recording.attributes
    if not 0 < hz < float("inf"):
        raise UserError(f"--rate {hz:g} has to be above 0")
    if about.control_hz is None:
        raise UserError("the control rate is unknown: add --hz HZ, the one that was recorded at")
    if about.action.absolute is None:
        raise UserError(
            "whether actions are absolute is unknown, and they are resampled differently: add --absolute or --relative"
        )
    ratio = about.control_hz / hz
    known = set(about.observations)

    def episodes() -> Iterator[Episode]:
        for index, episode in enumerate(recording.episodes):
            steps = len(next(iter(episode.arrays.values())))
            count = int(np.floor((steps - 1) / ratio + 1e-9)) + 1
            edges = (np.arange(count + 1) * ratio).astype(np.float64)  # in old steps
            arrays = {}
            for key, value in episode.arrays.items():
                observed = key in known or (not known and key != "action")
                arrays[key] = _resampled(key, value, edges, observed, about.action)
            if "action" in arrays and about.action.low:
                _within(arrays["action"], about.action, index)
            yield replace(episode, arrays=arrays)

    line = f"resampled from {about.control_hz:g} to {hz:g} Hz"
    return Recording(replace(about, control_hz=hz).with_provenance(line), episodes())


FLAGS = ("dones", "done", "terminals", "timeouts", "terminations", "truncations", "next_done", "next_success")
TARGETS = ("gripper", "opening")


def _resampled(
    key: str, value: NDArray[Any], edges: NDArray[np.float64], observed: bool, action: ActionAttributes
) -> NDArray[Any]:
    if key == "action" and value.dtype.kind == "f":
        held = value[_last_before(edges[1:], len(value))]
        if action.absolute:
            return held
        total = _added(value, edges)
        units = action.units if not isinstance(action.units, str) else (action.units,) * value.shape[-1]
        speed = np.array(["/s" in unit for unit in units] or [False])
        total = np.where(speed, total / np.diff(edges)[:, None], total)
        target = np.array([any(word in name.lower() for word in TARGETS) for name in action.names] or [False])
        return np.where(target, held, total).astype(value.dtype)
    if "reward" in key and value.dtype.kind == "f":
        return _added(value, edges).astype(value.dtype)
    if not observed and (value.dtype == bool or key in FLAGS):
        summed = _added(value.astype(np.float64), edges)
        return (summed > 0).astype(value.dtype)
    if observed and value.dtype.kind == "f" and value.ndim == 2:
        old = np.arange(len(value))
        return np.stack([np.interp(edges[:-1], old, column) for column in value.T], 1).astype(value.dtype)
    return value[np.floor(edges[:-1] + 1e-9).astype(int)]


def _last_before(edges: NDArray[np.float64], steps: int) -> NDArray[np.int64]:
    """Index of the old step that is in force just before each instant."""
    return np.clip(np.ceil(edges - 1e-9).astype(np.int64) - 1, 0, steps - 1)


def _added(value: NDArray[Any], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums over the new steps, a cut old step counted by its share; the last one takes what is left."""
    total = np.concatenate([np.zeros((1, *value.shape[1:])), np.cumsum(value, 0, dtype=np.float64)])
    at = np.minimum(np.arange(len(total)), len(value))
    flat = total.reshape(len(total), -1)
    edges = np.append(edges[:-1], len(value))
    sums = np.stack([np.diff(np.interp(edges, at, column)) for column in flat.T], 1)
    return sums.reshape(len(edges) - 1, *value.shape[1:])


def _within(actions: NDArray[Any], action: ActionAttributes, index: int) -> None:
    excess = np.maximum(actions - np.array(action.high), np.array(action.low) - actions).max()
    if excess > 1e-6:
        raise UserError(
            f"action: added up over a longer step it is {excess:.3g} beyond its bounds (episode {index}): "
            "such relative actions have no equal at a lower rate"
        )


def with_action(about: Attributes, absolute: bool | None) -> Attributes:
    """Attributes that say whether actions are targets."""
    return about if absolute is None else replace(about, action=replace(about.action, absolute=absolute))
