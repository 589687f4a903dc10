"""The optimizers there are, each with its settings and their defaults; dopr_<base> is the base under double preconditioning.

dopr train pick_place optimizer=dopr_muon optimizer.lr=1e-3
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    del parser


def run(args: argparse.Namespace) -> int:
    from dopr_robot.optim import optimizer_names, optimizer_options

    del args
    width = max(map(len, optimizer_names()))
    for name in optimizer_names():
        settings = " ".join(f"{key}={value}" for key, value in optimizer_options(name).items())
        print(f"{name:<{width}}  {settings}")
    return 0
