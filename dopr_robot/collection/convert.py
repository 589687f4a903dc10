"""Demonstrations from one format to another, their task by its name."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dopr_robot.collection.rebuilding import rebuilt
from dopr_robot.datasets.formats import convert as convert_as
from dopr_robot.envs import get_task, recorded_task
from dopr_robot.errors import UserError
from dopr_robot.hub import local


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    read_as: str | None = None,
    write_as: str | None = None,
    task: str | None = None,
    hz: float | None = None,
    observations: Sequence[str] | None = None,
    absolute: bool | None = None,
    success_from: str | None = None,
    cameras: Sequence[str] = (),
    size: int | tuple[int, int] | None = None,
) -> int:
    """Bring demonstrations from one format to another, as ``dopr convert`` does.

    >>> convert("low_dim_v141.hdf5", "data/lift.zarr", task="robosuite/Lift-v0")      # doctest: +SKIP
    >>> convert("demo_v141.hdf5", "data/lift.zarr", cameras=["agentview"], size=84)   # doctest: +SKIP

    Args:
        source: a store, or a file or folder of another format; it is never modified. ``hf://user/name[/path]``: of a data set on the
            hub, see :func:`dopr_robot.fetch`.
        out: a path where nothing is yet; there only when it is whole.
        read_as: the format of ``source``; found out where None (a pickle has to be named).
        write_as: the format of ``out``; None: a store.
        task: that they show, whose names of observations, rate, meaning and bounds of the action are taken over.
        hz: control rate, where the source does not say it.
        observations: which keys are observations, likewise.
        absolute: whether actions are targets (True) or changes (False), likewise.
        success_from: episodes succeeded where this key is above 0 at any step.
        cameras: rebuild the observations by replaying the simulator's states (robosuite's and robomimic's files) with these cameras'
            pictures among them; every core works on it, and the same call goes on where one was stopped.
        size: of these pictures, a side or height and width; None: the task's own.

    Returns:
        The number of episodes.

    Raises:
        UserError: an unknown format or task, damage, or a source that says otherwise.
    """
    source = local(source)
    known: dict[str, Any] = {}
    if hz is not None:
        if hz <= 0:
            raise UserError(f"--hz {hz:g} has to be above 0")
        known["control_hz"] = hz
    if observations:
        known["observations"] = tuple(observations)
    if absolute is not None:
        known["absolute"] = absolute
    spec = get_task(task) if task else None
    rebuilt_by = None
    if cameras:
        if write_as is not None:
            raise UserError(f"--cameras makes a store: then dopr convert {out} OUT --to {write_as}")
        if observations:
            raise UserError("--cameras: the observations are the task's, leave --observations out")
        rebuilt_by = partial(rebuilt, out=Path(out), task=spec, cameras=cameras, size=size)
    elif size is not None:
        raise UserError(f"--size {size} is of pictures: --cameras names those that are made")
    return convert_as(
        os.fspath(source),
        Path(out),
        read_as=read_as,
        write_as=write_as,
        task=spec,
        find_task=recorded_task,
        success_key=success_from,
        rebuilt=rebuilt_by,
        **known,
    )
