"""The policies there are: a name is an objective and a network, or one of an outsider's.

dopr policies
dopr policies flow
dopr train pick_place policy=diffusion_unet
"""

import argparse

from dopr_robot.cli.printing import add_json, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "word", nargs="?", metavar="WORD", help="only those with this word in the name (an objective, a network)"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from dopr_robot import list_policies

    show(list_policies(args.word), args)
    return 0
