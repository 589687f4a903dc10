"""What passes before the command does its work: CPU seconds and peak memory of `dopr --help`, `dopr tasks`, `dopr train` up to its first
step and `dopr eval` up to its first episode.

Each is a process of its own, several times in turn, on PickPlace with the experiment's policy; the first step or episode ends it. CPU
seconds hardly depend on what else the machine does; the peer is `import torch` alone, below which training can not come.

    python benchmarks/startup.py --json startup.json
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# Ends the process at the first unit of work of a progress meter, whose label is given.
DRIVER = """
import os, sys
from dopr_robot import cli, progress
label, first = sys.argv[1], progress.Meter.advance
def advance(self, *args, **kwargs):
    if self.label == label:
        os._exit(0)
    first(self, *args, **kwargs)
progress.Meter.advance = advance
sys.exit(cli.main(sys.argv[2:]))
"""


def measure(words: list[str]) -> tuple[float, float, float]:
    """CPU seconds (children's too), wall seconds and peak memory in MB of a Python process."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-P", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(words)[-200:]}: {said.decode()[-500:]}")
    return used.ru_utime + used.ru_stime, time.perf_counter() - start, used.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write [{name, ours, peer, ratio, memory_mb}], CPU s")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store, run = f"{folder}/pick_place.zarr", f"{folder}/run"
        command = ["-m", "dopr_robot.cli"]
        train = ["train", "pick_place", f"data.store={store}", "training.device=cpu"]
        measure([*command, "collect", "PickPlace", "--episodes", "50", "--out", store])
        os.chdir(folder)
        measure([*command, *train, "training.steps=1", "name=run"])
        run = f"{folder}/runs/run"
        evaluate = ["eval", run, "--episodes", "8", "--horizons", "8", "--out", f"{folder}/eval", "--resume"]
        calls = {
            "import torch": ["-c", "import torch"],
            "dopr --help": [*command, "--help"],
            "dopr tasks": [*command, "tasks"],
            "dopr train, first step": ["-c", DRIVER, "train", *train],
            "dopr eval, first episode": ["-c", DRIVER, "eval", *evaluate],
        }
        found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in calls}
        for _ in range(args.rounds):
            for name, words in calls.items():
                found[name].append(measure(words))
    peer = statistics.median(each[0] for each in found["import torch"])
    rows: list[dict[str, Any]] = []
    for name, times in found.items():
        cpu, wall, memory = (statistics.median(column) for column in zip(*times, strict=True))
        rows.append({"name": name, "ours": cpu, "peer": peer, "ratio": peer / cpu, "memory_mb": memory})
        fastest = min(each[0] for each in times)
        print(f"{name:<26} {cpu:6.2f} CPU s (fastest {fastest:5.2f})  {wall:6.2f} s  {memory:6.0f} MB")
    if args.json:
        args.json.write_text(json.dumps(rows[1:], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
