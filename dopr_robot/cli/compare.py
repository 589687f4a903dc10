"""Whether one run beats another, or a whole study of them.

Each RUN is a run folder, a checkpoint or an evaluation folder. Runs are evaluated on common initial states, unless they have been
already; runs that differ in the training seed alone are one method. The comparison says, at every horizon, how large the difference
is, how sure that is, and how many episodes it would take to see one of a given size.

  dopr compare runs/adamw runs/dopr --episodes 200
  dopr compare runs/adamw-* runs/dopr-* --horizons 50,100,200 --out comparison
  dopr compare runs/adamw runs/dopr --sequential --episodes 1000

A YAML file is a study: optimizers, learning rates and seeds from equal beginnings, trained, tested and reported; key=value changes
single settings. What is finished is not run again (docs/studies.md).

  dopr compare studies/first.yaml --out studies/first
  dopr compare studies/first.yaml training.steps=200 seeds=[0] --workers 2 --out try
  dopr compare studies/first.yaml --ray auto --out studies/first
"""

import argparse
from pathlib import Path
from typing import Any

from dopr_robot.cli.eval import evaluate_run, integers, run_of
from dopr_robot.errors import UserError


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
    parser.add_argument("--num-envs", type=int, metavar="E", help="copies of the environment")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where it goes (default comparison/, of a study studies/<its name>/)"
    )
    parser.add_argument(
        "--workers", type=int, metavar="W", help="a study's processes (default: by the number of cores)"
    )
    parser.add_argument("--ray", metavar="ADDRESS", help="run a study on a Ray cluster (auto, or head:6379) instead")
    parser.add_argument(
        "--sequential", action="store_true", help="two runs, block by block, until an anytime-valid test decides"
    )
    parser.add_argument("--block", type=int, default=20, metavar="B", help="episodes between two looks (default 20)")


def run(args: argparse.Namespace) -> int:
    from dopr_robot.evaluation.compare import compare, load_evaluated, write_comparison
    from dopr_robot.policies import find_checkpoint

    if args.runs[0].suffix in (".yaml", ".yml"):
        return _study(args)
    args.out = args.out or Path("comparison")
    if len(args.runs) < 2:
        raise UserError("a comparison needs at least two runs")
    for path in args.runs:  # before anything is evaluated
        if not (path / "results.json").is_file():
            find_checkpoint(path)
    labels = method_labels(args.runs)
    decision: dict[str, Any] | None = None
    if args.sequential:
        folders, decision = _sequential(args, [label for label, _ in labels])
    else:
        folders = [_evaluated(path, args) for path in args.runs]
    runs = [load_evaluated(folder, *label) for folder, label in zip(folders, labels, strict=True)]
    result = compare(runs, args.horizons)
    result["sequential"] = decision
    write_comparison(result, runs, args.out)
    print_comparison(result)
    print(args.out)
    return 0


def _study(args: argparse.Namespace) -> int:
    from dopr_robot.study import load_study, run_study

    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers {args.workers} has to be at least 1")
    path, *overrides = args.runs
    study = load_study(path, [str(each) for each in overrides])
    out = run_study(study, args.out or Path("studies") / path.stem, workers=args.workers, ray=args.ray)
    print((out / "table.csv").read_text(encoding="utf-8"), end="")
    print(out)
    return 0


def method_labels(paths: list[Path]) -> list[tuple[str, int | None]]:
    """Label and training seed of each run: runs whose configurations agree but for seed and name get one label.

    The label is what distinguishes the configuration from the others' ("optimizer.name=adamw"); a folder without a configuration
    is labelled by its name.
    """
    configs = [_settings(path) for path in paths]
    seeds = [config.pop("training.seed", None) if config else None for config in configs]
    known = [config for config in configs if config is not None]
    varying = sorted(
        {key for config in known for key in config if any(other.get(key) != config[key] for other in known)}
    )
    labels: list[tuple[str, int | None]] = []
    for path, config, seed in zip(paths, configs, seeds, strict=True):
        if config is None:
            labels.append((path.name, None))
        else:
            labels.append((", ".join(f"{key}={config[key]}" for key in varying if key in config) or path.name, seed))
    if len({label for label, _ in labels}) == 1 or len(set(labels)) < len(labels):
        return [(path.name, seed) for path, (_, seed) in zip(paths, labels, strict=True)]
    return labels


def _settings(path: Path) -> dict[str, Any] | None:
    """A run's configuration, flat, without what does not make a method."""
    from dataclasses import asdict

    from dopr_robot.training import load_config

    folder = next((each for each in (path, *path.resolve().parents[:2]) if (each / "config.yaml").is_file()), None)
    if folder is None:
        return None
    flat: dict[str, Any] = {}

    def flatten(value: Any, prefix: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                flatten(inner, f"{prefix}.{key}" if prefix else key)
        else:
            flat[prefix] = value

    flatten(asdict(load_config(folder / "config.yaml")), "")
    return {key: value for key, value in flat.items() if key != "name" and not key.startswith("evaluation.")}


def _evaluated(path: Path, args: argparse.Namespace) -> Path:
    """The evaluation folder of a run: itself, one that is there, or a new one."""
    from dopr_robot.evaluation import read_results
    from dopr_robot.evaluation.plan import describe_checkpoint
    from dopr_robot.policies import find_checkpoint

    if (path / "results.json").is_file():
        return path
    checkpoint = find_checkpoint(path).resolve()
    described, home = describe_checkpoint(checkpoint), run_of(checkpoint)
    assert described is not None
    for folder in sorted((home / "eval").glob("*/")) if home else []:
        if not (folder / "results.json").is_file():
            continue
        found = read_results(folder)
        reach = max(args.horizons or [0]) <= max(found["horizons"])
        same = found["checkpoint"] and found["checkpoint"]["sha256"] == described["sha256"]
        use = found["seed"] == args.seed and found["use"] == "final" and not found["env_options"]
        if same and use and reach and not found["partial"] and found["episodes"] >= args.episodes:
            return folder
    return evaluate_run(
        path, episodes=args.episodes, horizons=args.horizons, seed=args.seed, num_envs=args.num_envs, video=0
    )


def _sequential(args: argparse.Namespace, labels: list[str]) -> tuple[list[Path], dict[str, Any]]:
    """Evaluate two runs block by block until the test at the longest horizon decides, or there are enough episodes."""
    from dopr_robot.evaluation import read_results
    from dopr_robot.evaluation.compare import look

    if len(args.runs) != 2:
        raise UserError(f"--sequential compares two runs, not {len(args.runs)}")
    if args.block < 1:
        raise UserError(f"--block {args.block} has to be at least 1")
    folders = [args.out / name for name in ("first", "second")]
    there = [read_results(folder)["episodes"] for folder in folders if (folder / "results.json").is_file()]
    episodes = max(there, default=0)  # the same call goes on where it stopped
    while True:
        episodes = min(max(episodes, args.block), args.episodes)
        for path, folder in zip(args.runs, folders, strict=True):
            evaluate_run(
                path,
                episodes=episodes,
                horizons=args.horizons,
                seed=args.seed,
                num_envs=args.num_envs,
                video=0,
                out=folder,
                resume=True,
            )
        decision = look(folders, labels)
        if decision["decided"] or episodes >= args.episodes:
            return folders, decision
        episodes += args.block


def print_comparison(result: dict[str, Any]) -> None:
    """A comparison as tables on stdout."""
    print(f"{result['task']} ({result['kind']}), {result['episodes']} common initial states")
    for method in result["methods"]:
        last = method["curve"][-1]
        print(
            f"  {method['label']}: {last['success_rate']:.1%} at horizon {last['horizon']} ({len(method['runs'])} run(s))"
        )
    for pair in result["pairs"]:
        print(f"\n{pair['first']} minus {pair['second']} ({pair['curve'][0]['test']})")
        print(f"{'horizon':>8} {'difference':>11}   {'95 % interval':<20} {'p':>8} {'p (Holm)':>9}")
        for cell in pair["curve"]:
            low, high = cell["ci95"]
            interval = f"{low:+.1%} to {high:+.1%}"
            print(
                f"{cell['horizon']:>8} {cell['difference']:>+11.1%}   {interval:<20} {cell['p_value']:>8.4f} {cell['p_holm']:>9.4f}"
            )
        needed = [f"{float(size):.0%}: {count or 'more than 20000'}" for size, count in pair["episodes_needed"].items()]
        print(f"episodes needed to see a difference (80 % power) of {', '.join(needed)}")
    if result["sequential"]:
        print(f"\n{result['sequential']['verdict']}")
        print("(intervals and p-values above are of a fixed number of episodes: after a stop, the verdict counts)")
