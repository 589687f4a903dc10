"""The run folders there are: policy, optimizer, step, and how the newest checkpoint that was evaluated did.

dopr runs
dopr runs studies/first/runs --json
"""

import argparse

from dopr_robot.cli.printing import add_json, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", nargs="?", default="runs", help="where they lie (default runs)")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from dopr_robot import list_runs

    show(list_runs(args.folder), args)
    return 0
