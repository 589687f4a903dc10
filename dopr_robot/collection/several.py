"""Demonstrations of several tasks: a store each, in one folder."""

import logging
import os
from pathlib import Path
from typing import Any

from dopr_robot.collection.collect import collect
from dopr_robot.datasets import Store, is_store
from dopr_robot.envs import TaskSpec, matching_tasks
from dopr_robot.errors import DoprError, UserError

LOG = logging.getLogger(__name__)


def collect_several(
    tasks: str, episodes: int, out: str | os.PathLike[str], seed: int = 0, noise: float = 1.0, **more: Any
) -> list[Store]:
    """Bring a store of each task of a pattern or group to ``episodes`` episodes of its expert, as ``dopr collect 'metaworld/*'`` does.

    >>> [store.num_episodes for store in collect_several("metaworld/hard", 10, "data/metaworld")]     # doctest: +SKIP
    [10, 10, 10, 10, 10, 10]

    The same call goes on where it was stopped. Tasks without an expert are left out, and named. Where an expert fails too often the other
    tasks are gone on with before that is raised.

    Args:
        tasks: a pattern over their ids, or a group: see :func:`dopr_robot.list_tasks`.
        episodes: how many each store holds in the end.
        out: the folder of the stores, each called by its task: ``assembly.zarr``.
        seed: block of initial states.
        noise: share of each expert's own.
        **more: as of :func:`dopr_robot.collect`, but for ``source``.

    Returns:
        The stores, in the order of the tasks' ids, open to read.

    Raises:
        UserError: no task matches or none has an expert, or what :func:`dopr_robot.collect` refuses.
        DoprError: experts failed too often, and which.
    """
    specs, out = matching_tasks(tasks), Path(out)
    chosen = [spec for spec in specs if spec.has_expert]
    if not chosen:
        raise UserError(
            f"{tasks}: none of the {len(specs)} tasks has an expert: bring demonstrations of your own (dopr convert)"
        )
    if more.get("source") is not None:
        raise UserError("--from is of one task: its demonstrations are no other's")
    if out.exists() and (not out.is_dir() or is_store(os.fspath(out))):
        raise UserError(f"{out} is no folder of stores: {tasks} are {len(chosen)} tasks, with a store each in --out")
    if without := [spec.id for spec in specs if not spec.has_expert]:
        LOG.warning("without an expert, and left out: %s", ", ".join(without))
    for spec in chosen:
        spec.check_installed()
    stores, failed = [], []
    for task, place in store_places(chosen, out).items():
        try:
            stores.append(collect(task, episodes, place, seed, noise, **more))
        except UserError:
            raise
        except DoprError as error:
            LOG.warning("%s", error)
            failed.append(task)
    if failed:
        raise DoprError(
            f"{len(failed)} of {len(chosen)} tasks have fewer than {episodes} episodes ({', '.join(failed)}): --tries N tries more often"
        )
    return stores


def store_places(specs: list[TaskSpec], folder: Path) -> dict[str, Path]:
    """Where each task's store lies in a folder of several, by id. Raises UserError where two have one name."""
    places: dict[str, Path] = {}
    for spec in specs:
        place = folder / f"{spec.name}.zarr"
        if place in places.values():
            raise UserError(f"two of the tasks are called {spec.name}: choose a pattern for one package's")
        places[spec.id] = place
    return places
