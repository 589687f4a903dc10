"""Tasks of a study file: what an entry says of one, and for which tasks a pattern stands."""

import shlex
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dopr_robot.collection.several import store_places
from dopr_robot.envs import TaskSpec, get_task, matching_tasks, names_several
from dopr_robot.envs.task import words
from dopr_robot.errors import UserError


@dataclass
class TaskEntry:
    """A task of a study: its name, its demonstrations, its options (null: those of the store), which of the store's keys are observed
    (null: as the store says), horizons in control steps of its own, and, where its figure is a return, which returns by the longest of
    them count as 0 and as 1 (null: 0 and what the store's demonstrations earn, see :mod:`~dopr_robot.study.returns`).

    Entries of one task under the same options differ in their demonstrations (in noise, in number): ``variant`` says in a few words which
    these are, ``episodes`` how many of the store's, from its first, are used (null: all). What is summed up over tasks is summed up for
    each variant.

    A pattern over tasks or a group (``metaworld/easy``) with the folder of their stores stands for an entry a task; among the tasks that
    are tested it leaves out those of ``tune``.
    """

    task: str = ""
    store: str = ""
    options: dict[str, Any] | None = None
    observations: list[str] | None = None
    horizons: list[int] | None = None
    return_range: list[float] | None = None
    variant: str = ""
    episodes: int | None = None

    @property
    def label(self) -> str:
        """What the task is called in the study's tables: two entries may be one task under two options, or of two variants."""
        return " ".join([self.task, *words(self.options or {}), *self.variant.split()])


def each_task(entries: list[TaskEntry], without: Collection[str] = ()) -> list[TaskEntry]:
    """An entry for each task of a pattern or group but those ``without`` which it is meant, by id. Raises UserError where one has no store:
    none is left out of a mean unseen."""
    found = []
    for entry in entries:
        if not names_several(entry.task):
            found.append(entry)
            continue
        specs = [spec for spec in matching_tasks(entry.task) if spec.id not in without]
        places = store_places(specs, Path(entry.store))
        if missing := [str(place) for place in places.values() if not place.exists()]:
            raise UserError(
                f"{entry.task}: {len(missing)} of {len(places)} tasks have no store in {entry.store} ({missing[0]}): "
                f"dopr collect {shlex.quote(entry.task)} --episodes N --out {entry.store}"
            )
        found += [replace(entry, task=name, store=str(place)) for name, place in places.items()]
    return found


def task_of(label: str) -> TaskSpec:
    """The task of an entry's label."""
    return get_task(label.split(" ")[0])


@dataclass
class Tune:
    """Where hyperparameters are chosen instead of on the study's own tasks: on these, over all of them, once for each policy and optimizer.

    Args:
        tasks: none of the study's own.
        seeds: of initial weights, data order and noise; None: the study's.
    """

    tasks: list[TaskEntry] = field(default_factory=list)
    seeds: list[int] | None = None
