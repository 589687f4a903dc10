"""A study from its file to its report; finished arms are not run again."""

import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any

from dopr_robot.envs import get_task
from dopr_robot.errors import DamagedError, DoprError, UserError
from dopr_robot.evaluation import EpisodeRecord, read_records
from dopr_robot.evaluation.rollouts.horizons import check_horizons, default_horizons
from dopr_robot.evaluation.rollouts.rollout import cores
from dopr_robot.files import naming, replacing, write_json
from dopr_robot.locks import held
from dopr_robot.policies import make_policy
from dopr_robot.progress import progress
from dopr_robot.reading import read_json, read_json_lines
from dopr_robot.study.config import Arm, Study, label, load_study, short_labels
from dopr_robot.study.table import TABLE, read_summary, read_table
from dopr_robot.study.work import POLICY_FILES, TestJob, Trained, TrainJob, states_sha256
from dopr_robot.study.workers import answers
from dopr_robot.tables import Shown, Table
from dopr_robot.training import load_data
from dopr_robot.training.advice import without_effect

LOG = logging.getLogger(__name__)
ARMS, STUDY, REPORT = "arms.jsonl", "study.yaml", "report.html"
Record = dict[str, Any]
_POINT = {
    "step": int,
    "validation_loss": float | None,
    "validation_loss_without_ema": float | None,
    "success_rate": float | None,
}
FORM = {
    "task": str, "policy": str, "optimizer": str, "learning_rate": float, "seed": int, "config_sha256": str,
    "initial_weights_sha256": str, "first_batches_sha256": str, "first_loss": float | None, "weights_sha256": str | None,
    "selection_states_sha256": str | None, "selection_episodes": range(1, 2**31), "selection_successes": {str: int},
    "selection_return": float | None, "validation_loss": float | None, "curve": [_POINT], "state_bytes": range(2**63),
    "error": str | None, "cost": {"seconds_per_step": float | None, "seconds": [float]},
}  # fmt: skip
"""Of a line of ``arms.jsonl``, see :mod:`dopr_robot.reading`."""


@dataclass(frozen=True)
class StudyResult(Shown):
    """A finished study. ``print`` shows what ``dopr compare STUDY.yaml`` does.

    Attributes:
        folder: with ``table.csv`` (every method at every horizon), ``report.html`` and the records.
        study: what was run.
    """

    folder: Path
    study: Study

    @property
    def summary(self) -> tuple[list[str], list[list[str]]]:
        """Head and rows: every method at the longest horizon, and its difference in points."""
        return read_summary(self.folder, self.study)

    def to_pandas(self) -> Any:
        """``table.csv`` as a ``pandas.DataFrame``: every method at every horizon. Raises ImportError without pandas."""
        import pandas

        return pandas.read_csv(self.folder / TABLE)

    def plot(self) -> Any:
        """Success against the horizon with intervals as a matplotlib figure, a panel for each task and policy; ``curves-*.png`` in the
        folder show each in more detail."""
        from dopr_robot.study.report import horizons_figure

        return horizons_figure(self._table(), short_labels(self.study.policies) | short_labels(self.study.optimizers))

    def _parts(self) -> Iterator[str | Table]:
        yield Table(*self.summary)
        yield f"every horizon: {self.folder / TABLE}; curves: {self.folder / REPORT}"

    def plain(self) -> dict[str, Any]:
        """``folder``, and the rows of ``table.csv``, whose values are texts."""
        return {"folder": str(self.folder), "table": self._table()}

    def _table(self) -> list[dict[str, str]]:
        return read_table(self.folder)

    def _pictures(self) -> Sequence[Path]:
        return sorted(self.folder.glob("curves-*.png"))

    def __fspath__(self) -> str:
        return str(self.folder)


def run_study(
    study: Study | str | os.PathLike[str],
    *words: str,
    out: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    ray: str | None = None,
) -> StudyResult:
    """Run what is missing of a study and write its table and report to ``out``, as ``dopr compare STUDY.yaml`` does.

    1. Every arm is trained, and rolled out on selection seeds.
    2. The arms of one task, policy and seed are checked to have shared weights, data, noise and initial states.
    3. For each task, policy and optimizer the learning rate with the most success on selection seeds is chosen (see :func:`choose`).
    4. The chosen arms are rolled out on test seeds: all figures are of these.

    Args:
        study: a study file, or what was read from one.
        words: ``key=value`` over the file.
        out: None: ``studies/<the file's name>``. It gets ``study.yaml``, ``arms.jsonl``, ``runs/<arm>/``, ``policies/<arm>/``,
            ``test/<arm>/episodes.jsonl``, ``table.csv``, ``curves-*.png`` and ``report.html``.
        workers: processes on this machine; None: one a core and ``training.threads``.
        ray: address of a Ray cluster instead, see :func:`~dopr_robot.study.workers.answers`.

    Raises:
        UserError: the study does not fit its stores, or ``out`` holds arms of other settings.
        DoprError: a worker died, or the arms have not shared what they have to.
    """
    from dopr_robot.study.report import write_report

    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers} has to be at least 1")
    if isinstance(study, Study):
        if words or out is None:
            raise UserError("a study that was read before takes no more settings, and out says where it goes")
    else:
        path = Path(study)
        study, out = load_study(path, words), out or Path("studies") / path.stem
    out = Path(out)
    arms = study.arms()
    horizons = {entry.label: _horizons(study, entry.task, entry.horizons) for entry in study.tasks}
    threads = study.training["threads"]
    options: dict[str, Any] = {"workers": workers or max(1, cores() // threads), "ray": ray, "threads": threads}
    with held(out):  # first of all: reading the stores takes time
        _check(arms)
        done = finished(arms, out)
        with replacing(out / STUDY) as beside:
            beside.write_text(study.to_yaml(), encoding="utf-8")
        _train(arms, done, horizons, out, options)
        records = [done[arm.name] for arm in arms]
        check_matched(records)
        chosen = choose(study, done)
        _test(chosen, done, horizons, study.evaluation.test_episodes, out, options)
        tests = {
            arm.name: read_records(out / "test" / arm.name / "episodes.jsonl") for arm in chosen if _usable(done, arm)
        }
        check_states(tests)
        write_report(study, chosen, done, tests, horizons, out)
    return StudyResult(out, study)


def finished(arms: Sequence[Arm], out: Path) -> dict[str, Record]:
    """Records in ``arms.jsonl`` of the study's arms, by the arm's name.

    Raises UserError where one of them was run with other settings.
    """
    known: dict[str, Record] = {}
    by_key = {json.dumps(arm.key): arm for arm in arms}
    path = out / ARMS
    for record in read_json_lines(path, FORM) if path.exists() else []:
        arm = by_key.get(json.dumps({name: record[name] for name in arms[0].key}))
        if arm is None:
            continue
        if record["config_sha256"] != arm.config_sha256():
            raise UserError(f"{out} holds {arm.name} of other settings: another --out leaves them alone")
        if all((out / "policies" / arm.name / name).exists() for name in POLICY_FILES) or record["error"]:
            known[arm.name] = record
    return known


def choose(study: Study, done: dict[str, Record]) -> list[Arm]:
    """The arms of the chosen learning rates: the most success on selection seeds at the longest horizon, over all training seeds; where
    that is equal (nobody solves the task yet) the largest return on them, then the least validation loss, then the least rate."""
    chosen: list[Arm] = []
    for group in _groups(study.arms()).values():
        by_rate: dict[float, list[Arm]] = {}
        for arm in group:
            by_rate.setdefault(arm.learning_rate, []).append(arm)

        def cost(rate: float, by_rate: dict[float, list[Arm]] = by_rate) -> tuple[float, float, float, float]:
            records = [done[arm.name] for arm in by_rate[rate]]
            success = sum(list(record["selection_successes"].values())[-1] for record in records)
            return -success, -_total(records, "selection_return", -inf), _total(records, "validation_loss", inf), rate

        chosen += by_rate[min(by_rate, key=cost)]
    return chosen


def check_matched(records: Iterable[Record]) -> None:
    """Raise DoprError where arms of one task, policy and seed did not begin alike."""
    first: dict[tuple[Any, ...], Record] = {}
    for record in records:
        other = first.setdefault((record["task"], record["policy"], record["seed"]), record)
        for key in ("initial_weights_sha256", "first_batches_sha256", "first_loss", "selection_states_sha256"):
            if key == "selection_states_sha256" and None in (record[key], other[key]):
                continue  # an arm that diverged was not rolled out
            if record[key] != other[key]:
                raise DoprError(
                    f"{_text(record)} and {_text(other)} are no matched pair: {key} is {record[key]} and {other[key]}. "
                    "Were they run on different machines or versions?"
                )


def check_states(tests: dict[str, list[EpisodeRecord]]) -> None:
    """Raise DoprError where a test seed did not begin in one state in all arms of a task."""
    first: dict[tuple[str, int], str] = {}
    for name, records in tests.items():
        for record in records:
            if record.initial_state_sha256 is None:
                continue
            state = first.setdefault((name.split("-")[0], record.seed), record.initial_state_sha256)
            if state != record.initial_state_sha256:
                raise DoprError(
                    f"test seed {record.seed} began from another state in {name}: were the versions the same?"
                )


def _horizons(study: Study, task: str, own: list[int] | None) -> tuple[int, ...]:
    longest = get_task(task).max_steps
    asked = own or study.horizons
    return tuple(check_horizons(asked, longest) if asked else default_horizons(longest, 4))


def _check(arms: Sequence[Arm]) -> None:
    """Every store with every policy, before anything is run."""
    seen = set()
    for arm in arms:
        config = arm.config
        key = (arm.entry.store, label(arm.policy_entry))
        if key not in seen:
            seen.add(key)
            make_policy(config.policy, load_data(config).spec)
    for text in dict.fromkeys(text for arm in arms for text in without_effect(arm.config)):
        LOG.warning("without full effect in this study: %s", text)


def _train(
    arms: Sequence[Arm],
    done: dict[str, Record],
    horizons: dict[str, tuple[int, ...]],
    out: Path,
    options: dict[str, Any],
) -> None:
    missing = [arm for arm in arms if arm.name not in done]
    jobs = [
        TrainJob(
            arm.key, _absolute(asdict(arm.config)), arm.config_sha256(), str((out / "runs" / arm.name).resolve()),
            horizons[arm.entry.label],
        )
        for arm in missing
    ]  # fmt: skip
    with progress("arms", len(arms), "arms", done=len(arms) - len(missing)) as meter:
        for position, trained in answers(jobs, **options):
            arm = missing[position]
            _keep(arm, trained, out)
            done[arm.name] = trained.record
            meter.advance(note=arm.name)


def _keep(arm: Arm, trained: Trained, out: Path) -> None:
    if trained.files:
        with replacing(out / "policies" / arm.name) as beside:
            beside.mkdir()
            for name, content in trained.files.items():
                (beside / name).write_bytes(content)
    path = out / ARMS
    with naming(path), path.open("ab") as file:
        whole = path.read_bytes().rfind(b"\n") + 1  # what a kill cut short is dropped
        file.truncate(whole)
        os.write(file.fileno(), (json.dumps(trained.record, allow_nan=False) + "\n").encode())


def _test(
    chosen: Sequence[Arm],
    done: dict[str, Record],
    horizons: dict[str, tuple[int, ...]],
    episodes: int,
    out: Path,
    options: dict[str, Any],
) -> None:
    missing = []
    for arm in chosen:
        identity = _identity(arm, done, horizons, episodes)
        path = out / "test" / arm.name / "test.json"
        if _usable(done, arm) and _tested(path) != identity:
            missing.append(arm)
    jobs = [
        TestJob(
            arm.key,
            {name: (out / "policies" / arm.name / name).read_bytes() for name in POLICY_FILES},
            arm.entry.task,
            episodes,
            horizons[arm.entry.label],
            options["threads"],
        )
        for arm in missing
    ]
    with progress("test", len(chosen), "arms", done=len(chosen) - len(missing)) as meter:
        for position, lines in answers(jobs, **options):
            arm = missing[position]
            with replacing(out / "test" / arm.name) as beside:
                beside.mkdir()
                (beside / "episodes.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
                write_json(beside / "test.json", _identity(arm, done, horizons, episodes))
            meter.advance(note=arm.name)


def _tested(path: Path) -> Record | None:
    """What an earlier test was of; None where there is none, or it can not be read."""
    try:
        return read_json(path)
    except (FileNotFoundError, DamagedError):
        return None


def _identity(arm: Arm, done: dict[str, Record], horizons: dict[str, tuple[int, ...]], episodes: int) -> Record:
    return {
        "weights_sha256": done[arm.name]["weights_sha256"],
        "episodes": episodes,
        "horizons": list(horizons[arm.entry.label]),
    }


def _total(records: Sequence[Record], key: str, unknown: float) -> float:
    """Sum over an arm's training seeds; ``unknown`` where one of them has no value."""
    values = [record[key] for record in records]
    return unknown if None in values else sum(values)


def _usable(done: dict[str, Record], arm: Arm) -> bool:
    return not done[arm.name]["error"]


def _groups(arms: Sequence[Arm]) -> dict[tuple[str, str, str], list[Arm]]:
    """Arms of one task, policy and optimizer."""
    groups: dict[tuple[str, str, str], list[Arm]] = {}
    for arm in arms:
        groups.setdefault((arm.key["task"], arm.key["policy"], arm.key["optimizer"]), []).append(arm)
    return groups


def _absolute(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with its store where a worker with another working directory finds it."""
    return {**config, "data": {**config["data"], "store": str(Path(config["data"]["store"]).resolve())}}


def _text(record: Record) -> str:
    return f"{record['task']} {record['policy']} {record['optimizer']} lr {record['learning_rate']:g} seed {record['seed']}"


__all__ = ["ARMS", "REPORT", "STUDY", "TABLE", "check_matched", "choose", "finished", "run_study", "states_sha256"]
