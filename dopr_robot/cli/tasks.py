"""The tasks there are: name, kind, longest horizon, control rate, expert, and what success means.

A task whose package is not installed is listed with the extra that brings it.

  dopr tasks
  dopr tasks --page docs/tasks.md
"""

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--page", type=Path, metavar="FILE.md", help="write the page of all tasks, pictures beside it")


def run(args: argparse.Namespace) -> int:
    from dopr_robot.envs import list_tasks

    if args.page:
        from dopr_robot.envs.page import write_page

        for problem in write_page(args.page):
            print(f"dopr: no picture of {problem}", file=sys.stderr)
        print(args.page)
        return 0
    for spec in list_tasks():
        expert = "expert" if spec.has_expert else "-"
        extra = f"  [extra: {spec.extra}]" if spec.extra else ""
        print(
            f"{spec.id}  {spec.kind}  {spec.max_steps} steps  {spec.control_hz:g} Hz  {expert}  {spec.description}{extra}"
        )
    return 0
