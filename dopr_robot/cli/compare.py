"""Whether one run beats another, or a whole study of them.

Each RUN is a run folder, a checkpoint or an evaluation folder. Runs are evaluated on common initial states, unless they have been
already; runs that differ in the training seed alone are one method. The comparison says, at every horizon, how large the difference
is, how sure that is, and how many episodes it would take to see one of a given size.

  dopr compare runs/adamw runs/dopr --episodes 200
  dopr compare runs/adamw-* runs/dopr-* --horizons 50,100,200 --labels AdamW,DoPr --out comparison
  dopr compare runs/adamw runs/dopr --sequential --episodes 1000

A YAML file is a study: optimizers, learning rates and seeds from equal beginnings, trained, tested and reported; key=value changes
single settings. What is finished is not run again (docs/studies.md).

  dopr compare studies/first.yaml --out studies/first
  dopr compare studies/first.yaml training.steps=200 seeds=[0] --workers 2 --out try
  dopr compare studies/first.yaml --ray auto --out studies/first
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dopr_robot.cli.eval import integers
from dopr_robot.cli.options import add_option, option_values

PAIRS = 3
"""Of more pairs than these the terminal shows the longest horizon alone."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        type=Path,
        help="run, checkpoint or evaluation folders; or STUDY.yaml [key=value ...]",
    )
    parser.add_argument(
        "--episodes", type=int, default=100, metavar="N", help="initial states; with --sequential at most (default 100)"
    )
    parser.add_argument(
        "--horizons", type=integers, metavar="A,B,C", help="control steps (default: 8 equal ones up to the longest)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="block of initial states (default 0)")
    add_option(parser)
    parser.add_argument("--num-envs", type=int, metavar="E", help="copies of the environment")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where it goes (default comparison/, of a study studies/<its name>/)"
    )
    parser.add_argument(
        "--workers", type=int, metavar="W", help="a study's processes (default: by the number of cores)"
    )
    parser.add_argument(
        "--labels", type=lambda text: text.split(","), metavar="A,B", help="what the methods are called, in their order"
    )
    parser.add_argument("--ray", metavar="ADDRESS", help="run a study on a Ray cluster (auto, or head:6379) instead")
    parser.add_argument(
        "--sequential", action="store_true", help="two runs, block by block, until an anytime-valid test decides"
    )
    parser.add_argument("--block", type=int, default=20, metavar="B", help="episodes between two looks (default 20)")


def run(args: argparse.Namespace) -> int:
    if args.runs[0].suffix in (".yaml", ".yml"):
        return _study(args)
    from dopr_robot import compare

    found = compare(
        args.runs,
        episodes=args.episodes,
        horizons=args.horizons,
        seed=args.seed,
        options=option_values(args.option),
        labels=args.labels,
        num_envs=args.num_envs,
        sequential=args.sequential,
        block=args.block,
        out=args.out or "comparison",
    )
    print_comparison(found.content)
    print(found.folder)
    return 0


def _study(args: argparse.Namespace) -> int:
    from dopr_robot import run_study

    path, *settings = args.runs
    found = run_study(path, *map(str, settings), out=args.out, workers=args.workers, ray=args.ray)
    print_table(*found.summary)
    print(f"every horizon: {found.folder / 'table.csv'}; curves: {found.folder / 'report.html'}")
    print(found.folder)
    return 0


def print_comparison(result: dict[str, Any]) -> None:
    """A comparison as tables on stdout: success of every method, the differences, and what the methods differ in."""
    print(f"{result['task']} ({result['kind']}), {result['episodes']} common initial states")
    horizon = result["horizons"][-1]
    rows = []
    for method in result["methods"]:
        last = method["curve"][-1]
        rows.append(
            [method["label"], len(method["runs"]), f"{last['success_rate']:.1%}", _interval(last["ci95"], "{:.1%}")]
        )
    print_table(["method", "runs", f"success at {horizon}", "95 %"], rows)
    every = len(result["pairs"]) <= PAIRS
    for pair in result["pairs"] if every else []:
        print(f"\n{pair['first']} minus {pair['second']} ({pair['curve'][0]['test']})")
        print_table(
            ["horizon", "points", "95 %", "p", "p (Holm)"], [[cell["horizon"], *_cells(cell)] for cell in pair["curve"]]
        )
        needed = [
            f"{100 * float(size):.0f}: {count or 'more than 20000'}" for size, count in pair["episodes_needed"].items()
        ]
        print(f"episodes needed to see a difference (80 % power), by points: {', '.join(needed)}")
    if not every:
        print(
            f"\ndifferences at horizon {horizon} ({result['pairs'][0]['curve'][0]['test']}); the others are in the report"
        )
        rows = [[pair["first"], pair["second"], *_cells(pair["curve"][-1])] for pair in result["pairs"]]
        print_table(["", "minus", "points", "95 %", "p", "p (Holm)"], rows)
    if result["settings"]:
        print("\nsettings that differ")
        labels = [method["label"] for method in result["methods"]]
        turned = len(labels) > len(result["settings"])  # the longer side goes down the page
        if turned:
            columns = list(result["settings"].values())
            rows = [[label, *(values[i] for values in columns)] for i, label in enumerate(labels)]
            print_table(["method", *result["settings"]], rows)
        else:
            print_table(["setting", *labels], [[key, *values] for key, values in result["settings"].items()])
    if result["sequential"]:
        print(f"\n{result['sequential']['verdict']}")
        print("(intervals and p-values above are of a fixed number of episodes: after a stop, the verdict counts)")


def _cells(cell: dict[str, Any]) -> list[str]:
    points = [100 * bound for bound in cell["ci95"]]
    return [
        f"{100 * cell['difference']:+.1f}", _interval(points, "{:+.1f}"), f"{cell['p_value']:.4f}", f"{cell['p_holm']:.4f}",
    ]  # fmt: skip


def _interval(bounds: Sequence[float], form: str) -> str:
    return " to ".join(form.format(bound) for bound in bounds)


def print_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table on stdout: names to the left and folded where the terminal is too narrow, numbers to the right and whole."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="", pad_edge=False)
    for place, name in enumerate(head):
        cells = [str(row[place]) for row in rows]
        number = all(cell[:1] in "+-0123456789" for cell in cells)
        table.add_column(name, justify="right" if number else "left", no_wrap=number, overflow="fold")
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    # Without a terminal a line is as long as it has to be: programs read it.
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=10_000)
    console.print(table)
