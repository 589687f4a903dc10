"""The policies there are: a name is an objective and a network, or one of an outsider's.

dopr policies
dopr policies flow
dopr train pick_place policy=diffusion_unet
"""

import argparse

from dopr_robot.errors import UnknownNameError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "word", nargs="?", metavar="WORD", help="only those with this word in the name (an objective, a network)"
    )


def run(args: argparse.Namespace) -> int:
    from dopr_robot.policies import POLICIES

    chosen = {name: entry for name, entry in POLICIES.items() if args.word is None or args.word in name}
    if not chosen:
        raise UnknownNameError("policy", args.word, POLICIES)
    width = max(map(len, chosen))
    for name, entry in chosen.items():
        print(f"{name:<{width}}  {entry.summary}")
    return 0
