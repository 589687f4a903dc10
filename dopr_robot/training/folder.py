"""A run folder: what a training left behind, and what was measured of it since."""

import json
import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dopr_robot.errors import UserError
from dopr_robot.files import check_name
from dopr_robot.tables import Table
from dopr_robot.training.config import RunConfig, load_config

if TYPE_CHECKING:
    from dopr_robot.policies import Policy
    from dopr_robot.training.checkpoints import Checkpoints

RUNS = Path("runs")
CONFIG = "config.yaml"


class Run:
    """A run folder, ``runs/<name>``; wherever a path is taken, a run may be given.

    >>> run = Run("runs/pick_place")                                             # doctest: +SKIP
    >>> run.config.optimizer["lr"], run.checkpoints.steps(), run.evaluations     # doctest: +SKIP

    Args:
        folder: which; it need not hold a checkpoint yet.

    Raises:
        UserError: it is no run folder.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if not (self.folder / CONFIG).is_file():
            raise UserError(f"{self.folder} is no run folder: it holds no {CONFIG}")

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> "Run | None":
        """The run that a run folder, one of its checkpoints or one of its evaluations, wherever that lies, is of; or None."""
        path = Path(path)
        for each in (path, *path.resolve().parents[:2]):
            if (each / CONFIG).is_file():
                return cls(each)
        try:
            results = json.loads((path / "results.json").read_text(encoding="utf-8"))
            home = Path(results["checkpoint"]["path"]).parents[1]
        except (OSError, ValueError, TypeError, KeyError, IndexError):
            return None
        return cls(home) if (home / CONFIG).is_file() else None

    @staticmethod
    def free_folder(name: str | None, *, given: bool = False, runs: Path = RUNS) -> Path:
        """Where a new run goes: ``runs/<name>``, or ``runs/<name>-2``, ... where that is taken.

        Raises UserError for a name that is no folder's, or, with ``given``, one that is taken.
        """
        name = check_name(name or "run", "name")
        first = folder = runs / name
        if given and first.exists():
            raise UserError(
                f"{first} exists: dopr train --resume {first} goes on with it, another name=... begins anew"
            )
        number = 2
        while folder.exists():
            folder = runs / f"{name}-{number}"
            number += 1
        return folder

    @property
    def name(self) -> str:
        """The folder's."""
        return self.folder.name

    @cached_property
    def config(self) -> RunConfig:
        """What it was trained with."""
        return load_config(self.folder / CONFIG)

    @property
    def checkpoints(self) -> "Checkpoints":
        """Its checkpoints, by step."""
        from dopr_robot.training.checkpoints import Checkpoints

        return Checkpoints(self.folder / "checkpoints")

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of its ``metrics.jsonl``. Raises DamagedError."""
        from dopr_robot.training.metrics import read_metrics

        return read_metrics(self.folder)

    @property
    def evaluations(self) -> list[Path]:
        """Folders of its evaluations, by name; :class:`~dopr_robot.evaluation.results.Results` opens one."""
        return sorted(file.parent for file in self.folder.glob("eval/*/results.json"))

    def policy(self, step: int | None = None, **options: Any) -> "Policy":
        """The policy of a checkpoint, the newest where ``step`` is None; ``options`` as of :func:`dopr_robot.load_policy`."""
        from dopr_robot.policies import load_policy

        return load_policy(self.folder if step is None else self.checkpoints.folder / str(step), **options)

    def evaluation_folder(self, name: str, *, resume: bool = False) -> Path:
        """``eval/<name>``, or ``eval/<name>-2``, ... where that is taken; with ``resume`` the last one that is."""
        return free_or_last(self.folder / "eval" / name, resume=resume)

    def _repr_html_(self) -> str:
        config, steps = self.config, self.checkpoints.steps()
        rows = [
            ["run", self.folder],
            ["task", config.task or ""],
            ["demonstrations", config.data.store or ""],
            ["policy", config.policy.get("name", "")],
            ["optimizer", f"{config.optimizer.get('name', '')}, lr {config.optimizer.get('lr', '')}"],
            ["step", f"{steps[-1] if steps else 0:,} of {config.training.steps:,}"],
            ["evaluations", len(self.evaluations)],
        ]
        return Table(["", ""], rows).html()

    def __fspath__(self) -> str:
        return str(self.folder)

    def __str__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and self.folder.resolve() == other.folder.resolve()

    def __hash__(self) -> int:
        return hash(self.folder.resolve())


def free_or_last(first: Path, *, resume: bool) -> Path:
    """``first``, or ``first-2``, ... where that is taken; with ``resume`` the last one that is."""
    numbered = [path for path in first.parent.glob(f"{first.name}-[0-9]*") if path.name.rsplit("-", 1)[1].isdigit()]
    numbered.sort(key=lambda path: int(path.name.rsplit("-", 1)[1]))
    taken = [folder for folder in (first, *numbered) if folder.exists()]
    if not taken:
        return first
    return taken[-1] if resume else first.with_name(f"{first.name}-{len(taken) + 1}")
