"""Success versus horizon of a trained policy.

RUN is a run folder or a checkpoint folder. The policy is rolled out from initial states that nobody has trained or chosen a
checkpoint on; success is reported at every horizon asked for, from the same rollouts. The records do not depend on --num-envs or
--workers. The evaluation's folder is the last line of the output.

  dopr eval runs/pick_place
  dopr eval runs/pick_place --episodes 500 --horizons 50,100,200 --seed 1
  dopr eval runs/pick_place --out eval/a --resume
  dopr eval runs/stack --lengths 1,2,3,4
  dopr eval runs/act --acting ensemble=true                # otherwise than the checkpoint says: temporal ensembling
  dopr eval runs/pick_place --acting delay=2               # plans that are two steps late

With --feedback, every checkpoint of the run is rolled out from initial states for selection: validation loss beside success, how far
the policy strays from the demonstrations, and how far its plans are from what it does. Keep checkpoints for it when training
(training.keep_checkpoints=20).

  dopr eval runs/pick_place --feedback --episodes 50
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dopr_robot.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="run folder or checkpoint folder")
    parser.add_argument("--task", help="another task than the policy was trained for")
    parser.add_argument(
        "--episodes", type=int, metavar="N", help="initial states (default: the run's evaluation.episodes)"
    )
    parser.add_argument(
        "--horizons", type=integers, metavar="A,B,C", help="control steps (default: 8 equal ones up to the longest)"
    )
    parser.add_argument(
        "--lengths",
        type=integers,
        metavar="A,B,C",
        help="lengths of the task, where it has one: success versus length too",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="block of initial states (default 0)")
    parser.add_argument(
        "--num-envs", type=int, metavar="E", help="copies of the environment (default: by the number of cores)"
    )
    parser.add_argument("--workers", type=int, metavar="W", help="threads (default: one a core)")
    parser.add_argument(
        "--video", type=int, metavar="K", help="episodes in the video; 0: none (default: the run's evaluation.video)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="the evaluation's folder (default RUN/eval/<step>-seed<S>)"
    )
    parser.add_argument(
        "--acting",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="how plans become actions, as policy.acting does: ensemble, decay, delay, compile",
    )
    parser.add_argument(
        "--feedback", action="store_true", help="measure test-time feedback over the run's checkpoints instead"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the evaluation in that folder")


def run(args: argparse.Namespace) -> int:
    if args.feedback:
        folder = feedback(args)
        print_feedback(folder)
        print(folder)
        return 0
    folder = evaluate_run(
        args.run,
        task=args.task,
        episodes=args.episodes,
        horizons=args.horizons,
        lengths=args.lengths,
        seed=args.seed,
        num_envs=args.num_envs,
        workers=args.workers,
        video=args.video,
        acting=args.acting,
        out=args.out,
        resume=args.resume,
    )
    print_results(folder)
    print(folder)
    return 0


def evaluate_run(
    run: Path,
    *,
    task: str | None = None,
    episodes: int | None = None,
    horizons: list[int] | None = None,
    lengths: list[int] | None = None,
    seed: int = 0,
    num_envs: int | None = None,
    workers: int | None = None,
    video: int | None = None,
    acting: Sequence[str] = (),
    out: Path | None = None,
    resume: bool = False,
) -> Path:
    """Evaluate a run's last checkpoint, or the checkpoint given, and return the evaluation's folder.

    What is None is taken from the run's ``config.yaml``, or from its defaults for a checkpoint without one.

    Raises:
        UserError: no checkpoint there, or something asked for that can not be.
    """
    from dopr_robot.evaluation import Evaluation, evaluate
    from dopr_robot.evaluation.lengths import evaluate_lengths
    from dopr_robot.policies import find_checkpoint, load_policy
    from dopr_robot.settings import parse_words

    checkpoint = find_checkpoint(run).resolve()
    policy = load_policy(checkpoint, acting=parse_words(acting))
    config = _config_of(checkpoint)
    name = task or policy.task
    if name is None:
        raise UserError(f"{run} does not say which task it was trained for: --task NAME (see dopr tasks)")
    evaluation = Evaluation(
        policy,
        name,
        episodes=config.evaluation.episodes if episodes is None else episodes,
        seed=seed,
        horizons=horizons,
        checkpoint=checkpoint,
    )
    folder = out or _default_folder(checkpoint, seed, resume)
    options: dict[str, Any] = {
        "num_envs": num_envs,
        "workers": workers,
        "video": config.evaluation.video if video is None else video,
        "validation_loss": _validation_loss(policy, config),
        "resume": resume,
    }
    if lengths:
        evaluate_lengths(evaluation, folder, lengths, **options)
    else:
        evaluate(evaluation, folder, **options)
    return folder


def feedback(args: argparse.Namespace) -> Path:
    """Measure test-time feedback over a run's checkpoints, or of the one given, and return the folder."""
    from dopr_robot.evaluation.feedback import Plan, measure_feedback
    from dopr_robot.evaluation.provenance import run_of
    from dopr_robot.policies import find_checkpoint, load_policy
    from dopr_robot.training import Checkpoints

    for option in ("lengths", "video", "acting"):
        if getattr(args, option):
            raise UserError(f"--feedback goes without --{option}")
    checkpoint = find_checkpoint(args.run).resolve()
    home = run_of(checkpoint)
    if home is None:
        raise UserError(
            f"{args.run} lies in no run folder: --feedback needs the run's config.yaml and its demonstrations"
        )
    config = _config_of(checkpoint)
    if config.data.store is None or not Path(config.data.store).exists():
        raise UserError(f"the run's demonstrations are not there: {config.data.store} (run from where it was trained)")
    name = args.task or load_policy(checkpoint).task
    if name is None:
        raise UserError(f"{args.run} does not say which task it was trained for: --task NAME (see dopr tasks)")
    whole_run = args.run.resolve() == home.resolve()
    steps = Checkpoints(home / "checkpoints").steps() if whole_run else []
    plan = Plan(
        name, args.episodes or config.evaluation.episodes, args.seed, args.horizons, args.num_envs, args.workers
    )
    folder = args.out or _free_folder(home / "eval" / f"feedback-seed{args.seed}", args.resume)
    checkpoints = [home / "checkpoints" / str(step) for step in steps] or [checkpoint]
    measure_feedback(checkpoints, config, plan, folder, resume=args.resume)
    return folder


def print_feedback(folder: Path) -> None:
    """A measurement of test-time feedback as tables on stdout."""
    import json

    from dopr_robot.evaluation.feedback import MEASURES, RESULT

    result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    longest = result["horizons"][-1]
    print(f"{result['task']} ({result['kind']}), {result['episodes']} initial states for selection, horizon {longest}")
    print(
        f"{'step':>9} {'valid. loss':>11} {'success':>8}   {'95 % interval':<17} {'divergence':>10} {'action gap':>10}"
    )
    for each in result["checkpoints"]:
        low, high = each["curve"][-1]["ci95"]
        loss = "-" if each["validation_loss"] is None else f"{each['validation_loss']:.5f}"
        gap = f"{each['action_gap']['mean']:.3f}" if each["action_gap"] else "-"
        print(
            f"{each['step']:>9,} {loss:>11} {each['curve'][-1]['success_rate']:>8.1%}   {f'{low:.1%} to {high:.1%}':<17} "
            f"{each['divergence']['mean']:>10.2f} {gap:>10}"
        )
    for each in result["rank_correlation"]:
        if each["horizon"] == longest:
            found = "constant" if each["spearman"] is None else f"{each['spearman']:+.2f} (p {each['p_value']:.3f})"
            print(f"rank correlation with success: {MEASURES[each['measure']]} {found}")
    if not result["rank_correlation"]:
        print("fewer than three checkpoints: no rank correlation (train with training.keep_checkpoints=20)")


def print_results(folder: Path) -> None:
    """The curve of an evaluation as a table on stdout."""
    from dopr_robot.envs import get_task
    from dopr_robot.evaluation import read_results

    results = read_results(folder)
    hz = get_task(results["task"]).control_hz
    print(f"{results['task']} ({results['kind']}), {results['episodes']} episodes")
    print(f"{'horizon':>8} {'seconds':>8} {'success':>8}   95 % interval")
    for point in results["curve"]:
        low, high = point["ci95"]
        print(
            f"{point['horizon']:>8} {point['horizon'] / hz:>8.1f} {point['success_rate']:>8.1%}   {low:.1%} to {high:.1%}"
        )
    if results["lengths"]:
        print(f"{'length':>8} {'episodes':>8} {'success':>8}   95 % interval, at {results['horizons'][-1]} steps")
    for point in results["lengths"]:
        low, high = point["ci95"]
        print(f"{point['length']:>8} {point['episodes']:>8} {point['success_rate']:>8.1%}   {low:.1%} to {high:.1%}")
    ends = [f"{count} {name}" for name, count in results["outcomes"].items() if count]
    ends += [f"{count} x {cause}" for cause, count in results["causes"].items()]
    print("ended by: " + ", ".join(ends))
    for name, value in results["metrics"].items():
        low, high = value["ci95"] or (value["mean"], value["mean"])
        print(f"mean {name}: {value['mean']:.3f} (95 %: {low:.3f} to {high:.3f})")
    if results["validation_loss"] is not None:
        print(f"validation loss: {results['validation_loss']:.5f}")
    for fault in results["faults"]:
        print(f"fault: {fault}")


def integers(text: str) -> list[int]:
    """``"1,2,3"`` as a list; argparse tells the user of anything else."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers such as 50,100,200") from None


def run_of(checkpoint: Path) -> Path | None:
    """The run folder that a checkpoint lies in, or None."""
    run = checkpoint.parent.parent
    return run if checkpoint.parent.name == "checkpoints" and (run / "config.yaml").is_file() else None


def _config_of(checkpoint: Path) -> Any:
    from dopr_robot.evaluation.provenance import run_of
    from dopr_robot.training import RunConfig, load_config

    run = run_of(checkpoint)
    return load_config(run / "config.yaml") if run else RunConfig()


def _validation_loss(policy: Any, config: Any) -> float | None:
    """On the held-out episodes of the run's store, where it is there."""
    from dopr_robot.training import load_data, validation_loss

    if config.data.store is None or not Path(config.data.store).exists():
        return None
    data = load_data(config)
    return None if data.validation is None else validation_loss(policy, data.validation)


def _default_folder(checkpoint: Path, seed: int, resume: bool) -> Path:
    from dopr_robot.evaluation.provenance import run_of

    run = run_of(checkpoint)
    if run is None:
        raise UserError(f"{checkpoint} lies in no run folder: --out DIR says where the evaluation goes")
    return _free_folder(run / "eval" / f"{checkpoint.name}-seed{seed}", resume)


def _free_folder(first: Path, resume: bool) -> Path:
    """``first``, or ``first-2``, ... where that is taken; with ``resume`` the last one that is."""
    folders = [
        first,
        *sorted(first.parent.glob(f"{first.name}-[0-9]*"), key=lambda path: int(path.name.rsplit("-", 1)[1])),
    ]
    taken = [folder for folder in folders if folder.exists()]
    if not taken:
        return first
    return taken[-1] if resume else first.with_name(f"{first.name}-{len(taken) + 1}")
