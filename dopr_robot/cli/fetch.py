"""Public data or weights by name, from the Hugging Face hub. It takes the extra `hub`.

NAME is one of those that are listed without one, `user/name` of any data set, or an address: hf://user/name/path for a file or folder
of it, hf://models/user/name for a model. It goes into the hub's own cache (HF_HOME), once, and every file is compared with the hub's
checksum; a call that was stopped goes on. The last line of the output is where it lies.

  dopr fetch
  dopr fetch lerobot/pusht
  dopr fetch robomimic/lift-ph --out data/lift
  dopr fetch hf://user/name/demos/demo.hdf5
"""

import argparse
from pathlib import Path

from dopr_robot.cli.printing import add_json, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="what; without it the names are listed")
    parser.add_argument("--out", type=Path, metavar="DIR", help="copy it into a new folder too")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from dopr_robot import fetch, list_data

    if args.name is None:
        show(list_data(), args)
        return 0
    found = fetch(args.name, args.out)
    show(found, args, found.path)
    return 0
