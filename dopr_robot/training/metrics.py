"""Where a run's figures go: ``metrics.jsonl``, TensorBoard, and a service where one is asked for."""

import json
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dopr_robot.errors import DamagedError, MissingExtraError
from dopr_robot.files import naming, replacing
from dopr_robot.reading import parse_json, read_bytes, read_json_lines, require

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

PROJECT = "dopr_robot"
FIGURES = ("validation_loss", "validation_loss_without_ema", "success_rate", "return")
"""What studies read of the log."""


def import_tracker(name: str) -> ModuleType:
    """The module ``wandb`` or ``trackio``. Raises MissingExtraError where it is not installed."""
    try:
        return __import__(name)
    except ModuleNotFoundError:
        raise MissingExtraError(f"training.tracker={name}", name) from None


class MetricsLog:
    """``metrics.jsonl``, TensorBoard and a tracker; what an interrupted run logged beyond ``start`` is dropped.

    Args:
        folder: the run's.
        start: step from which the run goes on.
        tracker: ``wandb``, ``trackio`` or None. Both are used as their users know them: keys, hosts and offline modes are the
            environment variables that they read (``WANDB_MODE=offline``).
        config: the run's settings, for the tracker.
    """

    def __init__(self, folder: Path, start: int, tracker: str | None = None, config: Mapping[str, Any] | None = None):
        self.folder, self.start = folder, start
        self.path = folder / "metrics.jsonl"
        if self.path.exists():
            lines = [line for line in read_bytes(self.path).split(b"\n") if _step_of(line) <= start]
            with replacing(self.path) as beside:
                beside.write_bytes(b"".join(line + b"\n" for line in lines))
        self.tracker: Any = None
        if tracker:
            module = import_tracker(tracker)
            # One run of the service for one run folder, however often it is resumed.
            options = {"id": folder.name, "dir": str(folder)} if tracker == "wandb" else {}
            self.tracker = module.init(
                project=PROJECT, name=folder.name, config=dict(config or {}), resume="allow", **options
            )

    @cached_property
    def board(self) -> "SummaryWriter":
        """TensorBoard's, made for the first figure: its import is a tenth of what passes before the first step."""
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.start + 1 if self.start else None)

    def write(self, step: int, values: Mapping[str, float], seconds: float) -> None:
        """Append one line and flush it; ``seconds`` of training went before."""
        self.event(step, {**values, "seconds": seconds})
        for name, value in values.items():
            self.board.add_scalar(name, value, step)
        if self.tracker is not None:
            self.tracker.log(dict(values), step=step)

    def event(self, step: int, content: Mapping[str, Any]) -> None:
        """A line of ``metrics.jsonl`` alone."""
        content = {key: _finite(value) for key, value in content.items()}
        with naming(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **content}, allow_nan=False) + "\n")

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        if "board" in vars(self):
            self.board.close()
        if self.tracker is not None:
            self.tracker.finish()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of a run folder's ``metrics.jsonl``."""
    return read_json_lines(
        folder / "metrics.jsonl", {"step": int, "seconds": float | None, **dict.fromkeys(FIGURES, float | None)}
    )


def _finite(value: Any) -> Any:
    """JSON has no word for NaN and inf."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _step_of(line: bytes) -> float:
    try:
        step: int = require(parse_json(line, "line"), {"step": int}, "line")["step"]
    except DamagedError:
        return math.inf  # a line that a kill cut short
    return step
