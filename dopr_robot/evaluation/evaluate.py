"""Success versus horizon of a run, a checkpoint or a policy."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dopr_robot.envs import Task
from dopr_robot.envs.task import varied
from dopr_robot.errors import UserError
from dopr_robot.evaluation.evaluator import run_evaluation
from dopr_robot.evaluation.lengths import evaluate_lengths
from dopr_robot.evaluation.perturbed import evaluate_perturbed
from dopr_robot.evaluation.results import Results
from dopr_robot.evaluation.rollouts.group import ActingPolicy
from dopr_robot.evaluation.rollouts.plan import Evaluation, describe_checkpoint
from dopr_robot.hub import Address, is_address
from dopr_robot.policies import Policy, find_checkpoint, load_policy
from dopr_robot.policies.checkpoint import read_description, read_spec
from dopr_robot.policies.spec import PolicySpec
from dopr_robot.training import Run, RunConfig, load_data, validation_loss
from dopr_robot.training.data import task_id
from dopr_robot.training.folder import free_or_last


def evaluate(
    run: str | os.PathLike[str] | ActingPolicy,
    task: Task | str | None = None,
    *,
    episodes: int | None = None,
    horizons: Sequence[int] | None = None,
    lengths: Sequence[int] | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    perturb: Mapping[str, Sequence[Any]] | None = None,
    acting: Mapping[str, Any] | None = None,
    num_envs: int | None = None,
    workers: int | None = None,
    ray: str | None = None,
    video: int | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
) -> Results:
    """Roll a policy out from initial states that nobody has trained or chosen a checkpoint on, as ``dopr eval`` does.

    >>> results = evaluate("runs/pick_place", episodes=100)                  # doctest: +SKIP
    >>> results.success_rate, results.folder                                 # doctest: +SKIP

    What is None is taken from the run's ``config.yaml``, or from its defaults for what has none.

    Args:
        run: a run (its last checkpoint), a run folder, a checkpoint folder, ``hf://user/name``, or a policy in memory.
        task: another than the policy was trained for.
        episodes: initial states.
        horizons: control steps at which success is reported; None: 8 equal ones up to the task's longest.
        lengths: of the task, where it has one: success versus length too.
        seed: block of initial states.
        options: of the task, over those that the policy was trained for.
        perturb: values of options by name (``{"observation_noise": [0.01, 0.02]}``; several: every combination): each is rolled out from
            the same initial states as the unperturbed task.
        acting: how plans become actions, over the checkpoint's (``{"ensemble": True}``).
        num_envs: copies of the environment, and ``workers``: threads; the records depend on neither.
        ray: address of a Ray cluster that runs the episodes instead, see :class:`~dopr_robot.cluster.Cluster`; ``num_envs`` is then of
            each group of episodes.
        video: episodes in the video; 0: none.
        out: the evaluation's folder; None: ``RUN/eval/<step>-seed<seed>``, of a policy in memory
            ``eval/<task>-seed<seed>``, of one on the hub ``eval/<name>-seed<seed>``.
        resume: go on with the evaluation in that folder.

    Raises:
        UserError: no checkpoint there, or something asked for that can not be.
        DoprError: the work failed; what was recorded is kept.
    """
    policy: ActingPolicy
    if isinstance(run, str | os.PathLike):
        checkpoint = find_checkpoint(run).resolve()
        chosen = chosen_task(task, read_spec(checkpoint), run, options)
        policy = load_policy(checkpoint, acting=acting)
    elif acting:
        raise UserError("acting is of a run or checkpoint: a policy in memory acts as it was made")
    else:
        policy, checkpoint = run, None
        chosen = chosen_task(task, policy.spec if isinstance(policy, Policy) else None, run, options)
    home = Run.of(checkpoint) if checkpoint else None
    config = home.config if home else RunConfig()
    evaluation = Evaluation(
        policy,
        chosen,
        episodes=config.evaluation.episodes if episodes is None else episodes,
        seed=seed,
        horizons=horizons,
        checkpoint=checkpoint,
    )
    if out is not None:
        folder = Path(out)
    elif is_address(run):  # the cache is no place for it
        folder = free_or_last(Path("eval") / f"{Address.parse(str(run), 'model').name}-seed{seed}", resume=resume)
    else:
        folder = _default_folder(evaluation, home, resume)
    more: dict[str, Any] = {
        "num_envs": num_envs,
        "workers": workers,
        "ray": ray,
        "video": config.evaluation.video if video is None else video,
        "validation_loss": _validation_loss(policy, config),
        "resume": resume,
    }
    if lengths and perturb:
        raise UserError("lengths and perturb are two measurements: one call each")
    if lengths:
        evaluate_lengths(evaluation, folder, lengths, **more)
    elif perturb:
        evaluate_perturbed(evaluation, folder, perturb, **more)
    else:
        run_evaluation(evaluation, folder, **more)
    return Results(folder)


def evaluated(
    run: str | os.PathLike[str],
    *,
    episodes: int,
    horizons: Sequence[int] | None = None,
    seed: int = 0,
    num_envs: int | None = None,
    ray: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Path:
    """The evaluation folder of a run, a checkpoint or itself: one that is there with what is asked for, or a new one."""
    path = Path(run)
    if (path / "results.json").is_file():
        return path
    checkpoint = find_checkpoint(path).resolve()
    described, home = describe_checkpoint(checkpoint), Run.of(checkpoint)
    assert described is not None
    trained = read_description(checkpoint)
    expected = varied({**(trained.get("task_options") or {}), **(options or {})})
    for folder in home.evaluations if home else []:
        found = Results(folder).content
        reach = max(horizons or [0]) <= max(found["horizons"])
        same = found["checkpoint"] and found["checkpoint"]["sha256"] == described["sha256"]
        use = found["seed"] == seed and found["use"] == "final" and found["env_options"] == expected
        if same and use and reach and not found["partial"] and found["episodes"] >= episodes:
            return folder
    return evaluate(
        path, episodes=episodes, horizons=horizons, seed=seed, num_envs=num_envs, ray=ray, options=options, video=0
    ).folder


def chosen_task(
    task: Task | str | None, spec: PolicySpec | None, named: Any, options: Mapping[str, Any] | None = None
) -> Task:
    """The task that a policy was trained for with its options, or another that is asked for, under ``options``.

    Args:
        task: that is asked for.
        spec: what the policy reads, and its task; None: a policy that does not say.
        named: the policy, in messages.
        options: of the task, over its own.

    Raises:
        UserError: neither is known, the task does not take the options or has not the cameras that the policy reads, or no OpenGL works
            that would draw them: all that can be told before a policy is loaded.
    """
    own = spec.task if spec else None
    if task is None and own is None:
        raise UserError(f"{named} does not say which task it was trained for: --task NAME (see dopr tasks)")
    wanted = task if isinstance(task, Task) else Task(task or own or "")
    if spec is not None and own is not None and not isinstance(task, Task) and task_id(own) == wanted.id:
        wanted = wanted.given(spec.task_options)
    wanted = wanted.given(options or {})
    if spec is not None:
        wanted.seen_by({key: each.shape for key, each in spec.observations.items()}).check_drawing()
    return wanted


def _validation_loss(policy: Any, config: RunConfig) -> float | None:
    """On the held-out episodes of the run's store, where it is there."""
    if config.data.store is None or not Path(config.data.store).exists():
        return None
    data = load_data(config)
    return None if data.validation is None else validation_loss(policy, data.validation)


def _default_folder(evaluation: Evaluation, home: Run | None, resume: bool) -> Path:
    checkpoint = evaluation.checkpoint
    if home is not None and checkpoint is not None:
        return home.evaluation_folder(f"{checkpoint.name}-seed{evaluation.seed}", resume=resume)
    if checkpoint is not None:
        raise UserError(f"{checkpoint} lies in no run folder: --out DIR says where the evaluation goes")
    return free_or_last(Path("eval") / f"{evaluation.spec.name}-seed{evaluation.seed}", resume=resume)
