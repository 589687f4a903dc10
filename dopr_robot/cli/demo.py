"""The main job on a built-in task: collect, train, evaluate, plot, render.

An expert gives demonstrations in MuJoCo, a policy learns them under DoPr, and rollouts from initial states that nobody has seen say
how success depends on the horizon. What is there already is not made again, so a demo that was stopped goes on.

  dopr demo
"""

import argparse
from pathlib import Path

from dopr_robot.cli.printing import add_json, show
from dopr_robot.progress import tell

EPISODES = 250


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--experiment", default="pick_place", help="what is trained (default pick_place)")
    parser.add_argument("--demonstrations", type=int, default=EPISODES, metavar="N", help=f"default {EPISODES}")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), metavar="RUN", help="run folder (default runs/demo)"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from dopr_robot import collect, evaluate, train
    from dopr_robot.training import compose_config

    config = compose_config(args.experiment, [f"name={args.out.name}"])
    store = Path(config.data.store or "")
    _headline(1, f"{args.demonstrations} demonstrations of {config.task.name} into {store}")
    collect(config.task.name or "", args.demonstrations, store)
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
