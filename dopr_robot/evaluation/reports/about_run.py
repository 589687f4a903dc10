"""What is in a run or a checkpoint, as plain figures: what ``dopr info RUN`` prints."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dopr_robot.evaluation.reports.evaluation import write_run_report
from dopr_robot.evaluation.rollouts.records import read_results
from dopr_robot.policies import find_checkpoint
from dopr_robot.policies.checkpoint import read_description
from dopr_robot.tables import Shown, Table, interval


@dataclass(frozen=True)
class RunDescription(Shown):
    """A run or a checkpoint looked at.

    Attributes:
        path: which.
        kind: "run" or "checkpoint".
        step: of the checkpoint, where its folder says it.
        description: its ``policy.json``.
        evaluations: ``results.json`` of each of the run's.
    """

    path: Path
    kind: str
    step: int | None
    description: dict[str, Any]
    evaluations: list[dict[str, Any]]

    @classmethod
    def of(cls, path: Path) -> "RunDescription":
        """Of what lies at a path. Raises UserError where it is neither."""
        checkpoint = find_checkpoint(path)
        name = checkpoint.resolve().name
        return cls(
            path,
            "run" if checkpoint.parent.parent == path else "checkpoint",
            int(name) if name.isdigit() else None,
            read_description(checkpoint),
            [read_results(file.parent) for file in sorted(path.glob("eval/*/results.json"))],
        )

    def plain(self) -> dict[str, Any]:
        """The description, and the last point of every evaluation's curve."""
        finals = [results["curve"][-1] for results in self.evaluations]
        return {"kind": self.kind, "step": self.step, **self.description, "evaluations": finals}

    def _parts(self) -> Iterator[str | Table]:
        description = self.description
        trained = f"{description['policy']['name']}, trained for {description.get('task') or 'no task'}"
        yield f"{self.path}: {self.kind}, step {self.step}, {trained}"
        yield f"observes {description['To']} steps, predicts {description['H']}, executes {description['Ta']}"
        rows = [[name, each["shape"], each["dtype"]] for name, each in description["observations"].items()]
        yield Table(["key", "shape", "dtype"], [*rows, ["action", description["action"]["shape"], ""]])
        for result in self.evaluations:
            final = result["curve"][-1]
            success = (
                f"success at {final['horizon']} steps: {final['success_rate']:.1%} (95 %: {interval(final['ci95'])})"
            )
            partial = ", partial" if result["partial"] else ""
            yield f"{success}, {result['episodes']} episodes, seed block {result['seed']}{partial}"

    def write_page(self, out: str | os.PathLike[str]) -> None:
        """A page with training curve, settings and evaluations."""
        write_run_report(Path(out), self.path, self.kind, self.step, self.description)
