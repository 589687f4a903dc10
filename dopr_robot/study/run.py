"""A study from its file to its report; finished arms are not run again."""

import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dopr_robot.envs import get_task
from dopr_robot.envs.workers import cores
from dopr_robot.errors import DamagedError, UserError
from dopr_robot.evaluation import EpisodeRecord, read_records
from dopr_robot.evaluation.rollouts.episode import INFERENCE_BATCH
from dopr_robot.evaluation.rollouts.horizons import check_horizons, default_horizons
from dopr_robot.files import naming, replacing, write_json
from dopr_robot.locks import held
from dopr_robot.policies import make_policy
from dopr_robot.progress import progress
from dopr_robot.reading import Maybe, read_json, read_json_lines
from dopr_robot.study.choice import Record, check_matched, check_states, choose
from dopr_robot.study.config import Arm, Study
from dopr_robot.study.file import load_study
from dopr_robot.study.naming import label, short_labels
from dopr_robot.study.returns import return_ranges
from dopr_robot.study.summary import TABLE, read_summary, read_table
from dopr_robot.study.work import POLICY_FILES, TestJob, Trained, TrainJob, states_sha256
from dopr_robot.study.workers import Workers
from dopr_robot.tables import Shown, Table
from dopr_robot.training import load_data
from dopr_robot.training.advice import without_effect
from dopr_robot.training.checkpoints import BEST
from dopr_robot.training.data import settled_task
from dopr_robot.training.demonstrations import open_store

LOG = logging.getLogger(__name__)
KEY = ("task", "policy", "optimizer", "learning_rate", "hyperparameters", "budget", "seed")
ARMS, STUDY, REPORT = "arms.jsonl", "study.yaml", "report.html"
_POINT = {
    "step": int,
    "validation_loss": float | None,
    "validation_loss_without_ema": float | None,
    "success_rate": float | None,
    "return": float | None,
}
FORM = {
    "task": str, "policy": str, "optimizer": str, "learning_rate": float, "hyperparameters": Maybe(dict), "budget": Maybe(float),
    "seed": int, "config_sha256": Maybe(str), "config": Maybe(dict),
    "initial_weights_sha256": str, "first_batches_sha256": str, "first_loss": float | None, "weights_sha256": str | None,
    "best_step": int | None, "best_weights_sha256": str | None,
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

    @classmethod
    def of(cls, folder: str | os.PathLike[str]) -> "StudyResult":
        """The study in a folder. Raises UserError where it is not finished."""
        folder = Path(folder)
        study = load_study(folder / STUDY)
        if not (folder / TABLE).exists():
            arms, tested = study.arms(), len(list(folder.glob("test/*/test.json")))
            raise UserError(
                f"{folder} is a study that is not finished: of the {len(arms)} arms to choose from {len(finished(arms, folder))} are "
                f"trained, and {tested} of those chosen are tested: dopr compare {folder / STUDY} --out {folder} goes on"
            )
        return cls(folder, study)

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
        from dopr_robot.study.figures import horizons_figure

        return horizons_figure(self._table(), short_labels(self.study.policies) | short_labels(self.study.optimizers))

    def write_page(self, file: str | os.PathLike[str]) -> None:
        """The study's report as a page of its own."""
        with replacing(Path(file)) as beside:
            shutil.copyfile(self.folder / REPORT, beside)

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
    3. For each task, policy, optimizer and budget (with ``tune``: for all tasks together) the hyperparameters with the most success on
       selection seeds (the largest return, where that is the task's figure) are chosen (see :func:`~dopr_robot.study.choice.choose`).
    4. What is missing of the chosen ones is trained: on other tasks with ``tune``, from other seeds with ``select_seeds``.
    5. The chosen arms are rolled out on test seeds, their last checkpoints and their best ones apart: all figures are of these.

    Args:
        study: a study file, or what was read from one.
        words: ``key=value`` over the file.
        out: None: ``studies/<the file's name>``. It gets ``study.yaml``, ``arms.jsonl``, ``runs/<arm>/``, ``policies/<arm>/``,
            ``test/<arm>/episodes.jsonl``, ``best/<arm>/episodes.jsonl``, ``table.csv``, ``curves-*.png`` and ``report.html``.
            Without ``runs/`` and ``policies/`` (a committed folder) it still counts: only a policy that is to be tested is trained again.
        workers: processes on this machine; None: one a core and ``training.threads``.
        ray: address of a Ray cluster instead, see :class:`~dopr_robot.study.workers.Workers`.

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
    horizons = {entry.label: _horizons(study, entry.task, entry.horizons) for entry in study.entries()}
    threads = study.training["threads"]
    with held(out):  # first of all: reading the stores takes time
        _check([*arms, *study.final_arms({arm.choice: arm.candidate for arm in arms})])
        ranges = return_ranges(study, horizons)
        done = finished(arms, out)
        with replacing(out / STUDY) as beside:
            beside.write_text(study.to_yaml(), encoding="utf-8")
        with Workers(workers or max(1, cores() // threads), ray, threads) as crew:
            _train("arms", arms, done, horizons, out, crew)
            check_matched([done[arm.name] for arm in arms])
            chosen = study.final_arms(choose(study, done, ranges))
            done |= finished(chosen, out)
            for arm in _lost(study, chosen, done, horizons, out):
                del done[arm.name]
            _train("chosen", chosen, done, horizons, out, crew)
            check_matched([done[arm.name] for arm in chosen])
            usable = [arm for arm in chosen if not done[arm.name]["error"]]
            tests = _test("test", study, usable, done, horizons, out, crew)
            apart = [arm for arm in usable if _has_best(study, done[arm.name])]
            best = tests | _test(BEST, study, apart, done, horizons, out, crew)
        check_states(chosen, tests)
        check_states(chosen, best)
        write_report(study, chosen, done, tests, best, horizons, ranges, out)
    return StudyResult(out, study)


def finished(arms: Sequence[Arm], out: Path) -> dict[str, Record]:
    """Records in ``arms.jsonl`` of the study's arms, by the arm's name.

    Raises UserError where one of them was run with other settings.
    """
    known: dict[str, Record] = {}
    by_key = {json.dumps(arm.key, sort_keys=True): arm for arm in arms}
    path = out / ARMS
    for record in read_json_lines(path, FORM) if path.exists() else []:
        key = {name: record[name] for name in KEY if record.get(name) is not None}
        arm = by_key.get(json.dumps(key, sort_keys=True))
        if arm is None:
            continue
        if changed := _changed(arm, record):
            raise UserError(f"{out} holds {arm.name} of other settings ({changed}): another --out leaves them alone")
        known[arm.name] = record
    return known


def _lost(
    study: Study, chosen: Sequence[Arm], done: dict[str, Record], horizons: dict[str, tuple[int, ...]], out: Path
) -> list[Arm]:
    """Chosen arms whose policy has to be trained again to be tested: where only records were kept (``policies/`` deleted, or a folder
    under version control), what was tested counts as it is, and what was not chosen needs no policy."""

    def there(arm: Arm, use: str, folder: Path) -> bool:
        tested = _tested(out / use / arm.name / "test.json") == _identity(study, arm, use, done, horizons)
        return tested or all((folder / name).exists() for name in POLICY_FILES)

    lost = []
    for arm in chosen:
        policy = out / "policies" / arm.name
        if (record := done.get(arm.name)) is None or record["error"]:
            continue
        if there(arm, "test", policy) and (not _has_best(study, record) or there(arm, BEST, policy / BEST)):
            continue
        lost.append(arm)
    return lost


def _has_best(study: Study, record: Record) -> bool:
    """Whether there is a best checkpoint to test apart from the last."""
    best = record.get("best_weights_sha256")
    return study.evaluation.best and bool(best) and best != record["weights_sha256"]


def _identity(
    study: Study, arm: Arm, use: str, done: dict[str, Record], horizons: dict[str, tuple[int, ...]]
) -> Record:
    """What a test is of."""
    return {
        "weights_sha256": done[arm.name]["best_weights_sha256" if use == BEST else "weights_sha256"],
        "episodes": study.evaluation.test_episodes,
        "horizons": list(horizons[arm.entry.label]),
        # Records of a version that noted no returns by horizon are made again.
        **({"returns": True} if get_task(arm.entry.task).reward else {}),
    }


def _changed(arm: Arm, record: Record) -> str:
    if record.get("config") is None:  # of a version that kept its checksum alone
        return "" if record["config_sha256"] == arm.config_sha256() else "their checksum is another"
    return "; ".join(arm.changed(record["config"]))


def _horizons(study: Study, task: str, own: list[int] | None) -> tuple[int, ...]:
    spec = get_task(task)
    asked = own or study.horizons
    return tuple(
        check_horizons(asked, spec.max_steps, spec.extensible) if asked else default_horizons(spec.max_steps, 4)
    )


def _check(arms: Sequence[Arm]) -> None:
    """Every task's options, and every store with every policy, before anything is run."""
    seen = set()
    for arm in arms:
        config = arm.config
        key = (arm.entry.label, arm.entry.store, label(arm.policy_entry))
        if key not in seen:
            seen.add(key)
            settled_task(config)
            asked, there = arm.entry.episodes, open_store(config).num_episodes
            if asked is not None and asked > there:  # or "twice" would be "once" again
                raise UserError(f"episodes: {asked} of {arm.entry.label}, and {arm.entry.store} holds {there}")
            make_policy(config.policy, load_data(config).spec)
    for text in dict.fromkeys(text for arm in arms for text in without_effect(arm.config)):
        LOG.warning("without full effect in this study: %s", text)


def _train(
    what: str,
    arms: Sequence[Arm],
    done: dict[str, Record],
    horizons: dict[str, tuple[int, ...]],
    out: Path,
    crew: Workers,
) -> None:
    missing = [arm for arm in arms if arm.name not in done]
    jobs = [
        TrainJob(
            arm.key, _absolute(asdict(arm.config)), arm.decides(), str((out / "runs" / arm.name).resolve()),
            horizons[arm.entry.label], crew.cpus, crew.study,
        )
        for arm in missing
    ]  # fmt: skip
    with progress(what, len(arms), "arms", done=len(arms) - len(missing)) as meter:
        for position, trained in crew.answers(jobs):
            arm = missing[position]
            _keep(arm, trained, out)
            done[arm.name] = trained.record
            meter.advance(note=arm.name)


def _keep(arm: Arm, trained: Trained, out: Path) -> None:
    if trained.files:
        with replacing(out / "policies" / arm.name) as beside:
            for folder, files in ((beside, trained.files), (beside / BEST, trained.best)):
                for name, content in files.items():
                    folder.mkdir(parents=True, exist_ok=True)
                    (folder / name).write_bytes(content)
    path = out / ARMS
    with naming(path), path.open("ab") as file:
        whole = path.read_bytes().rfind(b"\n") + 1  # what a kill cut short is dropped
        file.truncate(whole)
        os.write(file.fileno(), (json.dumps(trained.record, allow_nan=False) + "\n").encode())


def _test(
    use: str,
    study: Study,
    arms: Sequence[Arm],
    done: dict[str, Record],
    horizons: dict[str, tuple[int, ...]],
    out: Path,
    crew: Workers,
) -> dict[str, list[EpisodeRecord]]:
    """Test what is missing of the arms' last (``use="test"``) or best checkpoints; records by the arm's name."""
    episodes = study.evaluation.test_episodes
    identities = {arm.name: _identity(study, arm, use, done, horizons) for arm in arms}
    missing = [arm for arm in arms if _tested(out / use / arm.name / "test.json") != identities[arm.name]]
    parts = _parts(episodes, crew.at_once // len(missing)) if missing else []
    policies = {arm.name: out / "policies" / arm.name / (BEST if use == BEST else "") for arm in missing}
    jobs = [
        TestJob(
            arm.key,
            {name: (policies[arm.name] / name).read_bytes() for name in POLICY_FILES},
            arm.entry.task,
            episodes,
            part,
            horizons[arm.entry.label],
            crew.threads,
            crew.cpus,
        )
        for arm in missing
        for part in parts
    ]
    found: dict[str, list[str]] = {arm.name: [] for arm in missing}
    with progress(use, len(arms), "arms", done=len(arms) - len(missing)) as meter:
        for position, answer in crew.answers(jobs):
            arm = missing[position // len(parts)]
            lines = found[arm.name]
            lines += answer
            if len(lines) < episodes:
                continue
            lines.sort(key=lambda line: json.loads(line)["episode"])
            with replacing(out / use / arm.name) as beside:
                beside.mkdir()
                (beside / "episodes.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
                write_json(beside / "test.json", identities[arm.name])
            meter.advance(note=arm.name)
    return {arm.name: read_records(out / use / arm.name / "episodes.jsonl") for arm in arms}


def _parts(episodes: int, count: int) -> list[tuple[int, int]]:
    """Episodes in at most so many parts of full inference batches, ``[(first, after the last)]``: where more jobs can run at once than
    there are arms to test, an arm's episodes are shared out.

    >>> _parts(50, 1), _parts(50, 3), _parts(20, 8)
    ([(0, 50)], [(0, 32), (32, 50)], [(0, 16), (16, 20)])
    """
    size = math.ceil(episodes / max(1, count) / INFERENCE_BATCH) * INFERENCE_BATCH
    return [(first, min(first + size, episodes)) for first in range(0, episodes, size)]


def _tested(path: Path) -> Record | None:
    """What an earlier test was of; None where there is none, or it can not be read."""
    try:
        return read_json(path)
    except (FileNotFoundError, DamagedError):
        return None


def _absolute(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with its store where a worker with another working directory finds it."""
    return {**config, "data": {**config["data"], "store": str(Path(config["data"]["store"]).resolve())}}


__all__ = ["ARMS", "REPORT", "STUDY", "TABLE", "finished", "run_study", "states_sha256"]
