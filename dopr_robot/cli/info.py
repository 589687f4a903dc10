"""What is in a store, a run or a checkpoint.

For a store: keys with shapes and ranges (~: of a sample, where a key is large), lengths of the episodes, success, what an action means,
and what is odd. --check reads everything, and replays ten episodes where the task's simulator is installed and their seeds are known: do
they end up where they were recorded, and succeed? Exit code 0 for a good store (oddities are warnings), 1 for damage, one line each, 2 for
what is no store. --html writes a page with plots and pictures, of a run
with its training curve, its settings and its evaluations.

  dopr info data/pick_place.zarr
  dopr info data/pick_place.zarr --check
  dopr info data/pick_place.zarr --html pick_place.html
  dopr info runs/pick_place --json
  dopr info runs/pick_place --html pick_place.html
"""

import argparse
import contextlib
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
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page about it")


def run(args: argparse.Namespace) -> int:
    if is_store(args.path):
        if args.html is not None:
            return _page(args.path, args.html)
        return _check(args.path) if args.check else _show_store(args.path, args.json)
    if args.check:
        raise UserError(f"{args.path} is no store: --check reads stores")
    return _show_policy(Path(args.path), args.json, args.html)


def is_store(path: str) -> bool:
    """Whether a path is for :class:`Store` to open, rather than a run or a checkpoint. Raises UserError where nothing is there."""
    if "://" in path:
        return True
    where = Path(path)
    if not where.exists():
        raise UserError(f"{path} does not exist: give a store, a run folder or a checkpoint folder")
    return where.is_file() or any((where / name).exists() for name in ("zarr.json", ".zgroup"))


def _check(path: str) -> int:
    from dopr_robot.datasets import Store, check
    from dopr_robot.errors import DamagedError, DoprError
    from dopr_robot.evaluation.replay import replaying

    why_not, replay = "", None
    with contextlib.ExitStack() as stack:
        try:
            store = Store.open(path)
            if (store.seeds >= 0).any():
                replay = stack.enter_context(replaying(store.attributes))
            else:
                why_not = "no episode has a seed"
        except DamagedError:
            why_not = "it is damaged"
        except DoprError as error:  # no such task, or a simulator that can not be made
            why_not = str(error)
        report = check(path, replay=replay)
    if why_not:
        report.replays.why_not = why_not
    for finding in report.damage:
        print(finding)
    for finding in report.warnings:
        print(f"warning: {finding}")
    if not report.damage:
        warnings = f", {len(report.warnings)} warnings" if report.warnings else ""
        print(f"{path}: good{warnings} ({report.replays})")
    return 1 if report.damage else 0


def _page(path: str, out: Path) -> int:
    from dopr_robot.datasets import Store
    from dopr_robot.evaluation.store_report import key_rows, write_store_report

    store = Store.open(path)
    if not store.num_episodes:
        raise UserError(f"{path} holds no episode yet")
    write_store_report(out, store, key_rows(store, _ranges(store)), _warnings(store) or [])
    print(out)
    return 0


LARGE_BYTES = 256 * 1024**2
SAMPLE = 8
"""Episodes that the range of a large key is taken from."""


def _bytes(store: Any, key: str) -> int:
    import numpy as np

    info = store.keys[key]
    return store.num_steps * int(np.prod(info.shape)) * info.dtype.itemsize


def _ranges(store: Any) -> dict[str, Any]:
    """Statistics of the numeric keys; of a sample of episodes where a key is large."""
    import numpy as np

    from dopr_robot.datasets import statistics

    numeric = [name for name, key in store.keys.items() if key.dtype.kind in "fiub"] if store.num_steps else []
    large = [key for key in numeric if _bytes(store, key) > LARGE_BYTES]
    sample: Any = np.unique(np.linspace(0, store.num_episodes - 1, SAMPLE).astype(int)) if large else []
    return statistics(store, [key for key in numeric if key not in large]) | statistics(store, large, sample)


def _still(store: Any, ranges: dict[str, Any]) -> str:
    """Entries of observed vectors and of the action that hardly move, by key."""
    import numpy as np

    from dopr_robot.policies.scaling import hardly_moved

    found = {
        key: hardly_moved(ranges[key])
        for key in ("action", *store.observations)
        if key in ranges and len(store.keys[key].shape) == 1 and all(np.isfinite(v).all() for v in ranges[key].values())
    }
    return ", ".join(f"{key}{entries}" for key, entries in found.items() if entries)


def _warnings(store: Any) -> list[str] | None:
    """What is odd or damaged; None where a store is so large that only --check reads it."""
    from dopr_robot.datasets import check

    if sum(_bytes(store, key) for key in store.keys) > 4 * LARGE_BYTES:
        return None
    report = check(store.path)
    return [str(finding) for finding in (*report.damage, *report.warnings)]


def _show_store(path: str, as_json: bool) -> int:
    from dopr_robot.datasets import Store, check

    if as_json:
        # A damaged store is described as far as it is whole; the damage is among the warnings.
        found = check(path)
        store = Store.open(path, whole_part=True)
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

    from dopr_robot.evaluation.store_report import action_text, key_rows

    store = Store.open(path)
    about = store.attributes
    console = Console(
        highlight=False, soft_wrap=True, markup=False, color_system=None
    )  # what the store says is escaped, colours too
    rate = f" at {about.control_hz:g} Hz" if about.control_hz else ""
    console.print(
        f"{path}: {store.num_episodes} episodes, {store.num_steps:,} steps{rate}, {about.task or 'task unknown'}"
    )
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("key", "shape", "dtype", "least", "largest", ""):
        table.add_column(column, justify="right" if column in ("least", "largest") else "left")
    ranges = _ranges(store)
    for row in key_rows(store, ranges):
        sampled = "~" if row.least and _bytes(store, row.name) > LARGE_BYTES else ""
        table.add_row(row.name, row.shape, row.dtype, sampled + row.least, sampled + row.largest, row.use)
    console.print(table)
    if store.num_episodes:
        lengths = store.episode_lengths
        console.print(f"lengths  {lengths.min()} to {lengths.max()}, mean {lengths.mean():.1f}  |{histogram(lengths)}|")
        known = store.success[store.success >= 0]
        console.print(
            f"success  {known.mean():.1%} of {len(known)} episodes that say" if len(known) else "success  unknown"
        )
    console.print(f"action   {action_text(store)}")
    if still := _still(store, ranges):
        console.print(f"still    {still} hardly move, so policies do not stretch them to the full range")
    if about.source:
        console.print(f"source   {about.source}" + (f", {about.licence}" if about.licence else ""))
    for line in about.provenance:
        console.print(f"done     {line}")
    warnings = _warnings(store) if store.num_episodes else []
    if warnings is None:
        console.print("warnings were not looked for in so large a store: --check reads everything")
    for line in warnings or []:
        console.print(f"warning: {line}")
    return 0


def histogram(values: Any) -> str:
    """Counts of ``values`` in 24 equal bins, as a line of bars; an occupied bin is never blank."""
    import numpy as np

    counts, _ = np.histogram(values, BINS)
    levels = np.ceil(counts / counts.max() * (len(BARS) - 1)).astype(int)
    return "".join(BARS[level] for level in levels)


def _show_policy(path: Path, as_json: bool, page: Path | None = None) -> int:
    from dopr_robot.evaluation import read_results
    from dopr_robot.policies import find_checkpoint
    from dopr_robot.policies.checkpoint import read_description

    checkpoint = find_checkpoint(path)
    description = read_description(checkpoint)
    kind = "run" if checkpoint.parent.parent == path else "checkpoint"
    if page is not None:
        from dopr_robot.evaluation.report import write_run_report

        write_run_report(page, path, kind, _step(checkpoint), description)
        print(page)
        return 0
    results = [read_results(file.parent) for file in sorted(path.glob("eval/*/results.json"))]
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
