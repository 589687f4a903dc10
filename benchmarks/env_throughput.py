"""How fast copies of a task are stepped: the batched core beside Gymnasium's SyncVectorEnv and AsyncVectorEnv of the same task.

Control steps a second under random actions near the middle of their range, copies that end are reset as they end. The three take turns;
a figure is the median over turns.

    python benchmarks/env_throughput.py --json throughput.json
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from dopr_robot.envs import get_task, make, make_vec


class Single:
    """Makes one copy; picklable, for the processes of AsyncVectorEnv."""

    def __init__(self, task: str) -> None:
        self.task = task

    def __call__(self):
        return make(self.task)


def rate(env: VectorEnv, actions: np.ndarray) -> float:
    """Control steps a second."""
    start = time.perf_counter()
    for action in actions:
        env.step(action)
    return len(actions) * env.num_envs / (time.perf_counter() - start)


def measure(task: str, copies: int, steps: int, turns: int) -> list[dict]:
    action = get_task(task).action
    low, high = np.float32(action.low), np.float32(action.high)
    actions = np.random.default_rng(0).uniform(0.45, 0.55, (steps, copies, len(low))) * (high - low) + low
    envs = {
        "batched": make_vec(task, copies, autoreset_mode=AutoresetMode.NEXT_STEP),
        "SyncVectorEnv": SyncVectorEnv([Single(task)] * copies),
        "AsyncVectorEnv": AsyncVectorEnv([Single(task)] * copies, context="spawn"),
    }
    rates: dict[str, list[float]] = {name: [] for name in envs}
    for env in envs.values():
        env.reset(seed=0)
    for turn in range(turns + 1):  # the first warms up
        for name, env in envs.items():
            figure = rate(env, actions.astype(np.float32))
            if turn:
                rates[name].append(figure)
    for env in envs.values():
        env.close()
    median = {name: statistics.median(figures) for name, figures in rates.items()}
    rows = []
    for peer in ("SyncVectorEnv", "AsyncVectorEnv"):
        name, ratio = f"{task}, control steps/s against {peer}", median["batched"] / median[peer]
        rows.append({"name": name, "ours": median["batched"], "peer": median[peer], "ratio": ratio})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tasks", nargs="+", default=["PickPlace", "Stack", "QuadrotorTrack", "HumanoidBalance", "CartPoleSwingUp"]
    )
    parser.add_argument("--copies", type=int, default=16, help="of each; AsyncVectorEnv starts a process for each")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    for task in args.tasks:
        for row in measure(task, args.copies, args.steps, args.turns):
            rows.append(row)
            print(f"{row['name']}: {row['ours']:.0f} against {row['peer']:.0f}, {row['ratio']:.2f} times")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
