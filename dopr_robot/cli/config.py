"""What settings mean, with their defaults: one key, a section, or all.

The defaults are those without an experiment; `dopr train EXPERIMENT --print` shows an experiment's.

  dopr config training.ema_power
  dopr config optimizer
  dopr config lr
"""

import argparse

from dopr_robot.cli.printing import add_json, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("key", metavar="KEY", nargs="?", help="a whole key, a section, or the last part of a key")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from dopr_robot import explain

    show(explain(args.key), args)
    return 0
