"""An evaluation folder as an object."""

import os
from functools import cached_property
from pathlib import Path
from typing import Any

from dopr_robot.evaluation.rollouts.records import RECORDS, EpisodeRecord, read_records, read_results


class Results:
    """What one evaluation found: ``results.json`` and the records that it is computed from.

    >>> results = Results("runs/pick_place/eval/5000-seed0")                   # doctest: +SKIP
    >>> results.success_rate, results.curve[-1]["ci95"]                        # doctest: +SKIP

    Args:
        folder: the evaluation's.

    Raises:
        UserError: it is none.
        DamagedError: it is damaged.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.content: dict[str, Any] = read_results(self.folder)
        """``results.json``."""

    @property
    def task(self) -> str:
        """The Gymnasium id."""
        return str(self.content["task"])

    @property
    def curve(self) -> list[dict[str, Any]]:
        """Success versus horizon: ``[{horizon, episodes, successes, success_rate, ci95}]``."""
        return list(self.content["curve"])

    @property
    def success_rate(self) -> float:
        """At the longest horizon."""
        return float(self.curve[-1]["success_rate"])

    @cached_property
    def episodes(self) -> list[EpisodeRecord]:
        """The records, in their order."""
        return read_records(self.folder / RECORDS)

    def plot(self) -> Any:
        """Success versus horizon as a matplotlib figure."""
        from dopr_robot.envs import get_task
        from dopr_robot.evaluation.reports import plots

        spec, horizons = get_task(self.task), [point["horizon"] for point in self.curve]
        title = f"{spec.id}: {len(self.episodes)} episodes"
        run = plots.Run("", self.episodes, horizons)
        return plots.horizon_figure([run], self.content["kind"], spec.control_hz, title)

    def __fspath__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        last = self.curve[-1] if self.curve else None
        rate = f"{last['success_rate']:.1%} at {last['horizon']} steps, " if last else ""
        return f"Results({str(self.folder)!r}: {self.task}, {rate}{self.content['episodes']} episodes)"
