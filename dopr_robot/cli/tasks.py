"""The tasks there are: name, kind, longest horizon, control rate, expert, and what success means.

A task whose package is not installed is listed with the extra that brings it. With a name, everything about that task; with --check too,
it is run and held to what has to hold for every task (exit code 1 where something does not): for a simulator of your own, see
docs/simulators.md.

  dopr tasks
  dopr tasks PickPlace
  dopr tasks my_sim/Reach-v0 --check
  dopr tasks --page docs/tasks.md
"""

import argparse
import sys
from pathlib import Path

from dopr_robot.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", metavar="NAME", nargs="?", help="everything about this one")
    parser.add_argument("--check", action="store_true", help="run the task and say what it does not keep to")
    parser.add_argument("--page", type=Path, metavar="FILE.md", help="write the page of all tasks, pictures beside it")


def run(args: argparse.Namespace) -> int:
    from dopr_robot.envs import list_tasks

    if args.page:
        from dopr_robot.envs.page import write_page

        for problem in write_page(args.page):
            print(f"dopr: no picture of {problem}", file=sys.stderr)
        print(args.page)
        return 0
    if args.task is not None:
        return _check(args.task) if args.check else _show(args.task)
    if args.check:
        raise UserError("--check wants a task: dopr tasks NAME --check")
    for spec in list_tasks():
        expert = "expert" if spec.has_expert else "-"
        extra = f"  [extra: {spec.extra}]" if spec.extra else ""
        print(
            f"{spec.id}  {spec.kind}  {spec.max_steps} steps  {spec.control_hz:g} Hz  {expert}  {spec.description}{extra}"
        )
    return 0


def _show(name: str) -> int:
    from dopr_robot.envs import get_task
    from dopr_robot.envs.page import action_rows, defaults, facts

    spec = get_task(name)
    rows = [(what, value.replace("`", "")) for what, value in facts(spec)]
    try:
        spec.check_installed()
        standard = {name: "none" if value is None else value for name, value in defaults(spec).items()}
        rows.append(("installed", f"with the extra {spec.extra}" if spec.extra else "with dopr-robot"))
    except UserError as error:
        standard = {}
        rows.append(("not installed", str(error)))
    for option, what in spec.options.items():
        default = f" (default {standard[option]})" if option in standard and "default" not in what else ""
        rows.append((f"--option {option}=", what + default))
    rows.append(("action", f"{spec.action.meaning} ({'absolute' if spec.action.absolute else 'relative'})"))
    for entry, names, unit, bounds in action_rows(spec):
        rows.append((f"  {entry}", f"{names}: {bounds} {unit}"))
    width = max(len(what) for what, _ in rows)
    print("\n".join([spec.id, *(f"  {what:<{width}}  {value}" for what, value in rows)]))
    return 0


def _check(name: str) -> int:
    from dopr_robot.envs import get_task
    from dopr_robot.envs.conformance import CHECKS, check_task

    spec, wrong = get_task(name), 0
    for check, found in check_task(spec):
        says = (CHECKS[check].__doc__ or "").splitlines()[0]
        print(f"{'wrong' if found else 'good':<6} {check}: {'' if found else says}".rstrip(), flush=True)
        for line in found:
            print(f"       {line}", flush=True)
        wrong += bool(found)
    print(f"{spec.id}: " + (f"{wrong} of {len(CHECKS)} checks failed" if wrong else "good"))
    return 1 if wrong else 0
