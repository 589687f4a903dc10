"""What is in a store, a run, a checkpoint or a study's folder."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from dopr_robot.datasets import is_store
from dopr_robot.evaluation.reports.about_store import StoreDescription

if TYPE_CHECKING:
    from dopr_robot.evaluation.reports.about_run import RunDescription
    from dopr_robot.study.run import StudyResult


def info(path: str | os.PathLike[str]) -> "StoreDescription | RunDescription | StudyResult":
    """What is in a store, a run, a checkpoint or a study's folder, as ``dopr info`` prints it.

    >>> print(info("data/pick_place.zarr"))                                     # doctest: +SKIP
    >>> info("runs/pick_place").write_page("run.html")                          # doctest: +SKIP
    >>> info("studies/first").to_pandas()                                       # doctest: +SKIP

    Raises:
        UserError: it is none of these, or the study is not finished.
    """
    path = os.fspath(path)
    if is_store(path):
        return StoreDescription(path)
    from dopr_robot.study.run import ARMS, StudyResult  # a store is shown without torch

    if (Path(path) / ARMS).is_file():
        return StudyResult.of(path)
    from dopr_robot.evaluation.reports.about_run import RunDescription

    return RunDescription.of(Path(path))
