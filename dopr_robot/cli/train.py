"""Train a policy on a store.

EXPERIMENT is a name (see dopr_robot/configs/experiment), a YAML file, or left out; key=value changes single settings.
The run goes to runs/<name>/, and that folder is the last line of the output. Under torchrun or accelerate launch several
processes share every batch (docs/multi-node.md).

  dopr train pick_place
  dopr train pusht_state data.store=pusht.zarr.zip optimizer=adamw optimizer.lr=3e-4
  dopr train pick_place training.rollout_every=1000 training.early_stop=success_rate
  dopr train --resume runs/pick_place
"""

import argparse
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dopr_robot.errors import UserError
from dopr_robot.files import check_name
from dopr_robot.locks import held
from dopr_robot.settings import is_setting

RUNS = Path("runs")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="EXPERIMENT | key=value", help="experiment first, then settings")
    parser.add_argument("--resume", metavar="RUN", type=Path, help="go on with a run folder from its last checkpoint")
    parser.add_argument("--print", action="store_true", help="print the configuration and stop")
    parser.add_argument("--force", action="store_true", help="resume although settings were changed")


def run(args: argparse.Namespace) -> int:
    experiment, overrides = _split(args.words)
    config, folder = _chosen(experiment, overrides, args)
    if args.print:
        print(config.to_yaml(), end="")
        return 0
    from dopr_robot.training import from_main  # a mistake above is told without it

    def prepare() -> Path:
        # Under several processes the first one alone names and makes the folder.
        place = folder or _new_folder(config.name, named=any(word.startswith("name=") for word in overrides))
        config.name = place.name
        if folder is None:
            start(config, place)
        else:
            with held(folder):  # nothing is said of a run that another process is training
                start(config, place)
        return place

    place = from_main(prepare, cpu=config.training.device == "cpu")
    config.name = place.name
    train_run(config, place)
    if int(os.environ.get("RANK", "0")) == 0:
        print(place)
    return 0


def train_run(config: Any, folder: Path) -> Path:
    """Train into a run folder; rollouts while training are of the configuration's task, on seeds for selection."""
    from dopr_robot.training import train

    return train(config, folder, selection_rollout(config) if config.training.rollout_every else None)


def selection_rollout(config: Any) -> Any:
    """What ``training.rollout_every`` calls: ``policy -> {"success_rate": ...}``, from the same initial states each time."""
    from dopr_robot.datasets import Store
    from dopr_robot.study.selection import SelectionRollout

    task = config.task or (Store.open(config.data.store).attributes.task if config.data.store else None)
    if task is None:
        raise UserError("training.rollout_every needs a task to roll out in: set task, or training.rollout_every=0")
    return SelectionRollout(task, config.training.rollout_episodes, num_envs=config.evaluation.num_envs)


def start(config: Any, folder: Path) -> None:
    """Make the run folder, with the configuration in it, once the configuration is known to fit its store."""
    from dopr_robot.policies import make_policy
    from dopr_robot.training import build_optimizer, import_tracker, load_data, write_config
    from dopr_robot.training.advice import without_effect
    from dopr_robot.training.data import short_episodes

    if config.training.tracker:
        import_tracker(config.training.tracker)
    if config.training.rollout_every:
        selection_rollout(config)
    data = load_data(config)
    policy = make_policy(config.policy, data.spec)
    build_optimizer(policy, config)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "config.yaml").exists():
        write_config(config, folder)
    print(
        f"{folder}: {config.policy['name']} under {config.optimizer['name']}, {len(data.train):,} windows of "
        f"{len(data.train.episodes)} episodes, {config.training.steps:,} steps of {config.training.batch_size}",
        file=sys.stderr,
    )
    if still := policy.hardly_moved(data.statistics):
        named = ", ".join(f"{key}{entries}" for key, entries in still.items())
        print(f"dopr: {named} hardly move in the demonstrations and are not stretched", file=sys.stderr)
    if short := short_episodes(data.train):
        print(f"dopr: {short}", file=sys.stderr)
    if idle := without_effect(config):
        print(f"dopr: without full effect: {'; '.join(idle)}", file=sys.stderr)


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


def _chosen(experiment: str | None, overrides: list[str], args: argparse.Namespace) -> tuple[Any, Path | None]:
    """The configuration, and the folder where it is known already."""
    from dopr_robot.training import compose_config

    if args.resume is None:
        return compose_config(experiment, overrides), None
    if experiment is not None:
        raise UserError(f"--resume {args.resume} has a configuration of its own: leave {experiment!r} out")
    return _resumed(args.resume, overrides, args.force), args.resume


def _new_folder(name: str | None, *, named: bool) -> Path:
    name = check_name(name or "run", "name")
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
    from dopr_robot.training import compose_config

    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder} is no run folder: it holds no config.yaml")
    before, after = compose_config(str(path)), compose_config(str(path), overrides)
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
