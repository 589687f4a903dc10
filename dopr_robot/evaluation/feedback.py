"""Test-time feedback of a run: does validation loss foretell success, and what happens between the two?

Every checkpoint is rolled out from initial states for selection (never those of final figures), and beside its validation loss stand
its success, its divergence from the demonstrations and its action gap (see :mod:`dopr_robot.evaluation.rollouts.divergence`). Over
checkpoints, rank correlations say which of them goes with success, at every horizon.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy

from dopr_robot.envs import Task, get_task
from dopr_robot.errors import UserError
from dopr_robot.evaluation import statistics
from dopr_robot.evaluation.evaluate import chosen_task
from dopr_robot.evaluation.evaluator import run_evaluation, versions
from dopr_robot.evaluation.reports import plots
from dopr_robot.evaluation.reports.evaluation import write_feedback_report
from dopr_robot.evaluation.rollouts.divergence import (
    Demonstrations,
    Floats,
    Foreseeing,
    Tracer,
    along,
    gaps_on_demonstrations,
    quartiles,
)
from dopr_robot.evaluation.rollouts.plan import Evaluation
from dopr_robot.evaluation.rollouts.records import RECORDS, EpisodeRecord, read_records
from dopr_robot.files import write_json
from dopr_robot.policies import find_checkpoint, load_policy
from dopr_robot.policies.checkpoint import read_spec
from dopr_robot.reading import read_json
from dopr_robot.tables import InFolder, Table, interval
from dopr_robot.training import Run, RunConfig, load_data, validation_loss

RESULT, FIGURE, VALIDATION = "feedback.json", "feedback.png", "validation.png"
MEASURES = {"validation_loss": "validation loss", "divergence": "divergence", "action_gap": "action gap"}
"""What is measured of every checkpoint beside success, and what it is called."""
POINTS = 80
"""Steps at which curves along the rollout are kept."""
RESAMPLES = 2000
LEAST = 1e-3
"""Divergence and action gap below this count as this, so that they have a logarithm."""
FEWEST = 3
"""Checkpoints that a rank correlation needs."""


@dataclass(frozen=True)
class Plan:
    """How every checkpoint is rolled out; see :class:`~dopr_robot.evaluation.rollouts.plan.Evaluation`."""

    task: Task
    episodes: int
    seed: int = 0
    horizons: Sequence[int] | None = None
    num_envs: int | None = None
    workers: int | None = None


class Feedback(InFolder):
    """A measurement of test-time feedback and where it lies. ``print`` shows what ``dopr eval --feedback`` does.

    Attributes:
        folder: with ``feedback.json``, ``feedback.png`` and ``report.html``.
        content: ``feedback.json``, see :func:`measure_feedback`.
    """

    def __init__(self, folder: Path, content: dict[str, Any]) -> None:
        self.folder, self.content = folder, content

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame``, a row a checkpoint, success at the longest horizon. Raises ImportError without pandas."""
        import pandas

        rows = []
        for each in self.content["checkpoints"]:
            last, gap = each["curve"][-1], each["action_gap"]
            rows.append(
                {
                    "step": each["step"],
                    "validation_loss": each["validation_loss"],
                    "success_rate": last["success_rate"],
                    "low": last["ci95"][0],
                    "high": last["ci95"][1],
                    "divergence": each["divergence"]["mean"],
                    "action_gap": gap and gap["mean"],
                }
            )
        return pandas.DataFrame(rows)

    def plot(self) -> Any:
        """Success, validation loss, divergence and action gap over the checkpoints as a matplotlib figure."""
        return plots.feedback_figure(self.content, get_task(self.content["task"]).control_hz)

    def _parts(self) -> Iterator[str | Table]:
        content = self.content
        longest = content["horizons"][-1]
        about = f"{content['task']} ({content['kind']})"
        yield f"{about}, {content['episodes']} initial states for selection, horizon {longest}"
        rows = []
        for each in content["checkpoints"]:
            last, gap = each["curve"][-1], each["action_gap"]
            rows.append(
                [
                    "-" if each["step"] is None else f"{each['step']:,}",
                    "-" if each["validation_loss"] is None else f"{each['validation_loss']:.5f}",
                    f"{last['success_rate']:.1%}",
                    interval(last["ci95"]),
                    f"{each['divergence']['mean']:.2f}",
                    f"{gap['mean']:.3f}" if gap else "-",
                ]
            )
        yield Table(["step", "valid. loss", "success", "95 % interval", "divergence", "action gap"], rows)
        for each in content["rank_correlation"]:
            if each["horizon"] == longest:
                found = "constant" if each["spearman"] is None else f"{each['spearman']:+.2f} (p {each['p_value']:.3f})"
                yield f"rank correlation with success: {MEASURES[each['measure']]} {found}"
        if not content["rank_correlation"]:
            yield "fewer than three checkpoints: no rank correlation (train with training.keep_checkpoints=20)"

    def _pictures(self) -> Sequence[Path]:
        return [self.folder / FIGURE]

    def __repr__(self) -> str:
        return f"Feedback({str(self.folder)!r}: {len(self.content['checkpoints'])} checkpoints)"


def feedback(
    run: str | os.PathLike[str],
    task: Task | str | None = None,
    *,
    episodes: int | None = None,
    horizons: Sequence[int] | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    num_envs: int | None = None,
    workers: int | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
) -> Feedback:
    """Measure test-time feedback over a run's checkpoints, or of the checkpoint given, as ``dopr eval --feedback`` does.

    Args:
        run: a run folder (keep its checkpoints when training: ``training.keep_checkpoints=20``) or one of its checkpoints.
        task, episodes, horizons, seed, options, num_envs, workers, resume: see :func:`~dopr_robot.evaluation.evaluate.evaluate`; the
            initial states are of the range for selection.
        out: where it goes; None: ``RUN/eval/feedback-seed<seed>``.

    Raises:
        UserError: no run folder, or its demonstrations are not there.
    """
    checkpoint = find_checkpoint(run).resolve()
    home = Run.of(checkpoint)
    if home is None:
        raise UserError(f"{run} lies in no run folder: --feedback needs the run's config.yaml and its demonstrations")
    config = home.config
    if config.data.store is None or not Path(config.data.store).exists():
        raise UserError(f"the run's demonstrations are not there: {config.data.store} (run from where it was trained)")
    what = chosen_task(task, read_spec(checkpoint), run, options)
    steps = home.checkpoints.steps() if Path(run).resolve() == home.folder.resolve() else []
    plan = Plan(what, episodes or config.evaluation.episodes, seed, horizons, num_envs, workers)
    folder = Path(out) if out is not None else home.evaluation_folder(f"feedback-seed{seed}", resume=resume)
    checkpoints = [home.checkpoints.folder / str(step) for step in steps] or [checkpoint]
    return Feedback(folder, measure_feedback(checkpoints, config, plan, folder, resume=resume))


def measure_feedback(
    checkpoints: Sequence[Path], config: RunConfig, plan: Plan, out: Path, *, resume: bool = False
) -> dict[str, Any]:
    """Measure every checkpoint of a run, into ``out``: an evaluation folder a checkpoint, and ``feedback.json``, ``feedback.png``,
    ``validation.png`` and ``report.html`` over all of them.

    Args:
        checkpoints: folders, in the order of training.
        config: of the run; its store has the demonstrations.
        plan: the rollouts.
        out: where it goes.
        resume: go on with what ``out`` holds; checkpoints that are done are not run again.

    Returns:
        The content of ``feedback.json``: ``checkpoints`` and ``rank_correlation``.

    Raises:
        UserError: no demonstrations, or ``out`` holds something and ``resume`` is not set.
    """
    if (out / RESULT).exists() and not resume:
        raise UserError(f"{out} holds a measurement: --resume goes on with it, another --out leaves it alone")
    data = load_data(config)
    demonstrations = Demonstrations(config, data)
    measured, records = [], []
    for checkpoint in checkpoints:
        folder = out / checkpoint.name
        policy = load_policy(checkpoint)
        foreseeing = Foreseeing.possible(policy)
        evaluation = Evaluation(
            Foreseeing(policy) if foreseeing else policy,
            plan.task,
            plan.episodes,
            plan.seed,
            plan.horizons,
            use="selection",
            checkpoint=checkpoint,
        )
        identity = evaluation.identity() | {"episodes": plan.episodes}
        if (done := _done(folder / RESULT, identity)) is None:
            loss = None if data.validation is None else validation_loss(policy, data.validation)
            tracer = Tracer(demonstrations)
            ways: dict[str, Any] = {"num_envs": plan.num_envs, "workers": plan.workers}
            results = run_evaluation(
                evaluation, folder, video=0, validation_loss=loss, resume=resume, observer=tracer, **ways
            )
            # Episodes that an earlier call had recorded were not run by this one; they run again for their traces.
            untraced = [job for job in evaluation.jobs if job.episode not in tracer.traces]
            evaluation.rollout(tracer).run(untraced, lambda record: None, **ways)
            done = {
                "identity": identity,
                "step": int(checkpoint.name) if checkpoint.name.isdigit() else None,
                **{key: results[key] for key in ("validation_loss", "curve", "outcomes", "restricted_mean_steps")},
                **describe(tracer, read_records(folder / RECORDS), evaluation),
                "action_gap_on_demonstrations": _quartiles(
                    gaps_on_demonstrations(policy, demonstrations) if foreseeing else np.zeros(0)
                ),
            }
            write_json(folder / RESULT, done)
        measured.append(done)
        records.append(read_records(folder / RECORDS))
    spec = plan.task.spec
    horizons = [point["horizon"] for point in measured[0]["curve"]]
    result = {
        "task": spec.id,
        "kind": spec.kind,
        "env_options": plan.task.varied,
        "use": "selection",
        "seed": plan.seed,
        "episodes": plan.episodes,
        "horizons": horizons,
        "divergence_of_demonstrations": quartiles(demonstrations.apart),
        "checkpoints": measured,
        "rank_correlation": correlations(measured, records, spec.kind, horizons),
        "versions": versions(),
    }
    write_json(out / RESULT, result)
    figure = plots.feedback_figure(result, spec.control_hz)
    plots.save(figure, out / FIGURE)
    against = None
    if all(each["validation_loss"] is not None for each in measured):
        last = [each["curve"][-1] for each in measured]
        against = plots.validation_figure(
            [each["validation_loss"] for each in measured],
            [point["success_rate"] for point in last],
            [point["ci95"] for point in last],
            [f"{each['step']:,}" for each in measured],
        )
        plots.save(against, out / VALIDATION)
    write_feedback_report(out / "report.html", result, spec.description, figure, against, Run.of(checkpoints[0]))
    return result


def _done(path: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """What an earlier call measured of this checkpoint in this way, or None."""
    if not path.exists():
        return None
    found = read_json(path, {"identity": {"checkpoint": dict}})

    def unplaced(content: dict[str, Any]) -> dict[str, Any]:  # a run folder may be moved
        return {**content, "checkpoint": {**content["checkpoint"], "path": None}}

    return found if unplaced(found["identity"]) == unplaced(identity) else None


def describe(tracer: Tracer, records: Sequence[EpisodeRecord], evaluation: Evaluation) -> dict[str, Any]:
    """Divergence and action gap of one checkpoint's rollouts, over all steps and against the horizon."""
    demonstrations = tracer.demonstrations
    traces = [tracer.traces[record.episode] for record in records]
    lengths = np.cumsum([len(trace.states) for trace in traces])[:-1]
    distances = np.split(demonstrations.distance(np.concatenate([np.array(trace.states) for trace in traces])), lengths)
    # A step's gap stands where the step ends, as its state does.
    gaps = [np.array([np.nan, *trace.gaps]) for trace in traces]
    steps = np.unique(np.linspace(0, evaluation.horizon, POINTS + 1).round().astype(int)).tolist()
    succeeded = [record.outcome == "success" for record in records]
    cut = [share for trace in traces for share in trace.cut]
    return {
        "divergence": _summary(distances)
        | {
            "along": along(distances, steps),
            "along_successes": along([each for each, won in zip(distances, succeeded, strict=True) if won], steps),
            "along_others": along([each for each, won in zip(distances, succeeded, strict=True) if not won], steps),
        },
        "action_gap": _summary(gaps) | {"along": along(gaps, steps)}
        if np.isfinite(np.concatenate(gaps)).any()
        else None,
        "actions_cut": float(np.mean(cut)) if cut else 0.0,
    }


def _summary(values: Sequence[Floats]) -> dict[str, Any]:
    """Geometric mean over the steps of each episode, and over episodes with its interval: a few cubes that roll out of reach are a
    hundred times as far away, and would be all that an arithmetic mean says."""
    logs = [np.log(np.maximum(each[np.isfinite(each)], LEAST)).mean() for each in values if np.isfinite(each).any()]
    found = statistics.mean_with_interval(np.array(logs))
    interval = found["ci95"] and [float(np.exp(bound)) for bound in found["ci95"]]
    return {"mean": float(np.exp(found["mean"])), "ci95": interval}


def _quartiles(values: Floats) -> dict[str, float] | None:
    return quartiles(values) if len(values) else None


def correlations(
    measured: Sequence[dict[str, Any]], records: Sequence[Sequence[EpisodeRecord]], kind: str, horizons: Sequence[int]
) -> list[dict[str, Any]]:
    """Rank correlation over checkpoints of each measure with success, at every horizon: ``[{measure, horizon, spearman, kendall,
    p_value, ci95}]``. Empty for fewer than three checkpoints."""
    if len(measured) < FEWEST:
        return []
    success = np.stack([statistics.success_matrix(each, kind, horizons) for each in records])  # [C, E, H]
    found = []
    for measure in MEASURES:
        raw = [each[measure] for each in measured]
        values = [each["mean"] if isinstance(each, dict) else each for each in raw]
        if any(value is None for value in values):
            continue
        for h, horizon in enumerate(horizons):
            found.append(
                {"measure": measure, "horizon": horizon, **rank_correlation(np.array(values), success[:, :, h])}
            )
    return found


def rank_correlation(measure: Floats, success: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Spearman's and Kendall's rank correlation of a measure ``[C]`` with success rates, from successes ``[C, E]`` on common episodes.

    The p-value is of a permutation test of Spearman's over checkpoints, exact up to seven. Checkpoints of one run are no independent
    draws: it says whether the order could be chance, not that another run would show it. The interval is a bootstrap over episodes,
    the same resample for all checkpoints: what other initial states would have given. All None where either side is constant.
    """
    nothing = {"spearman": None, "kendall": None, "p_value": None, "ci95": None}
    rates = success.mean(axis=1)
    if np.ptp(measure) == 0 or np.ptp(rates) == 0:
        return nothing

    def spearman(values: np.ndarray, axis: int = -1) -> np.ndarray:
        return spearman_with(measure, np.moveaxis(values, axis, -1))

    test = scipy.stats.permutation_test(
        (rates,), spearman, permutation_type="pairings", vectorized=True, n_resamples=9999, random_state=seed
    )
    episodes = success.shape[1]
    weights = np.random.default_rng(seed).multinomial(episodes, np.full(episodes, 1 / episodes), size=RESAMPLES)
    replicates = spearman(np.einsum("re,ce->rc", weights, success) / episodes)
    low, high = np.nanquantile(replicates, [0.025, 0.975])
    return {
        "spearman": float(spearman(rates)),
        "kendall": float(scipy.stats.kendalltau(measure, rates).statistic),
        "p_value": float(test.pvalue),
        "ci95": [float(low), float(high)],
    }


def spearman_with(measure: Floats, values: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of ``[C]`` with each row of ``[..., C]``; NaN for a constant row."""
    a, b = scipy.stats.rankdata(measure), scipy.stats.rankdata(values, axis=-1)
    a, b = a - a.mean(), b - b.mean(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return np.asarray((a * b).sum(axis=-1) / np.sqrt((a**2).sum() * (b**2).sum(axis=-1)))
