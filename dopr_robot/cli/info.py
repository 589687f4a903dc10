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
import json
from pathlib import Path

from dopr_robot.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="a store, a run folder or a checkpoint folder")
    parser.add_argument("--check", action="store_true", help="read everything in a store and report damage")
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page about it")


def run(args: argparse.Namespace) -> int:
    from dopr_robot.datasets import is_store

    if is_store(args.path):
        if args.html is not None:
            return _page(args.path, args.html)
        return _check(args.path) if args.check else _show_store(args.path, args.json)
    if args.check:
        raise UserError(f"{args.path} is no store: --check reads stores")
    return _show_policy(Path(args.path), args.json, args.html)


def _check(path: str) -> int:
    from dopr_robot.collection import check_store

    report = check_store(path)
    for finding in report.damage:
        print(finding)
    for finding in report.warnings:
        print(f"warning: {finding}")
    if not report.damage:
        warnings = f", {len(report.warnings)} warnings" if report.warnings else ""
        print(f"{path}: good{warnings} ({report.replays})")
    return 1 if report.damage else 0


def _page(path: str, out: Path) -> int:
    from dopr_robot.evaluation.reports import StoreDescription

    StoreDescription.of(path).write_page(out)
    print(out)
    return 0


def _show_store(path: str, as_json: bool) -> int:
    from rich.console import Console
    from rich.table import Table

    from dopr_robot.evaluation.reports import StoreDescription, action_text, histogram, store_summary

    if as_json:
        print(json.dumps(store_summary(path)))
        return 0
    found = StoreDescription.of(path)
    store, about = found.store, found.store.attributes
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
    for row in found.keys:
        sampled = "~" if row.least and found.is_large(row.name) else ""
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
    if still := found.still:
        console.print(f"still    {still} hardly move, so policies do not stretch them to the full range")
    if about.source:
        console.print(f"source   {about.source}" + (f", {about.licence}" if about.licence else ""))
    for line in about.provenance:
        console.print(f"done     {line}")
    warnings = found.warnings if store.num_episodes else []
    if warnings is None:
        console.print("warnings were not looked for in so large a store: --check reads everything")
    for line in warnings or []:
        console.print(f"warning: {line}")
    return 0


def _show_policy(path: Path, as_json: bool, page: Path | None = None) -> int:
    from dopr_robot.evaluation.reports import RunDescription

    found = RunDescription.of(path)
    if page is not None:
        found.write_page(page)
        print(page)
        return 0
    if as_json:
        print(json.dumps(found.summary()))
        return 0
    description = found.description
    print(
        f"{path}: {found.kind}, step {found.step}, {description['policy']['name']}, trained for {description.get('task') or 'no task'}"
    )
    print(f"observes {description['To']} steps, predicts {description['H']}, executes {description['Ta']}")
    for name, observation in description["observations"].items():
        print(f"  {name}: {observation['shape']} {observation['dtype']}")
    print(f"  action: {description['action']['shape']}")
    for result in found.evaluations:
        final = result["curve"][-1]
        low, high = final["ci95"]
        print(
            f"success at {final['horizon']} steps: {final['success_rate']:.1%} (95 %: {low:.1%} to {high:.1%}), "
            f"{result['episodes']} episodes, seed block {result['seed']}" + (", partial" if result["partial"] else "")
        )
    return 0
