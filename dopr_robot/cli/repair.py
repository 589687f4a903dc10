"""A damaged store back to its last whole episode.

For damage from outside (a disk, a copy that stopped): what dopr writes itself is whole after a kill at any moment. The store is
written anew beside its place and exchanged, so nothing is lost if this is stopped.

  dopr repair data/pick_place.zarr
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE", help="a store's folder")


def run(args: argparse.Namespace) -> int:
    from dopr_robot import repair

    for line in repair(args.store) or [f"{args.store}: nothing to repair"]:
        print(line)
    return 0
