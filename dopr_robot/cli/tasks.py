"""The tasks there are: name, kind, longest horizon, control rate, expert, and what success means.

A task whose package is not installed is listed with the extra that brings it.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    del parser


def run(args: argparse.Namespace) -> int:
    from dopr_robot.envs import list_tasks

    del args
    for spec in list_tasks():
        expert = "expert" if spec.has_expert else "-"
        extra = f"  [extra: {spec.extra}]" if spec.extra else ""
        print(
            f"{spec.id}  {spec.kind}  {spec.max_steps} steps  {spec.control_hz:g} Hz  {expert}  {spec.description}{extra}"
        )
    return 0
