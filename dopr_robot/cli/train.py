"""Train a policy on a store.

EXPERIMENT is a name (see dopr_robot/configs/experiment), a YAML file, or left out; key=value changes single settings. A store that is
not there is collected first where the experiment says how (dopr config collect), and a line says so.
The run goes to runs/<name>/, and that folder is the last line of the output. Under torchrun or accelerate launch several
processes share every batch (docs/multi-node.md).

  dopr train pick_place
  dopr train pusht_state data.store=pusht.zarr.zip optimizer=adamw optimizer.lr=3e-4
  dopr train pick_place training.rollout_every=1000 training.early_stop=success_rate
  dopr train --resume runs/pick_place
"""

import argparse
import os
from pathlib import Path

from dopr_robot.errors import UserError
from dopr_robot.settings import is_setting


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="EXPERIMENT | key=value", help="experiment first, then settings")
    parser.add_argument("--resume", metavar="RUN", type=Path, help="go on with a run folder from its last checkpoint")
    parser.add_argument("--print", action="store_true", help="print the configuration and stop")
    parser.add_argument("--force", action="store_true", help="resume although settings were changed")
    parser.add_argument(
        "--profile", action="store_true", help="measure what the first steps spend: a table, and a trace in RUN/profile"
    )


def run(args: argparse.Namespace) -> int:
    from dopr_robot import train
    from dopr_robot.experiment import configuration

    experiment, settings = _split(args.words)
    asked = {"resume": args.resume, "force": args.force}
    if args.print:
        print(configuration(experiment, settings, **asked).to_yaml(), end="")
        return 0
    folder = train(experiment, *settings, **asked, profile=args.profile)
    if int(os.environ.get("RANK", "0")) == 0:
        print(folder)
    return 0


def _split(words: list[str]) -> tuple[str | None, list[str]]:
    """Experiment and settings; ``experiment=NAME`` is another way to name it."""
    named = [word for word in words if _names_experiment(word)]
    if len(named) > 1:
        raise UserError(f"one experiment at a time, not {' and '.join(named)}: settings are key=value")
    return (named[0].removeprefix("experiment=") if named else None), [word for word in words if word not in named]


def _names_experiment(word: str) -> bool:
    """A file may lie in a folder that is called ``lr=3``."""
    return (
        word.startswith("experiment=") or "=" not in word or (word.endswith((".yaml", ".yml")) and not is_setting(word))
    )
