"""What is in a store, a run or a checkpoint."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from dopr_robot.datasets import is_store
from dopr_robot.evaluation.reports.about_store import StoreDescription

if TYPE_CHECKING:
    from dopr_robot.evaluation.reports.about_run import RunDescription


def info(path: str | os.PathLike[str]) -> "StoreDescription | RunDescription":
    """What is in a store, a run or a checkpoint, as ``dopr info`` prints it.

    >>> print(info("data/pick_place.zarr"))                                     # doctest: +SKIP
    >>> info("runs/pick_place").write_page("run.html")                          # doctest: +SKIP

    Raises:
        UserError: it is none of these.
    """
    path = os.fspath(path)
    if is_store(path):
        return StoreDescription(path)
    from dopr_robot.evaluation.reports.about_run import RunDescription  # a store is shown without torch

    return RunDescription.of(Path(path))
