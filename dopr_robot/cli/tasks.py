"""The tasks there are: name, kind, longest horizon, control rate, expert, and what success means.

A pattern over names, or the name of a group, lists those. A task whose package is not installed is listed with the extra that brings it.
With the name of one, everything about that task; with --check too, it is run and held to what has to hold for every task (exit code 1
where something does not): for a simulator of your own, see docs/simulators.md.

  dopr tasks
  dopr tasks PickPlace
  dopr tasks 'metaworld/*'
  dopr tasks metaworld/easy                            # a group, as papers report them
  dopr tasks my_sim/Reach-v0 --check
  dopr tasks --page docs/tasks.md
"""

import argparse
import logging
from pathlib import Path

from dopr_robot.cli.printing import add_json, show
from dopr_robot.errors import UserError

LOG = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "task", metavar="NAME", nargs="?", help="everything about this one; or a pattern or group, to list it"
    )
    parser.add_argument("--check", action="store_true", help="run the task and say what it does not keep to")
    parser.add_argument("--page", type=Path, metavar="FILE.md", help="write the page of all tasks, pictures beside it")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from dopr_robot import describe_task, list_tasks
    from dopr_robot.envs import names_several

    if args.page:
        from dopr_robot.envs.page import write_page

        for problem in write_page(args.page):
            LOG.warning("no picture of %s", problem)
        print(args.page)
        return 0
    if args.task is not None:
        if args.check:
            return _check(args.task, args.quiet)
        show(list_tasks(args.task) if names_several(args.task) else describe_task(args.task), args)
        return 0
    if args.check:
        raise UserError("--check wants a task: dopr tasks NAME --check")
    show(list_tasks(), args)
    return 0


def _check(name: str, quiet: bool) -> int:
    from dopr_robot.envs import get_task
    from dopr_robot.envs.conformance import CHECKS, check_task

    spec, wrong = get_task(name), 0
    for check, found in check_task(spec):
        says = (CHECKS[check].__doc__ or "").splitlines()[0]
        if found or not quiet:
            print(f"{'wrong' if found else 'good':<6} {check}: {'' if found else says}".rstrip(), flush=True)
        for line in found:
            print(f"       {line}", flush=True)
        wrong += bool(found)
    print(f"{spec.id}: " + (f"{wrong} of {len(CHECKS)} checks failed" if wrong else "good"))
    return 1 if wrong else 0
