"""Episode records: one JSON object a line, appended and flushed as episodes end. Everything reported is computed from them."""

import json
import os
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

from dopr_robot.errors import DamagedError, UserError
from dopr_robot.files import naming, replacing
from dopr_robot.reading import Maybe, read_json, read_json_lines

RECORDS, RESULTS = "episodes.jsonl", "results.json"
KINDS = ("attain", "sustain")
_SHARE = {"success_rate": float, "ci95": (float, float)}
_POINT = {"horizon": range(1, 2**63), "episodes": range(2**63), "successes": range(2**63), **_SHARE}
_MEAN = {"mean": float, "ci95": Maybe((float, float))}
_RETURN = {"horizon": range(1, 2**63), "episodes": range(2**63), **_MEAN}
RESULTS_FORM = {
    "task": str, "kind": str, "use": str, "seed": int, "episodes": range(2**63), "partial": bool, "env_options": dict,
    "checkpoint": Maybe({"path": str | None, "step": int | None, "sha256": str}), "horizons": [range(1, 2**63)],
    "curve": [_POINT], "lengths": Maybe([{"length": int, **_POINT, "return": Maybe(_MEAN)}]),
    "perturbed": Maybe([{
        "options": dict, "curve": [_POINT], "difference": {"mean": float, "ci95": (float, float)}, "returns": Maybe([_RETURN]),
        "return_differences": Maybe([{"horizon": range(1, 2**63), "mean": float, "ci95": (float, float)}]),
    }]),
    "outcomes": {str: int}, "causes": Maybe({str: int}),
    "metrics": {str: _MEAN}, "returns": Maybe([_RETURN]),
    "validation_loss": float | None, "faults": Maybe([str]),
}  # fmt: skip
"""What is read of ``results.json``, see :mod:`dopr_robot.reading`."""
OUTCOMES = ("success", "timeout", "failure", "exception")
_COUNT, _STEP = range(2**63), range(1, 2**63)
FORM = {
    "episode": _COUNT, "seed": _COUNT, "initial_state_sha256": str | None, "outcome": str, "first_success_step": Maybe(_STEP),
    "first_failure_step": Maybe(_STEP), "length": _COUNT, "return": float, "error": str | None, "cause": str | None,
    "metrics": Maybe({str: float}), "stages": Maybe({str: _STEP}),
    "returns": Maybe({str: float}),
}  # fmt: skip
"""Of a line, see :mod:`dopr_robot.reading`."""


@dataclass(frozen=True)
class EpisodeRecord:
    """What happened in one episode. No field comes from a clock, so two runs of one evaluation give equal records.

    Steps count from 1 (the h-th ``env.step``); None = never. Success at horizon h: for an *attain* task
    ``first_success_step <= h``, for a *sustain* task ``first_failure_step`` None or ``> h``; an exception is a failure at every
    horizon.

    Attributes:
        episode: number of the episode inside the evaluation, from 0.
        seed: the integer given to ``env.reset``.
        initial_state_sha256: of the physics state after the reset, or of the observation where the task does not give one.
        outcome: one of :data:`OUTCOMES`; "timeout" in attain tasks only.
        first_success_step: attain tasks: the first step after which the task was done.
        first_failure_step: the step after which the task had failed for good.
        length: steps taken.
        return_: sum of rewards (the key in the file is ``return``).
        error: an exception's type and message.
        cause: what the task names as the failure's cause.
        metrics: the task's own figures, e.g. ``{"coverage": 0.93}``.
        stages: of a task in stages: the first step after which each was done; those that never were are not named.
        returns: of a task whose reward says more than success: the sum of rewards up to each horizon that was reached, by its step;
            see :meth:`return_at`. Older records have none.
    """

    episode: int
    seed: int
    initial_state_sha256: str | None
    outcome: str
    first_success_step: int | None
    first_failure_step: int | None
    length: int
    return_: float
    error: str | None = None
    cause: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    stages: dict[str, int] = field(default_factory=dict)
    returns: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.outcome not in OUTCOMES:
            raise ValueError(f"outcome {self.outcome!r} is none of {', '.join(OUTCOMES)}")

    def return_at(self, horizon: int) -> float | None:
        """The sum of rewards up to a step; after the episode's end nothing more is earned. None where the record does not say."""
        return self.return_ if horizon >= self.length else self.returns.get(str(horizon))

    def to_json(self) -> str:
        """One line, without its end."""
        content = asdict(self)
        return json.dumps(
            {("return" if key == "return_" else key): value for key, value in content.items()}, allow_nan=False
        )

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "EpisodeRecord":
        """The record in a parsed line; keys that this version does not know are passed over."""
        known = {f.name for f in fields(cls)}
        named = {("return_" if key == "return" else key): value for key, value in content.items()}
        return cls(**{key: value for key, value in named.items() if key in known})


def read_records(path: str | Path) -> list[EpisodeRecord]:
    """All whole records of a file, in the order of ``episode``.

    A last line without its end is the trace of a kill, and passed over. Raises UserError where there is no file and
    DamagedError, naming the line, for anything else that is no record.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not there: an evaluation folder has an episodes.jsonl")
    records = []
    for number, content in enumerate(read_json_lines(path, FORM), start=1):
        try:
            records.append(EpisodeRecord.from_dict(content))
        except ValueError as error:
            raise DamagedError(f"{path}, line {number}: not an episode record ({error})") from None
    records.sort(key=lambda record: record.episode)
    for before, after in pairwise(records):
        if before.episode == after.episode:
            raise DamagedError(f"{path}: episode {after.episode} is recorded twice")
    return records


def read_results(folder: str | Path) -> dict[str, Any]:
    """``results.json`` of an evaluation folder. Raises UserError where there is none, and DamagedError where it is damaged."""
    path = Path(folder) / RESULTS
    try:
        content: dict[str, Any] = read_json(path, RESULTS_FORM)
    except FileNotFoundError:
        raise UserError(f"{folder} is no evaluation: it holds no {RESULTS}") from None
    if content["kind"] not in KINDS or not content["horizons"]:
        raise DamagedError(
            f"{path} is not a result of dopr eval: its kind is {content['kind']!r}, its horizons {content['horizons']}"
        )
    return content


class RecordWriter:
    """Appends records to a file and flushes each, so that a kill costs at most the line being written.

    An unfinished last line of an earlier run is cut off first. :meth:`sort` puts the lines in the order of ``episode``.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = self.path.open("ab")
        whole = self.path.read_bytes().rfind(b"\n") + 1
        self._file.truncate(whole)

    def append(self, record: EpisodeRecord) -> None:
        """Write one record. Raises OSError where it cannot be written (a full disk)."""
        # One unbuffered write for the whole line: what is kept in a buffer after an error would be written again at the close.
        line = (record.to_json() + "\n").encode()
        with naming(self.path):
            written = os.write(self._file.fileno(), line)
            if written != len(line):
                os.write(self._file.fileno(), line[written:])

    def sort(self) -> None:
        """Put the lines in the order of ``episode``; the file is replaced whole."""
        records = read_records(self.path)
        with replacing(self.path) as beside:
            beside.write_text("".join(record.to_json() + "\n" for record in records), encoding="utf-8")

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
