"""An evaluation folder as an object."""

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from dopr_robot.envs.task import in_words
from dopr_robot.evaluation.rollouts.records import RECORDS, EpisodeRecord, read_records, read_results
from dopr_robot.tables import InFolder, Shown, Table, interval

Points = Sequence[Mapping[str, Any]]


class Curve(Sequence[Mapping[str, Any]], Shown):
    """Success versus horizon: a point a horizon, as ``results.json`` has it, and columns as arrays.

    >>> curve = Curve([{"horizon": 50, "episodes": 4, "successes": 3, "success_rate": 0.75, "ci95": [0.3, 0.95]}], 10.0)
    >>> curve.horizon, curve.seconds, curve.success_rate, curve.low, curve[-1]["successes"]
    (array([50]), array([5.]), array([0.75]), array([0.3]), 3)

    Args:
        points: ``[{horizon, episodes, successes, success_rate, ci95}]``.
        control_hz: of the task, steps a second.
    """

    def __init__(self, points: Points, control_hz: float) -> None:
        self._points, self.control_hz = list(points), control_hz

    @property
    def horizon(self) -> NDArray[np.int64]:
        """Control steps ``[horizons]``."""
        return self._column("horizon", np.int64)

    @property
    def seconds(self) -> NDArray[np.float64]:
        """The horizons in seconds ``[horizons]``."""
        return self.horizon / self.control_hz

    @property
    def episodes(self) -> NDArray[np.int64]:
        """How many episodes each point is of ``[horizons]``."""
        return self._column("episodes", np.int64)

    @property
    def successes(self) -> NDArray[np.int64]:
        """How many of them were a success ``[horizons]``."""
        return self._column("successes", np.int64)

    @property
    def success_rate(self) -> NDArray[np.float64]:
        """In [0, 1], ``[horizons]``."""
        return self._column("success_rate", np.float64)

    @property
    def low(self) -> NDArray[np.float64]:
        """Lower bound of the 95 % interval ``[horizons]``: Wilson's, or, where episodes of several training seeds are pooled, a
        bootstrap's."""
        return np.array([point["ci95"][0] for point in self._points], np.float64)

    @property
    def high(self) -> NDArray[np.float64]:
        """Upper bound, likewise."""
        return np.array([point["ci95"][1] for point in self._points], np.float64)

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame``, a row a horizon. Raises ImportError where pandas, which nothing here depends on, is not installed."""
        import pandas

        columns = ("horizon", "seconds", "episodes", "successes", "success_rate", "low", "high")
        return pandas.DataFrame({name: getattr(self, name) for name in columns})

    def plain(self) -> list[dict[str, Any]]:
        """The points."""
        return [dict(point) for point in self._points]

    def _column(self, name: str, dtype: Any) -> NDArray[Any]:
        return np.array([point[name] for point in self._points], dtype)

    @overload
    def __getitem__(self, index: int) -> Mapping[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> "Curve": ...
    def __getitem__(self, index: int | slice) -> "Mapping[str, Any] | Curve":
        return Curve(self._points[index], self.control_hz) if isinstance(index, slice) else self._points[index]

    def __len__(self) -> int:
        return len(self._points)

    def _parts(self) -> Iterator[str | Table]:
        yield Table(
            ["horizon", "seconds", "success", "95 % interval"],
            [
                [
                    point["horizon"],
                    f"{point['horizon'] / self.control_hz:.1f}",
                    f"{point['success_rate']:.1%}",
                    interval(point["ci95"]),
                ]
                for point in self._points
            ],
        )

    def __repr__(self) -> str:
        points = (f"{point['horizon']}: {point['success_rate']:.1%}" for point in self._points)
        return f"Curve({', '.join(points)})"


class Results(InFolder):
    """What one evaluation found: ``results.json`` and the records that it is computed from. ``print`` shows what ``dopr eval`` does.

    >>> results = Results("runs/pick_place/eval/5000-seed0")                   # doctest: +SKIP
    >>> results.success_rate, results.curve.low, results.curve.to_pandas()     # doctest: +SKIP

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
    def curve(self) -> Curve:
        """Success versus horizon."""
        from dopr_robot.envs import get_task

        return Curve(self.content["curve"], get_task(self.task).control_hz)

    @property
    def success_rate(self) -> float:
        """At the longest horizon."""
        return float(self.content["curve"][-1]["success_rate"])

    @cached_property
    def episodes(self) -> list[EpisodeRecord]:
        """The records, in their order; ``pandas.DataFrame(results.episodes)`` is a table of them."""
        return read_records(self.folder / RECORDS)

    def plot(self) -> Any:
        """Success versus horizon as a matplotlib figure."""
        from dopr_robot.envs import get_task
        from dopr_robot.evaluation.reports import plots

        spec = get_task(self.task)
        title = f"{spec.id}: {len(self.episodes)} episodes"
        run = plots.Run("", self.episodes, self.curve.horizon.tolist())
        return plots.horizon_figure([run], self.content["kind"], spec.control_hz, title)

    def _parts(self) -> Iterator[str | Table]:
        content = self.content
        yield f"{in_words(self.task, content['env_options'])} ({content['kind']}), {content['episodes']} episodes"
        yield from self.curve._parts()
        if content.get("returns"):
            yield Table(
                ["horizon", "mean return", "95 % interval"],
                [[point["horizon"], f"{point['mean']:.1f}", spread(point)] for point in content["returns"]],
            )
        if content.get("lengths"):
            yield Table(
                ["length", "episodes", "success", f"95 % interval, at {content['horizons'][-1]} steps"],
                [
                    [point["length"], point["episodes"], f"{point['success_rate']:.1%}", interval(point["ci95"])]
                    for point in content["lengths"]
                ],
            )
            if by_length := [(point["length"], point["return"]) for point in content["lengths"] if point.get("return")]:
                yield Table(
                    ["length", "mean return", "95 % interval"],
                    [[length, f"{point['mean']:.1f}", spread(point)] for length, point in by_length],
                )
        if content.get("perturbed"):
            yield Table(
                ["under", "success", "95 % interval", "points", f"95 % interval, at {content['horizons'][-1]} steps"],
                [_perturbed(arm) for arm in content["perturbed"]],
            )
            if earned := [arm for arm in content["perturbed"] if arm.get("returns")]:
                yield Table(
                    ["under", "mean return", "95 % interval", "more", "95 % interval"], [_earned(arm) for arm in earned]
                )
        ends = [f"{count} {name}" for name, count in content["outcomes"].items() if count]
        ends += [f"{count} x {cause}" for cause, count in (content.get("causes") or {}).items()]
        yield "ended by: " + ", ".join(ends)
        for name, value in content["metrics"].items():
            bounds = value["ci95"] or (value["mean"], value["mean"])
            yield f"mean {name}: {value['mean']:.3f} (95 %: {interval(bounds, '{:.3f}')})"
        if content["validation_loss"] is not None:
            yield f"validation loss: {content['validation_loss']:.5f}"
        for fault in content.get("faults") or []:
            yield f"fault: {fault}"

    def _pictures(self) -> Sequence[Path]:
        more = [self.folder / "returns.png"] if self.content.get("returns") else []
        return [self.folder / "horizon.png", *more]

    def __repr__(self) -> str:
        last = self.content["curve"][-1] if self.content["curve"] else None
        rate = f"{last['success_rate']:.1%} at {last['horizon']} steps, " if last else ""
        return f"Results({str(self.folder)!r}: {self.task}, {rate}{self.content['episodes']} episodes)"


def spread(point: Mapping[str, Any]) -> str:
    """The interval of a mean return; of a single episode there is none."""
    return interval(point["ci95"] or (point["mean"], point["mean"]), "{:.1f}")


def _perturbed(arm: Mapping[str, Any]) -> list[str]:
    """A perturbed arm's row: its success, and the difference to the unperturbed one in points."""
    last, difference = arm["curve"][-1], arm["difference"]
    return [
        _under(arm),
        f"{last['success_rate']:.1%}",
        interval(last["ci95"]),
        f"{100 * difference['mean']:+.1f}",
        interval([100 * bound for bound in difference["ci95"]], "{:+.1f}"),
    ]


def _earned(arm: Mapping[str, Any]) -> list[str]:
    """Likewise of its return at the longest horizon."""
    last, difference = arm["returns"][-1], arm["return_differences"][-1]
    return [
        _under(arm),
        f"{last['mean']:.1f}",
        spread(last),
        f"{difference['mean']:+.1f}",
        interval(difference["ci95"], "{:+.1f}"),
    ]


def _under(arm: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value:g}" for name, value in arm["options"].items())
