"""How fast copies of a task are stepped: the batched core beside Gymnasium's SyncVectorEnv and AsyncVectorEnv of the same task.

Control steps a second under random actions near the middle of their range, copies that end are reset as they end. The three take turns;
a figure is the median over turns. Of Meta-World and robosuite the peers step the package's own environment, which knows nothing of ours.
On a busy machine, where many processes get more of it than few, `--cpu` counts CPU seconds of all processes instead (Linux).

    python benchmarks/env_throughput.py --json throughput.json
    python benchmarks/env_throughput.py --tasks metaworld/assembly-v3 robosuite/Can-v0 --cpu
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from dopr_robot.envs import get_task, make, make_vec


class Single:
    """Makes one copy; picklable, for the processes of AsyncVectorEnv."""

    def __init__(self, task: str) -> None:
        self.task = task

    def __call__(self) -> gymnasium.Env:
        package, _, name = self.task.partition("/")
        if package == "metaworld":
            import metaworld

            env = metaworld.ALL_V3_ENVIRONMENTS[name]()
            env.seeded_rand_vec, env._freeze_rand_vec = True, False
            env._partially_observable, env._set_task_called = False, True
            return gymnasium.wrappers.TimeLimit(env, env.max_path_length)
        if package == "robosuite":
            import robosuite
            from robosuite.wrappers import GymWrapper

            name = get_task(self.task).arguments["package_name"]
            robots = ["Panda"] * (2 if name.startswith("TwoArm") else 1)
            blind = {"has_renderer": False, "has_offscreen_renderer": False, "use_camera_obs": False}
            env = GymWrapper(robosuite.make(name, robots=robots, ignore_done=True, hard_reset=False, **blind))
            env.metadata = {}  # None there, which Gymnasium's vector environments do not take
            return env
        return make(self.task)


def cpu_seconds(env: VectorEnv) -> float:
    """Of this process and of those in which the copies live."""
    workers = getattr(env, "_workers", None) or getattr(env, "processes", [])
    paths = (Path(f"/proc/{getattr(each, 'process', each).pid}/schedstat") for each in workers)
    used = (path.read_text(encoding="ascii").split()[0] for path in paths)
    return time.process_time() + sum(map(int, used)) / 1e9


def rate(env: VectorEnv, actions: np.ndarray, clock: Callable[[VectorEnv], float]) -> float:
    """Control steps a second of that clock."""
    start = clock(env)
    for action in actions:
        env.step(action)
    return len(actions) * env.num_envs / (clock(env) - start)


def measure(task: str, copies: int, steps: int, turns: int, cpu: bool) -> list[dict]:
    clock = cpu_seconds if cpu else lambda env: time.perf_counter()
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
            figure = rate(env, actions.astype(np.float32), clock)
            if turn:
                rates[name].append(figure)
    for env in envs.values():
        env.close()
    median = {name: statistics.median(figures) for name, figures in rates.items()}
    rows = []
    for peer in ("SyncVectorEnv", "AsyncVectorEnv"):
        name = f"{task}, control steps/{'CPU s' if cpu else 's'} against {peer}"
        ratio = median["batched"] / median[peer]
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
    parser.add_argument("--cpu", action="store_true", help="CPU seconds of all processes instead of the clock's")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    for task in args.tasks:
        for row in measure(task, args.copies, args.steps, args.turns, args.cpu):
            rows.append(row)
            print(f"{row['name']}: {row['ours']:.0f} against {row['peer']:.0f}, {row['ratio']:.2f} times")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
