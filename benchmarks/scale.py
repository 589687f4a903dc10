"""How far one machine carries: a store of 100,000 episodes, 1,000 and 10,000 episodes of evaluation, fifty evaluations compared, a study of
1,000 arms. CPU seconds and peak memory, each part in a process of its own; its own peer is the same call on a small part of it.

What is measured is real but short: PickPlace's demonstrations, the first 12 steps of each, 2,000 times over; an evaluation of 8 steps; the
records of one evaluation in fifty folders; the record of one arm under a thousand names.

    python benchmarks/scale.py --json scale.json
    python benchmarks/scale.py --share 0.02
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from dopr_robot.datasets import Episode, Recording, Store, write_store
from dopr_robot.study import load_study, run_study

sys.path.insert(0, str(Path(__file__).parent))
from startup import DRIVER, measure

COMMAND = ["-m", "dopr_robot.cli"]
OPEN = "import sys; from dopr_robot.datasets import Store; print(Store.open(sys.argv[1]).num_episodes)"
ARMS = """
import sys
from pathlib import Path
from dopr_robot.study import load_study
from dopr_robot.study.run import finished
study = load_study(sys.argv[1])
assert len(finished(study.arms(), Path(sys.argv[2]))) == int(sys.argv[3])
"""
STUDY = """
tasks: [{{task: PickPlace, store: {store}, horizons: [8]}}]
policies: [{{name: regression_mlp, network: {{dim: 16, blocks: 1}}}}]
optimizers: [adamw, dopr_adamw, muon, dopr_muon, sgd]
learning_rates: {rates}
seeds: {seeds}
training: {{steps: 2, batch_size: 8, warmup_steps: 1, checkpoint_every: 2}}
evaluation: {{selection_episodes: 2, test_episodes: 2, best: false}}
"""


def short_store(source: Path, path: Path, times: int, steps: int = 12) -> None:
    """Write the first steps of a store's episodes many times over."""
    store = Store.open(source)
    first = [{key: value[:steps] for key, value in store.episode(index).items()} for index in range(store.num_episodes)]
    numbered = (Episode(arrays, turn * len(first) + n, True) for turn in range(times) for n, arrays in enumerate(first))
    write_store(Recording(store.attributes, numbered), path)


def thousand_arms(store: Path, folder: Path) -> Path:
    """A study's file, and beside it the records of all its arms: those of one that was run, under all names."""
    few, many = folder / "few.yaml", folder / "many.yaml"
    few.write_text(STUDY.format(store=store, rates=[1e-3], seeds=[0]), encoding="utf-8")
    rates = [round(1e-4 * number, 6) for number in range(1, 11)]
    many.write_text(STUDY.format(store=store, rates=rates, seeds=list(range(20))), encoding="utf-8")
    run_study(few, out=folder / "few", workers=1)
    records = {
        record["optimizer"]: record for record in map(json.loads, (folder / "few/arms.jsonl").open(encoding="utf-8"))
    }
    (folder / "many").mkdir()
    with (folder / "many/arms.jsonl").open("w", encoding="utf-8") as file:
        for arm in load_study(many).arms():
            own = {**records[arm.key["optimizer"]], **arm.key, "config": arm.decides()}
            file.write(json.dumps(own) + "\n")
    return many


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="of the sizes, for a quick look")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write [{name, ours, peer, ratio, memory_mb}], CPU s")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []

    def report(name: str, call: list[str], less: list[str]) -> None:
        (cpu, _, memory), (base, _, _) = measure(call), measure(less)
        rows.append({"name": name, "ours": cpu, "peer": base, "ratio": base / cpu, "memory_mb": memory})
        print(f"{name:<48} {cpu:6.2f} CPU s  {memory:6.0f} MB  (a small part of it: {base:.2f})", flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)
        source, large, small = folder / "source.zarr", folder / "large.zarr", folder / "small.zarr"
        measure([*COMMAND, "collect", "PickPlace", "--episodes", "50", "--out", str(source)])
        times = max(1, round(2000 * args.share))
        short_store(source, large, times)
        short_store(source, small, max(1, times // 100))
        episodes = 50 * times
        report(f"open a store of {episodes:,} episodes", ["-c", OPEN, str(large)], ["-c", OPEN, str(small)])
        train = ["train", "pick_place", "training.device=cpu"]
        report(
            "train on it to the first step",
            ["-c", DRIVER, "train", *train, f"data.store={large}", "name=large"],
            ["-c", DRIVER, "train", *train, f"data.store={small}", "name=small"],
        )
        measure([*COMMAND, *train, "policy=regression_mlp", f"data.store={source}", "training.steps=1", "name=run"])
        evaluate = [*COMMAND, "eval", "runs/run", "--horizons", "8", "--episodes"]
        for number in (round(1000 * args.share), round(10000 * args.share)):
            report(
                f"{number:,} episodes of evaluation",
                [*evaluate, str(number), "--out", f"eval/{number}"],
                [*evaluate, str(max(1, number // 100)), "--out", f"eval/few{number}"],
            )
        for copy in range(50):
            shutil.copytree(folder / f"eval/{round(1000 * args.share)}", folder / f"compared/{copy}")
        compared = [*COMMAND, "compare", *(f"compared/{copy}" for copy in range(50)), "--out", "comparison"]
        report(
            f"compare 50 evaluations of {round(1000 * args.share):,} episodes",
            compared,
            [*compared[:5], "--out", "comparison2"],
        )
        study = thousand_arms(source, folder)
        few = ["-c", ARMS, str(folder / "few.yaml"), str(folder / "few"), "5"]
        report("read a study of 1,000 arms", ["-c", ARMS, str(study), str(folder / "many"), "1000"], few)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
