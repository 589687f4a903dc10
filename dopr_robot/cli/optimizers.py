"""The optimizers there are, each with its settings and their defaults; dopr_<base> is the base under double preconditioning.

dopr train pick_place optimizer=dopr_muon optimizer.lr=1e-3
"""

import argparse

from dopr_robot.cli.printing import add_json, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from dopr_robot import list_optimizers

    show(list_optimizers(), args)
    return 0
