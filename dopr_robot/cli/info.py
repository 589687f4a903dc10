"""What is in a store, a run or a checkpoint.

For a store: keys with shapes and ranges, lengths of the episodes, success, what an action means, and what is odd. --check reads
everything: exit code 0 for a good store (oddities are warnings), 1 for damage, one line each, 2 for what is no store.

  dopr info data/pick_place.zarr
  dopr info data/pick_place.zarr --check
  dopr info runs/pick_place --json
"""

import argparse
import json
from pathlib import Path
from typing import Any

from dopr_robot.errors import UserError

BARS = " ▁▂▃▄▅▆▇█"
BINS = 24


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="a store, a run folder or a checkpoint folder")
    parser.add_argument("--check", action="store_true", help="read everything in a store and report damage")
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")


def run(args: argparse.Namespace) -> int:
    if is_store(args.path):
        return _check(args.path) if args.check else _show_store(args.path, args.json)
    if args.check:
        raise UserError(f"{args.path} is no store: --check reads stores")
    return _show_policy(Path(args.path), args.json)


def is_store(path: str) -> bool:
    """Whether a path is for :class:`Store` to open, rather than a run or a checkpoint. Raises UserError where nothing is there."""
    if "://" in path:
        return True
    where = Path(path)
    if not where.exists():
        raise UserError(f"{path} does not exist: give a store, a run folder or a checkpoint folder")
    return where.is_file() or any((where / name).exists() for name in ("zarr.json", ".zgroup"))


def _check(path: str) -> int:
    from dopr_robot.datasets import check

    report = check(path)
    for finding in report.damage:
        print(finding)
    for finding in report.warnings:
        print(f"warning: {finding}")
    if not report.damage:
        print(f"{path}: good" + (f", {len(report.warnings)} warnings" if report.warnings else ""))
    return 1 if report.damage else 0


def _show_store(path: str, as_json: bool) -> int:
    from dopr_robot.datasets import Store, statistics

    store = Store.open(path)
    if as_json:
        from dopr_robot.datasets import check

        found = check(path)
        summary = {
            "kind": "store",
            "episodes": store.num_episodes,
            "steps": store.num_steps,
            "keys": {name: {"shape": list(key.shape), "dtype": str(key.dtype)} for name, key in store.keys.items()},
            "warnings": [str(finding) for finding in (*found.damage, *found.warnings)],
        }
        print(json.dumps(summary))
        return 0
    from rich.console import Console
    from rich.table import Table

    about = store.attributes
    console = Console(highlight=False, soft_wrap=True)
    rate = f" at {about.control_hz:g} Hz" if about.control_hz else ""
    console.print(
        f"{path}: {store.num_episodes} episodes, {store.num_steps:,} steps{rate}, {about.task or 'task unknown'}"
    )
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("key", "shape", "dtype", "least", "largest", ""):
        table.add_column(column, justify="right" if column in ("least", "largest") else "left")
    numeric = [name for name, key in store.keys.items() if key.dtype.kind in "fiub"]
    ranges = statistics(store, numeric) if store.num_steps else {}
    for name, key in store.keys.items():
        least, largest = (
            f"{getattr(ranges[name][side], side)():.4g}" if name in ranges else "" for side in ("min", "max")
        )
        use = "observation" if name in store.observations else "action" if name == "action" else ""
        table.add_row(name, str(list(key.shape)), str(key.dtype), least, largest, use)
    console.print(table)
    if store.num_episodes:
        lengths = store.episode_lengths
        console.print(f"lengths  {lengths.min()} to {lengths.max()}, mean {lengths.mean():.1f}  |{histogram(lengths)}|")
        known = store.success[store.success >= 0]
        if len(known):
            console.print(f"success  {known.mean():.1%} of {len(known)} episodes that say")
    action = about.action
    if action.meaning:
        kind = "" if action.absolute is None else ", absolute" if action.absolute else ", relative"
        units = action.units if isinstance(action.units, str) else " ".join(action.units or ())
        console.print(f"action   {action.meaning}{kind}" + (f" ({units})" if units else ""))
    if about.source:
        console.print(f"source   {about.source}" + (f", {about.licence}" if about.licence else ""))
    return 0


def histogram(values: Any) -> str:
    """Counts of ``values`` in 24 equal bins, as a line of bars; an occupied bin is never blank."""
    import numpy as np

    counts, _ = np.histogram(values, BINS)
    levels = np.ceil(counts / counts.max() * (len(BARS) - 1)).astype(int)
    return "".join(BARS[level] for level in levels)


def _show_policy(path: Path, as_json: bool) -> int:
    from dopr_robot.policies import find_checkpoint

    if (path / "config.yaml").is_file() and not (path / "checkpoints" / "last").exists():
        raise UserError(f"{path} has no checkpoint yet: dopr train --resume {path} goes on with it")
    checkpoint = find_checkpoint(path)
    description = json.loads((checkpoint / "policy.json").read_text())
    kind = "checkpoint" if checkpoint == path else "run"
    results = [json.loads(file.read_text()) for file in sorted(path.glob("eval/*/results.json"))]
    summary = {"kind": kind, "step": _step(checkpoint), **description}
    if as_json:
        print(json.dumps({**summary, "evaluations": [_final(result) for result in results]}))
        return 0
    print(
        f"{path}: {kind}, step {summary['step']}, {description['policy']['name']}, trained for {description.get('task') or 'no task'}"
    )
    print(f"observes {description['To']} steps, predicts {description['H']}, executes {description['Ta']}")
    for name, observation in description["observations"].items():
        print(f"  {name}: {observation['shape']} {observation['dtype']}")
    print(f"  action: {description['action']['shape']}")
    for result in results:
        final = _final(result)
        low, high = final["ci95"]
        print(
            f"success at {final['horizon']} steps: {final['success_rate']:.1%} (95 %: {low:.1%} to {high:.1%}), "
            f"{result['episodes']} episodes, seed block {result['seed']}" + (", partial" if result["partial"] else "")
        )
    return 0


def _step(checkpoint: Path) -> int | None:
    name = checkpoint.resolve().name
    return int(name) if name.isdigit() else None


def _final(results: dict[str, Any]) -> dict[str, Any]:
    return results["curve"][-1]
