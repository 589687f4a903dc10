"""What is in a store, a run, a checkpoint or a study's folder.

For a store: keys with shapes and ranges (~: of a sample, where a key is large), lengths of the episodes, success, what an action means,
and what is odd. --check reads everything, and replays ten episodes where the task's simulator is installed and their seeds are known: do
they end up where they were recorded, and succeed? Exit code 0 for a good store (oddities are warnings), 1 for damage, one line each, 2 for
what is no store. For a study: its table, or how far it is. --html writes a page with plots and pictures, of a run
with its training curve, its settings and its evaluations.

  dopr info data/pick_place.zarr
  dopr info data/pick_place.zarr --check
  dopr info data/pick_place.zarr --html pick_place.html
  dopr info runs/pick_place --json
  dopr info runs/pick_place --html pick_place.html
  dopr info studies/first
  dopr info --versions                                 # what a report of a fault begins with
"""

import argparse
from pathlib import Path

from dopr_robot.cli.printing import add_json, show
from dopr_robot.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", metavar="PATH", nargs="?", help="a store, or the folder of a run, a checkpoint or a study"
    )
    parser.add_argument("--check", action="store_true", help="read everything in a store and report damage")
    add_json(parser)
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page about it")
    parser.add_argument("--versions", action="store_true", help="versions of everything that matters, and the machine")


def run(args: argparse.Namespace) -> int:
    from dopr_robot import check_store, info, versions

    if args.versions:
        show(versions(), args)
        return 0
    if args.path is None:
        raise UserError(
            "info wants a store, or the folder of a run, a checkpoint or a study: dopr info PATH (or --versions)"
        )
    if args.check:
        report = check_store(args.path)
        show(report, args)
        return 1 if report.damage else 0
    found = info(args.path)
    if args.html is not None:
        found.write_page(args.html)
        print(args.html)
    else:
        show(found, args)
    return 0
