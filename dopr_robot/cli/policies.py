"""The policies there are: a name is an objective and a network, or one of an outsider's.

dopr train pick_place policy=diffusion_unet
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    del parser


def run(args: argparse.Namespace) -> int:
    from dopr_robot.policies import POLICIES

    del args
    width = max(map(len, POLICIES))
    for name, entry in POLICIES.items():
        print(f"{name:<{width}}  {entry.summary}")
    return 0
