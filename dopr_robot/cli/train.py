"""Train a policy on a store.

EXPERIMENT is a name (see dopr_robot/configs/experiment), a YAML file, or left out; key=value changes single settings.
The run goes to runs/<name>/, and that folder is the last line of the output.

  dopr train pick_place
  dopr train pusht_state data.store=pusht.zarr.zip optimizer=adamw optimizer.lr=3e-4
  dopr train --resume runs/pick_place
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dopr_robot.errors import UserError
from dopr_robot.files import replacing

RUNS = Path("runs")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="EXPERIMENT | key=value", help="experiment first, then settings")
    parser.add_argument("--resume", metavar="RUN", type=Path, help="go on with a run folder from its last checkpoint")
    parser.add_argument("--print", action="store_true", help="print the configuration and stop")
    parser.add_argument("--force", action="store_true", help="resume although settings were changed")


def run(args: argparse.Namespace) -> int:
    from dopr_robot.training import compose_config, train

    experiment, overrides = _split(args.words)
    if args.resume is not None:
        if experiment is not None:
            raise UserError(f"--resume {args.resume} has a configuration of its own: leave {experiment!r} out")
        config, folder = _resumed(args.resume, overrides, args.force), args.resume
    else:
        config = compose_config(experiment, overrides)
        folder = _new_folder(config.name, named=any(word.startswith("name=") for word in overrides))
        config.name = folder.name
    if args.print:
        print(config.to_yaml(), end="")
        return 0
    start(config, folder)
    train(config, folder)
    print(folder)
    return 0


def start(config: Any, folder: Path) -> None:
    """Make the run folder, with the configuration in it, once the configuration is known to fit its store."""
    from dopr_robot.policies import make_policy
    from dopr_robot.training import load_data

    data = load_data(config)
    make_policy(config.policy, data.spec)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "config.yaml") as beside:
        beside.write_text(config.to_yaml())
    print(
        f"{folder}: {config.policy['name']} under {config.optimizer['name']}, {len(data.train):,} windows of "
        f"{len(data.train.episodes)} episodes, {config.training.steps:,} steps of {config.training.batch_size}",
        file=sys.stderr,
    )


def _split(words: list[str]) -> tuple[str | None, list[str]]:
    names = [word for word in words if "=" not in word]
    if len(names) > 1:
        raise UserError(f"one experiment at a time, not {' and '.join(names)}: settings are key=value")
    return (names[0] if names else None), [word for word in words if "=" in word]


def _new_folder(name: str | None, *, named: bool) -> Path:
    name = name or "run"
    folder = RUNS / name
    if not folder.exists():
        return folder
    if named:
        raise UserError(f"{folder} exists: dopr train --resume {folder} goes on with it, another name=... begins anew")
    number = 2
    while (RUNS / f"{name}-{number}").exists():
        number += 1
    return RUNS / f"{name}-{number}"


def _resumed(folder: Path, overrides: list[str], force: bool) -> Any:
    from dopr_robot.training import compose_config, load_config

    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder} is no run folder: it holds no config.yaml")
    before, after = load_config(path), compose_config(str(path), overrides)
    changed = _differences(asdict(before), asdict(after))
    if changed and not force:
        raise UserError(
            f"resuming with other settings ({'; '.join(changed)}) is another experiment: add --force if it is meant"
        )
    return after


def _differences(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in before.keys() | after.keys():
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key}: {old} -> {new}")
    return sorted(found)
