"""Whether one run beats another, or a whole study of them.

Each RUN is a run folder, a checkpoint or an evaluation folder. Runs are evaluated on common initial states, unless they have been
already; runs that differ in the training seed alone are one method. The comparison says, at every horizon, how large the difference
is, how sure that is, and how many episodes it would take to see one of a given size.

  dopr compare runs/adamw runs/dopr --episodes 200
  dopr compare runs/adamw-* runs/dopr-* --horizons 50,100,200 --labels AdamW,DoPr --out comparison
  dopr compare runs/adamw runs/dopr --sequential --episodes 1000
  dopr compare runs/a runs/b runs/c --sequential --on coverage --margin 3 --episodes 1000

A YAML file is a study: optimizers, learning rates and seeds from equal beginnings, trained, tested and reported; key=value changes
single settings. What is finished is not run again (docs/studies.md).

  dopr compare studies/first.yaml --out studies/first
  dopr compare studies/first.yaml training.steps=200 seeds=[0] --workers 2 --out try
  dopr compare studies/first.yaml --ray auto --out studies/first
"""

import argparse
from pathlib import Path

from dopr_robot.cli.eval import integers
from dopr_robot.cli.options import add_option, option_values
from dopr_robot.cli.printing import add_json, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        type=Path,
        help="run, checkpoint or evaluation folders; or STUDY.yaml [key=value ...]",
    )
    parser.add_argument(
        "--episodes", type=int, default=100, metavar="N", help="initial states; with --sequential at most (default 100)"
    )
    parser.add_argument(
        "--horizons", type=integers, metavar="A,B,C", help="control steps (default: 8 equal ones up to the longest)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="block of initial states (default 0)")
    add_option(parser)
    parser.add_argument("--num-envs", type=int, metavar="E", help="copies of the environment")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where it goes (default comparison/, of a study studies/<its name>/)"
    )
    parser.add_argument(
        "--workers", type=int, metavar="W", help="a study's processes (default: by the number of cores)"
    )
    parser.add_argument(
        "--labels", type=lambda text: text.split(","), metavar="A,B", help="what the methods are called, in their order"
    )
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="on a Ray cluster (auto, or head:6379) instead of this machine"
    )
    parser.add_argument(
        "--sequential", action="store_true", help="block by block, until an anytime-valid test has decided every pair"
    )
    parser.add_argument(
        "--on",
        default="success",
        metavar="FIGURE",
        help="what --sequential compares: success, time, stages, one of the task's figures in [0, 1], or order:return (default success)",
    )
    parser.add_argument(
        "--margin",
        type=float,
        default=5.0,
        metavar="POINTS",
        help="of a pair that differs by less --sequential says so and stops; 0: it goes on (default 5)",
    )
    parser.add_argument("--block", type=int, default=20, metavar="B", help="episodes between two looks (default 20)")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    if args.runs[0].suffix in (".yaml", ".yml"):
        return _study(args)
    from dopr_robot import compare

    found = compare(
        args.runs,
        episodes=args.episodes,
        horizons=args.horizons,
        seed=args.seed,
        options=option_values(args.option),
        labels=args.labels,
        num_envs=args.num_envs,
        ray=args.ray,
        sequential=args.sequential,
        on=args.on,
        margin=args.margin / 100,
        block=args.block,
        out=args.out or "comparison",
    )
    show(found, args, found.folder)
    return 0


def _study(args: argparse.Namespace) -> int:
    from dopr_robot import run_study

    path, *settings = args.runs
    found = run_study(path, *map(str, settings), out=args.out, workers=args.workers, ray=args.ray)
    show(found, args, found.folder)
    return 0
