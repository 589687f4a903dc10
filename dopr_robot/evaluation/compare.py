"""Whether one run beats another: runs evaluated on common initial states, compared, and the comparison written down."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dopr_robot.errors import UserError
from dopr_robot.evaluation.comparison import compare_evaluated, load_evaluated, look, write_comparison
from dopr_robot.evaluation.evaluate import evaluate, evaluated
from dopr_robot.evaluation.reports.naming import method_labels
from dopr_robot.evaluation.rollouts.records import RESULTS, read_results
from dopr_robot.policies import find_checkpoint


class Comparison:
    """A comparison and where it lies.

    Attributes:
        folder: with ``comparison.json``, ``horizon.png``, ``difference.png`` and ``report.html``.
        content: ``comparison.json``, see :func:`~dopr_robot.evaluation.comparison.compare_evaluated`.
    """

    def __init__(self, folder: Path, content: dict[str, Any]) -> None:
        self.folder, self.content = folder, content

    @property
    def methods(self) -> list[dict[str, Any]]:
        """Label, runs and curve of each method."""
        return list(self.content["methods"])

    @property
    def pairs(self) -> list[dict[str, Any]]:
        """For each two methods the differences at every horizon, with intervals and p-values."""
        return list(self.content["pairs"])

    def __fspath__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        named = " against ".join(method["label"] for method in self.methods)
        return f"Comparison({str(self.folder)!r}: {named}, {self.content['episodes']} common initial states)"


def compare(
    runs: Sequence[str | os.PathLike[str]],
    *,
    episodes: int = 100,
    horizons: Sequence[int] | None = None,
    seed: int = 0,
    labels: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
    num_envs: int | None = None,
    sequential: bool = False,
    block: int = 20,
    out: str | os.PathLike[str] = "comparison",
) -> Comparison:
    """Compare runs on common initial states, as ``dopr compare`` does; runs that differ in the training seed alone are one method.

    >>> compare(["runs/adamw", "runs/dopr"], episodes=200).pairs                # doctest: +SKIP

    Args:
        runs: runs, run folders, checkpoints or evaluation folders; those without such an evaluation are evaluated.
        episodes: initial states; with ``sequential`` at most.
        horizons: control steps; None: 8 equal ones up to the task's longest.
        seed: block of initial states.
        options: of the task, over those that the runs were trained for; runs of different options are refused.
        labels: what the methods are called, in their order.
        num_envs: copies of the environment.
        sequential: two runs, ``block`` episodes between two looks, until an anytime-valid test decides.
        out: where it goes.

    Raises:
        UserError: fewer than two runs or methods, or runs that can not be compared.
    """
    paths, out = [Path(run) for run in runs], Path(out)
    if len(paths) < 2:
        raise UserError("a comparison needs at least two runs")
    for path in paths:  # before anything is evaluated
        if not (path / RESULTS).is_file():
            find_checkpoint(path)
    named = method_labels(paths, labels)
    ways: dict[str, Any] = {"horizons": horizons, "seed": seed, "num_envs": num_envs, "options": options}
    decision: dict[str, Any] | None = None
    if sequential:
        folders, decision = _sequentially(paths, [label for label, _ in named], episodes, block, out, ways)
    else:
        folders = [evaluated(path, episodes=episodes, **ways) for path in paths]
    found = [load_evaluated(folder, *label) for folder, label in zip(folders, named, strict=True)]
    result = compare_evaluated(found, horizons)
    result["sequential"] = decision
    write_comparison(result, found, out)
    return Comparison(out, result)


def _sequentially(
    runs: Sequence[Path], labels: Sequence[str], most: int, block: int, out: Path, ways: dict[str, Any]
) -> tuple[list[Path], dict[str, Any]]:
    """Evaluate two runs block by block until the test at the longest horizon decides, or there are enough episodes."""
    if len(runs) != 2:
        raise UserError(f"--sequential compares two runs, not {len(runs)}")
    if block < 1:
        raise UserError(f"--block {block} has to be at least 1")
    folders = [out / name for name in ("first", "second")]
    there = [read_results(folder)["episodes"] for folder in folders if (folder / RESULTS).is_file()]
    episodes = max(there, default=0)  # the same call goes on where it stopped
    while True:
        episodes = min(max(episodes, block), most)
        for run, folder in zip(runs, folders, strict=True):
            evaluate(run, episodes=episodes, video=0, out=folder, resume=True, **ways)
        decision = look(folders, labels)
        if decision["decided"] or episodes >= most:
            return folders, decision
        episodes += block
