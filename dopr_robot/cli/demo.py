"""The main job on a built-in task: collect, train, evaluate, plot, render.

An expert gives demonstrations in MuJoCo, a policy learns them under DoPr, and rollouts from initial states that nobody has seen say
how success depends on the horizon. What is there already is not made again, so a demo that was stopped goes on.

  dopr demo
"""

import argparse
from pathlib import Path

from dopr_robot.cli.printing import add_json, show
from dopr_robot.progress import tell


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--experiment", default="pick_place", help="what is trained (default pick_place)")
    parser.add_argument("--demonstrations", type=int, metavar="N", help="default: the experiment's, 250")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), metavar="RUN", help="run folder (default runs/demo)"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from dopr_robot import evaluate, train
    from dopr_robot.experiment import collect_missing, configuration

    changes = {"name": args.out.name}
    if args.demonstrations is not None:
        changes["collect.demonstrations"] = args.demonstrations
    config = configuration(args.experiment, changes)
    _headline(1, f"demonstrations of {config.task.name} in {config.data.store}")
    collect_missing(config)
    _headline(2, f"{config.policy['name']} under {config.optimizer['name']} into {args.out}")
    train(config, out=args.out)
    _headline(3, f"success versus horizon over {config.evaluation.episodes} fresh initial states")
    results = evaluate(args.out)
    for name in ("report.html", "horizon.png", "rollouts.mp4"):
        tell(f"{name}: {results.folder / name}")
    show(results, args, results.folder)
    return 0


def _headline(number: int, text: str) -> None:
    tell(f"[{number}/3] {text}")
