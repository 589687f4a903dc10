"""What is found, on stdout: as text, or as JSON for programs."""

import argparse
import json
from typing import Any


def add_json(parser: argparse.ArgumentParser) -> None:
    """The option ``--json``."""
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")


def show(found: Any, args: argparse.Namespace, last: Any = None) -> None:
    """An object as it prints itself, then ``last`` on a line of its own; with ``--json`` its plain values alone, with ``--quiet`` the last
    line alone, where there is one."""
    if args.json:
        print(json.dumps(found.plain()))
        return
    if last is None or not args.quiet:
        print(found)
    if last is not None:
        print(last)
