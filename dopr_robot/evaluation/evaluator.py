"""One evaluation: a policy on a task, into a folder of records, results and pictures."""

import contextlib
import errno
import logging
import math
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dopr_robot import seeds
from dopr_robot.envs import TaskSpec
from dopr_robot.errors import DoprError, UserError
from dopr_robot.evaluation import statistics
from dopr_robot.evaluation.rollouts.group import Observer
from dopr_robot.evaluation.rollouts.plan import Evaluation
from dopr_robot.evaluation.rollouts.records import (
    RECORDS,
    RESULTS,
    EpisodeRecord,
    RecordWriter,
    read_records,
    read_results,
)
from dopr_robot.evaluation.rollouts.rollout import group_sizes
from dopr_robot.evaluation.rollouts.spread import spread
from dopr_robot.files import shown, write_json
from dopr_robot.progress import progress

FIGURE, REPORT = "horizon.png", "report.html"
VIDEO, STILLS = "rollouts.mp4", "failures.png"
RETURNS, LENGTHS, PERTURBED = "returns.png", "lengths.png", "perturbed.png"
logger = logging.getLogger(__name__)


def run_evaluation(
    evaluation: Evaluation,
    out: str | Path,
    *,
    num_envs: int | None = None,
    workers: int | None = None,
    ray: str | None = None,
    video: int = 9,
    validation_loss: float | None = None,
    resume: bool = False,
    observer: Observer | None = None,
    lengths: Mapping[int, Path] | None = None,
    perturbed: Sequence[tuple[Mapping[str, float], Path]] = (),
) -> dict[str, Any]:
    """Roll a policy out and write records, results, curve and video to ``out``.

    >>> policy = load_policy("runs/pick_place")                                                  # doctest: +SKIP
    >>> results = run_evaluation(Evaluation(policy, policy.task, episodes=100), "runs/pick_place/eval/final")   # doctest: +SKIP

    Args:
        evaluation: what is evaluated.
        out: the evaluation's folder.
        num_envs: copies of the environment; the records do not depend on it.
        workers: threads; the records do not depend on it.
        ray: address of a Ray cluster that runs the episodes, in groups of ``num_envs`` and one CPU each; the records do not depend on it.
        video: how many episodes ``rollouts.mp4`` shows; 0: none is made.
        validation_loss: goes into ``results.json``.
        resume: go on with what ``out`` holds of the same evaluation.
        observer: sees every reset and step of the episodes that are run, in this process alone.
        lengths: folders of evaluations of the task at shorter lengths, for results, report and ``lengths.png``; see
            :func:`~dopr_robot.evaluation.lengths.evaluate_lengths`, which makes them.
        perturbed: options and folders of evaluations under perturbations, for results, report and ``perturbed.png``; see
            :func:`~dopr_robot.evaluation.perturbed.evaluate_perturbed`, which makes them.

    Returns:
        The content of ``results.json``.

    Raises:
        UserError: ``out`` holds an evaluation and ``resume`` is not set, or one of something else.
        DoprError: the disk is full.
        Exception: whatever stopped the work, KeyboardInterrupt included; ``results.json`` then says ``"partial": true``.
    """
    out = Path(out)
    if ray is not None and (workers is not None or observer is not None):
        raise UserError("workers and an observer are of this process: ray goes without them")
    done, before = earlier(evaluation, out, resume)
    sizes = group_sizes(num_envs, workers, evaluation.episodes, evaluation.copies)
    if video:
        _check_rendering(evaluation)
    out.mkdir(parents=True, exist_ok=True)
    clock, steps, good = time.perf_counter(), 0, sum(record.outcome == "success" for record in done.values())
    faults: list[str] = list(before.get("faults", []))
    if validation_loss is not None and not math.isfinite(validation_loss):
        faults.append(f"the validation loss is {validation_loss}")
        validation_loss = None

    def results() -> dict[str, Any]:
        wall = time.perf_counter() - clock
        return {
            **evaluation.identity(),
            "episodes": len(done),
            "episodes_asked": evaluation.episodes,
            "num_envs": sum(sizes),
            "partial": len(done) < evaluation.episodes,
            **figures(list(done.values()), evaluation.spec, evaluation.horizons or [], evaluation.use),
            "validation_loss": validation_loss,
            "lengths": [],
            "perturbed": [],
            "faults": faults,
            "wall_s": before.get("wall_s", 0.0) + wall,
            "env_steps_per_s": steps / wall,
            "versions": versions(),
        }

    jobs = [job for job in evaluation.jobs if job.episode not in done]
    with _told_when_full(out, done, evaluation.episodes):
        write_json(out / RESULTS, results())  # from here on a kill leaves a folder that --resume knows
        with (
            RecordWriter(out / RECORDS) as writer,
            progress("eval", evaluation.episodes, "episodes", done=len(done)) as meter,
        ):

            def keep(record: EpisodeRecord) -> None:
                nonlocal steps, good
                writer.append(record)
                done[record.episode] = record
                steps, good = steps + record.length, good + (record.outcome == "success")
                meter.advance(note=f"{good} succeeded")

            try:
                if ray is None:
                    faults += evaluation.rollout(observer).run(jobs, keep, num_envs, workers)
                else:
                    faults += spread(evaluation, jobs, keep, ray, num_envs)
            except BaseException as stop:
                with contextlib.suppress(Exception):  # what stopped the work is what is to be told
                    _write(evaluation, out, results(), list(done.values()))
                if isinstance(stop, (KeyboardInterrupt, SystemExit)):
                    kept = f"{len(done)} of {evaluation.episodes} episodes are kept"
                    logger.warning("%s: %s: the same call with --resume runs the rest", shown(out), kept)
                raise
            writer.sort()
        records, final = read_records(out / RECORDS), results()
        if video:
            from dopr_robot.evaluation.reports.showcase import show

            write_json(out / RESULTS, final)  # before the pictures, which may fail
            show(evaluation, records, video, out / VIDEO, out / STILLS)
        return _write(evaluation, out, final, records, lengths, perturbed)


def _write(
    evaluation: Evaluation,
    out: Path,
    results: dict[str, Any],
    records: Sequence[EpisodeRecord],
    lengths: Mapping[int, Path] | None = None,
    perturbed: Sequence[tuple[Mapping[str, float], Path]] = (),
) -> dict[str, Any]:
    """Write results, curve and report, and return the results."""
    # What draws is loaded when the episodes are over, since it takes longer than the first of them.
    from dopr_robot.evaluation.reports import plots
    from dopr_robot.evaluation.reports.evaluation import write_evaluation_report
    from dopr_robot.evaluation.reports.returns import returns_figure
    from dopr_robot.evaluation.reports.strength import strength_figure

    spec, against, strength = evaluation.spec, None, None
    if lengths:
        by_length = {length: read_records(folder / RECORDS) for length, folder in lengths.items()}
        by_length[evaluation.length or 1] = list(records)
        found = statistics.by_length(by_length, spec.kind, evaluation.horizon, returned=bool(spec.reward))
        results = results | {"lengths": found}
        against = plots.lengths_figure(by_length, results["lengths"], spec)
        plots.save(against, out / LENGTHS)
    if perturbed:
        under = [read_records(folder / RECORDS) for _, folder in perturbed]
        arms = [(options, those) for (options, _), those in zip(perturbed, under, strict=True)]
        horizons = evaluation.horizons or []
        found = statistics.perturbed(records, arms, spec.kind, horizons, returned=bool(spec.reward))
        results = results | {"perturbed": found}
        strength = strength_figure(records, results, found, under, spec)
        plots.save(strength, out / PERTURBED)
    write_json(out / RESULTS, results)
    curve = figure(evaluation, records) if records else None
    if curve is not None:
        plots.save(curve, out / FIGURE)
    earned = None
    if results["returns"]:
        earned = returns_figure([("", results["returns"])], spec, f"{spec.id}: {len(records)} episodes")
        plots.save(earned, out / RETURNS)
    write_evaluation_report(out / REPORT, results, spec, curve, out / VIDEO, out / STILLS, against, strength, earned)
    return results


@contextlib.contextmanager
def _told_when_full(out: Path, done: Mapping[int, EpisodeRecord], asked: int) -> Iterator[None]:
    """Raise DoprError, saying what is kept, where the disk has no room."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise
        kept = f"{len(done)} of {asked} episodes are kept"
        raise DoprError(f"{out}: {error.strerror}; {kept}: make room, then the same call with --resume") from error


def figures(
    records: Sequence[EpisodeRecord], spec: TaskSpec, horizons: Sequence[int], use: str = "final"
) -> dict[str, Any]:
    """The figures that records give, ``returns`` where the reward says more than success.

    Raises UserError where their seeds are not of the range of ``use``."""
    seeds.require_use((record.seed for record in records), use)
    ordered = sorted(records, key=lambda record: record.episode)
    found = statistics.summary(ordered, spec.kind, horizons, spec.stages, spec.shares)
    return found | {"returns": statistics.return_curve(ordered, horizons) if spec.reward else []}


def figure(evaluation: Evaluation, records: Sequence[EpisodeRecord]) -> Any:
    """The curve of one evaluation."""
    from dopr_robot.evaluation.reports import plots

    title = f"{evaluation.spec.id}: {len(records)} episodes"
    run = plots.Run("", records, list(evaluation.horizons or []))
    return plots.horizon_figure([run], evaluation.spec.kind, evaluation.spec.control_hz, title)


def versions() -> dict[str, str]:
    """Versions of what decides the records; a checkout that is run without being installed has none."""

    def found(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "not installed"

    names = ("dopr-robot", "torch", "mujoco", "gymnasium", "numpy")
    return {"python": platform.python_version()} | {name: found(name) for name in names}


def earlier(evaluation: Evaluation, out: Path, resume: bool) -> tuple[dict[int, EpisodeRecord], dict[str, Any]]:
    """Records and results that ``out`` holds of this evaluation."""
    if not (out / RESULTS).exists() and not (out / RECORDS).exists():
        return {}, {}
    if not resume:
        raise UserError(f"{out} holds an evaluation: --resume goes on with it, another --out leaves it alone")
    before = read_results(out)
    for key, now in evaluation.identity().items():
        was = before.get(key)
        if key == "checkpoint":  # a run folder may be moved
            now, was = ({**each, "path": None} if each else None for each in (now, was))
        if was != now:
            raise UserError(f"{out} is of another evaluation: {key} was {was}, now {now}")
    records = read_records(out / RECORDS) if (out / RECORDS).exists() else []
    expected = {job.episode: job.seed for job in evaluation.jobs}
    if records and records[-1].episode >= evaluation.episodes:
        raise UserError(f"{out} holds more: ask for --episodes {records[-1].episode + 1} or more, or another --out")
    for record in records:
        if record.seed != (seed := expected[record.episode]):
            raise UserError(
                f"{out} is of another evaluation: episode {record.episode} had seed {record.seed}, now {seed}"
            )
    return {record.episode: record for record in records}, before


def _check_rendering(evaluation: Evaluation) -> None:
    """Draw one image, so that a machine that can not draw says so before the work and not after it."""
    from dopr_robot.evaluation.reports.video import rendered

    env = evaluation.make_env(1, render_mode="rgb_array")
    try:
        env.reset(seed=[evaluation.jobs[0].seed])  # type: ignore[arg-type]
        rendered(env, [0])
    finally:
        env.close()
