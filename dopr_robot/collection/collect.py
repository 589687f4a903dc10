"""Demonstrations of a task into a store: from its expert, or from a few demonstrations of it."""

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dopr_robot import __version__
from dopr_robot.collection.experts import demonstrations
from dopr_robot.collection.replay import COLLECTED, collection
from dopr_robot.collection.transformation import SegmentExpert
from dopr_robot.datasets import ActionAttributes, Attributes, Store
from dopr_robot.envs import Task, get_task, load_segments
from dopr_robot.envs.workers import cores
from dopr_robot.errors import DoprError, UserError
from dopr_robot.progress import progress
from dopr_robot.seeds import BLOCK, block

TRIES = 20
"""Episodes that are tried for one that is asked for, before collecting is given up."""


def collect(
    task: str,
    episodes: int,
    out: str | os.PathLike[str],
    seed: int = 0,
    noise: float = 1.0,
    *,
    keep_failures: bool = False,
    options: Mapping[str, Any] | None = None,
    cameras: Sequence[str] = (),
    camera_size: int | tuple[int, int] | None = None,
    source: str | os.PathLike[str] | None = None,
    tries: int | None = None,
) -> Store:
    """Bring the store at ``out`` to ``episodes`` episodes of the task's expert, as ``dopr collect`` does.

    >>> collect("PickPlace", 150, "data/pick_place.zarr").num_episodes         # doctest: +SKIP
    150

    Args:
        task: a task's name.
        episodes: how many the store holds in the end.
        out: the store, new or to go on with.
        seed: block of initial states.
        noise: share of the expert's own.
        keep_failures: keep the episodes in which the expert fails too.
        options: of the task; they go into the store's attributes, and from there into what is trained on it.
        cameras: whose pictures are recorded beside the task's own observations.
        camera_size: of these pictures, a side or height and width; None: the task's own.
        source: a store whose successful demonstrations, transformed, are the expert; each episode's is noted in ``meta/source``.
        tries: how many episodes are tried at most; None: :data:`TRIES` for each that is missing, and 100 at least.

    Returns:
        The store, open to read.

    Raises:
        UserError: an unknown task, option or camera, a value out of its range, a task without an expert (without segments,
            where there is a source), a source that does not fit, or a store of another task, other options, noise or another source.
        DoprError: the expert fails so often that the tries, or the block of seeds, would not do. What was gathered is kept.
        SimulatorError: the simulator failed.
    """
    spec, out = get_task(task), Path(out)
    few = None if source is None else _few(spec, Path(source))
    if few is None and not spec.has_expert:
        hint = " or give a few of its demonstrations (--from)" if spec.segments else ""
        raise UserError(spec.without_expert + hint)
    if episodes < 1:
        raise UserError(f"--episodes {episodes} has to be at least 1")
    if tries is not None and tries < 1:
        raise UserError(f"--tries {tries} has to be at least 1")
    own = block("demonstrations", seed, BLOCK)
    if camera_size is not None and not cameras:
        raise UserError(f"--size {camera_size} is of pictures: --cameras names those that are recorded")
    views = {"cameras": cameras, "camera_size": camera_size} if camera_size is not None else {"cameras": cameras}
    wanted = Task(spec.id, {**(options or {}), **(views if cameras else {})})
    wanted.check_drawing()
    found = out.exists()
    store = Store.open(out) if found else Store.create(out, _attributes(wanted, noise, few))
    with store:
        if store.attributes.task != spec.id:
            raise UserError(
                f"{out} holds demonstrations of {store.attributes.task}, not of {spec.id}: choose another --out"
            )
        collected = collection(store.attributes)
        if (made := dict(store.attributes.options)) != wanted.options:
            raise UserError(
                f"{out} was collected with options {made}, not {dict(wanted.options)}: choose another --out"
            )
        if collected.get("noise", noise) != noise:  # a replay takes one for all episodes
            raise UserError(
                f"{out} was collected with --noise {collected['noise']:g}, not {noise:g}: choose another --out"
            )
        before, now = (about and about["sha256"] for about in (collected.get("from"), few and few.about))
        if before != now:
            whose = f"other demonstrations (of {collected['from']['store']})" if before else "the task's expert"
            raise UserError(f"{out} was collected from {whose}: choose another --out")
        missing = episodes - store.num_episodes
        used = [number for number in store.seeds.tolist() if number in own]
        seeds = range(max(used, default=own.start - 1) + 1, own.stop)
        if missing <= 0:
            return Store.open(out)
        tries = tries or max(100, TRIES * missing)
        tried, succeeded, held = 0, 0, store.num_episodes
        with progress(f"collect {spec.id}", episodes, "episodes", done=held) as meter:
            attempts = demonstrations(
                spec.id,
                seeds[:tries],
                noise=noise,
                num_envs=min(32, missing, (wanted.copies_per_core or 32) * cores()),
                keep_failures=True,
                make_expert=few.expert if few else None,
                **wanted.options,
            )
            try:
                for demonstration in attempts:
                    tried, succeeded = tried + 1, succeeded + demonstration.success
                    kept = demonstration.success or keep_failures
                    if kept:
                        number, success = demonstration.seed, demonstration.success
                        store.append(demonstration.arrays, seed=number, success=success, meta=demonstration.meta)
                        held += 1
                    meter.advance(int(kept), note=f"{succeeded} of {tried} tries succeeded")
                    if held == episodes:
                        break
            finally:
                attempts.close()  # the simulator's copies, now: in a cycle of references they would live on
                if not found and not store.num_episodes:  # what came to nothing leaves nothing
                    shutil.rmtree(out)
    if held == episodes:
        return Store.open(out)
    got = f"{held} of {episodes} episodes are in {out}" if held else "nothing was kept"
    mend = "--tries N tries more often" if tried == tries else f"block {seed} of seeds is used up: take another --seed"
    raise DoprError(f"{succeeded} of {tried} tries of {spec.id} succeeded and {got}: {mend}")


@dataclass(frozen=True)
class _Few:
    """Demonstrations to make more of: the store's attributes, what makes an expert of them, and what is noted of them."""

    attributes: Any
    expert: Any
    about: dict[str, Any]


def _few(spec: Any, source: Path) -> _Few:
    """The successful demonstrations of a store. Raises UserError where they are not what the task's segments need."""
    segments = load_segments(spec)
    if not source.exists():
        raise UserError(
            f"{source}: no such file or folder: `dopr convert SOURCE {source}` brings the few demonstrations"
        )
    if source.is_file() and source.suffix != ".zip":
        raise UserError(f"{source} is no store: dopr convert {source} STORE")
    store = Store.open(source)
    if store.attributes.task not in (None, spec.id):
        raise UserError(f"{source} holds demonstrations of {store.attributes.task}, not of {spec.id}")
    if store.attributes.control_hz not in (None, spec.control_hz):
        hint = f"dopr edit --rate {spec.control_hz:g}"
        raise UserError(f"{source} is at {store.attributes.control_hz:g} Hz, {spec.id} at {spec.control_hz:g}: {hint}")
    for key, shape in segments.keys.items():
        if key not in store.keys or tuple(store.keys[key].shape) != shape:
            has = ", ".join(f"{name} {list(info.shape)}" for name, info in store.keys.items())
            raise UserError(f"{source} has no {key} {list(shape)}, which {spec.id} is transformed by (it has: {has})")
    chosen = [index for index in range(store.num_episodes) if store.success[index] != 0]
    if not chosen:
        raise UserError(f"{source} holds no successful demonstration")
    arrays = [store.episode(index, list(segments.keys)) for index in chosen]
    digest = hashlib.sha256()
    for episode in arrays:
        for key in segments.keys:
            digest.update(episode[key].tobytes())
    about = {"store": source.name, "episodes": chosen, "sha256": digest.hexdigest()}
    return _Few(store.attributes, partial(SegmentExpert, task=segments, sources=arrays), about)


def _attributes(task: Task, noise: float, few: _Few | None) -> Any:
    spec = task.spec
    return Attributes(
        task=spec.id,
        options=dict(task.options),
        control_hz=spec.control_hz,
        observations=(*spec.observations, *task.options.get("cameras", ())),
        action=ActionAttributes(
            meaning=spec.action.meaning,
            absolute=spec.action.absolute,
            units=spec.action.units,
            names=tuple(spec.action.names),
            low=tuple(spec.action.low),
            high=tuple(spec.action.high),
        ),
        simulator="mujoco",
        simulator_version=version("mujoco"),
        source=f"dopr-robot {__version__}, " + (f"expert of {spec.id}" if few is None else f"from {_origin(few)}"),
        licence="Apache-2.0" if few is None else few.attributes.licence,
        provenance=()
        if few is None
        else (*few.attributes.provenance, f"segments transformed and replayed: {_origin(few)}"),
        # A replay needs them again.
        carried={COLLECTED: {"noise": noise, **({"from": few.about} if few else {})}},
    )


def _origin(few: _Few) -> str:
    count = len(few.about["episodes"])
    origin = f" ({few.attributes.source})" if few.attributes.source else ""
    return f"{count} demonstration{'s' if count > 1 else ''} of {few.about['store']}{origin}"
