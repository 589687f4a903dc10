"""The CPU benchmarks in short form, against what they gave the last time: `make bench`.

Each is run with few rounds; what its --json calls `ratio` (how many times better than its peer ours is) goes into one line of
benchmarks/history.jsonl, `{commit, ratios: {"benchmark: name": ratio}}`. Ratios alone, since they hardly depend on the machine. What
fell by more than 15 % against the median of the last five lines is named, and the exit code is then 1: one lucky or one fallen run does
not become the measure of the next. A benchmark in which something fell is run once more first, and the better figure counts: what a
neighbour on the machine did is seldom there twice.

    python benchmarks/bench.py
    python benchmarks/bench.py startup --dry           # one of them, and nothing is written
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
HISTORY = HERE / "history.jsonl"
BENCHMARKS = {
    "startup": ["--rounds", "3"],
    "env_throughput": ["--steps", "10", "--turns", "3"],
    "eval_throughput": ["--episodes", "32", "--copies", "16", "--turns", "3"],
    "optimizer_overhead": [
        *("--models", "mlp", "transformer", "--arms", "AdamW", "DoPr-AdamW", "Muon", "DoPr-Muon"),
        *("--steps", "10", "--threads", "1"),
    ],
}
"""Those whose peers need nothing that is not in the package, with the arguments that keep them short."""
COSTS = ("optimizer_overhead",)
"""Whose ratios are of times, ours over the peer's: they are turned over."""
FELL, LINES = 0.15, 5


def ratios(name: str, arguments: list[str]) -> dict[str, float]:
    """Run a benchmark of this folder; its ratios by name."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        subprocess.run([sys.executable, "-P", str(HERE / f"{name}.py"), *arguments, "--json", str(out)], check=True)
        rows = json.loads(out.read_text(encoding="utf-8"))
    found = {f"{name}: {row['name']}": row["ratio"] for row in rows if row.get("ratio") is not None}
    return {key: 1 / ratio if name in COSTS else ratio for key, ratio in found.items()}


def fallen(before: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
    """What fell by more than :data:`FELL`, with the share that is left of it; what is not in both is passed over.

    >>> fallen({"a": 2.0, "b": 2.0, "gone": 1.0}, {"a": 1.8, "b": 1.5, "new": 1.0})
    {'b': 0.75}
    """
    left = {name: now[name] / before[name] for name in before.keys() & now.keys()}
    return {name: share for name, share in sorted(left.items()) if share < 1 - FELL}


def reference(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The median of every ratio over the last :data:`LINES` lines that have it.

    >>> reference([{"ratios": {"a": 9.0}}] + [{"ratios": {"a": value}} for value in (2.0, 2.1, 1.0, 2.2, 2.0)] + [{"ratios": {"b": 3.0}}])
    {'a': 2.0, 'b': 3.0}
    """
    found: dict[str, list[float]] = {}
    for line in lines:
        for name, ratio in line["ratios"].items():
            found.setdefault(name, []).append(ratio)
    return {name: statistics.median(values[-LINES:]) for name, values in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--dry", action="store_true", help="write nothing")
    args = parser.parse_args()
    if unknown := set(args.names) - BENCHMARKS.keys():
        parser.error(f"{', '.join(sorted(unknown))}: there are {', '.join(BENCHMARKS)}")
    lines = HISTORY.read_text(encoding="utf-8").splitlines() if HISTORY.exists() else []
    before = reference([json.loads(line) for line in lines])
    now: dict[str, float] = {}
    for name in args.names or BENCHMARKS:
        found = ratios(name, BENCHMARKS[name])
        if fallen(before, found):
            again = ratios(name, BENCHMARKS[name])
            found = {key: max(ratio, again.get(key, ratio)) for key, ratio in found.items()}
        now |= found
    worse = fallen(before, now)
    for name, ratio in now.items():
        was = f"  (was {before[name]:.2f})" if name in before else ""
        print(f"{ratio:7.2f}  {name}{was}{'  fell' if name in worse else ''}")
    if not args.dry:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True)
        line = {"commit": commit.stdout.strip() or None, "ratios": now}
        HISTORY.write_text("\n".join([*lines, json.dumps(line)]) + "\n", encoding="utf-8")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
