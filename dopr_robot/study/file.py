"""From a study file and ``key=value`` words to a study."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from dopr_robot.errors import UnknownNameError, UserError
from dopr_robot.settings import parse_words, plain, read_yaml, typed, typed_part
from dopr_robot.study.config import Study, StudyEvaluation
from dopr_robot.study.search import Search
from dopr_robot.study.tasks import TaskEntry, Tune
from dopr_robot.training.composition import check_sections
from dopr_robot.training.config import DataConfig, TrainingConfig


def load_study(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Study:
    """Read a study file, with ``key=value`` over it (``training.steps=100 seeds=[0,1]``).

    Raises:
        UnknownNameError: a key that a study does not have; the message names the closest.
        UserError: not a file, not YAML, or values that make no study.
    """
    values = read_yaml(Path(path), "study", [each.name for each in fields(Study)])
    for key, word in parse_words(overrides).items():
        _set(values, key.split("."), word)
    values = {key: value for key, value in values.items() if plain(value) is not None}
    _check_keys(values)
    for name, schema in (("data", DataConfig), ("training", TrainingConfig)):
        if isinstance(given := values.get(name), Mapping):
            check_sections({name: given})
            values[name] = typed_part(schema, given, name)
    return typed(Study, values)


def _set(values: dict[str, Any], path: Sequence[str], word: Any) -> None:
    for step in path[:-1]:
        if not isinstance(values.get(step), dict):
            values[step] = {}
        values = values[step]
    values[path[-1]] = word


def _check_keys(values: Mapping[str, Any]) -> None:
    """Keys of the study's own."""
    _known(values, Study, "study key")
    tune = plain(values.get("tune"))
    if isinstance(tune, Mapping):
        _known(tune, Tune, "key of tune")
    if isinstance(search := plain(values.get("search")), Mapping):
        _known(search, Search, "key of search")
    for name, tasks in (
        ("tasks", plain(values.get("tasks"))),
        ("tune.tasks", plain(tune.get("tasks") if isinstance(tune, Mapping) else None)),
    ):
        for task in tasks if isinstance(tasks, list) else []:
            if not isinstance(task, Mapping) or not {"task", "store"} <= task.keys():
                raise UserError(
                    f"{name}: {task!r} has to be of the form {{task: PickPlace, store: data/pick_place.zarr}}"
                )
            _known(task, TaskEntry, "key of a task")
    if isinstance(values.get("evaluation"), Mapping):
        _known(values["evaluation"], StudyEvaluation, "key of evaluation")


def _known(values: Mapping[str, Any], schema: Any, kind: str) -> None:
    known = [each.name for each in fields(schema)]
    for key in values:
        if key not in known:
            raise UnknownNameError(kind, str(key), known)
