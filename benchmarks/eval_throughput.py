"""How fast success versus horizon is measured, beside the plain loop that evaluation scripts have.

The plain loop is ``gymnasium.make`` under a ``SyncVectorEnv`` and one inference a chunk for all copies: a batch of episodes ends when
its longest does. Both sides run the same policy from the same initial states to the task's longest horizon, with as many
copies and cores, and take turns; a figure is the median over turns, in episodes a second. The default policy is untrained here, so
PickPlace's episodes all run to the end (no early stop helps) and QuadrotorTrack's fail early, at different steps. ``--run`` adds a
trained policy of yours.

    python benchmarks/eval_throughput.py --json throughput.json
    python benchmarks/eval_throughput.py --run runs/pick_place
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import dopr_robot.envs  # noqa: F401 - registers the tasks
from dopr_robot.collection import demonstrations
from dopr_robot.envs import TaskSpec, get_task
from dopr_robot.evaluation import EpisodeRecord, Evaluation
from dopr_robot.policies import ArraySpec, Policy, PolicySpec, load_policy, make_policy
from dopr_robot.training import compose_config

EXPERIMENTS = {"PickPlace": "pick_place", "QuadrotorTrack": "quadrotor_track"}


def untrained(name: str) -> Policy:
    """The task's default policy, its normalisation fitted to a few demonstrations, its weights fresh."""
    task, config = get_task(name), compose_config(EXPERIMENTS[name])
    steps = {key: config.policy[key] for key in ("n_obs_steps", "horizon", "n_action_steps")}
    observations = {key: ArraySpec(shape) for key, shape in task.observations.items()}
    torch.manual_seed(0)
    spec = PolicySpec(observations, ArraySpec((len(task.action.low),)), task=task.id, **steps)
    policy = make_policy(config.policy, spec)
    episodes = [episode.arrays for episode in demonstrations(name, range(4))]
    joined = {key: np.concatenate([each[key] for each in episodes]) for key in episodes[0]}
    policy.fit_normalizer(
        {key: {"min": v.min(0), "max": v.max(0), "mean": v.mean(0), "std": v.std(0)} for key, v in joined.items()}
    )
    return policy.eval()


def plain_loop(policy: Policy, task: TaskSpec, seeds: list[int], copies: int) -> list[bool]:
    """Success of one episode a seed, batch after batch."""
    n_obs, n_act = policy.n_obs_steps, policy.n_action_steps
    env = SyncVectorEnv([lambda: gymnasium.make(task.id)] * copies, autoreset_mode=AutoresetMode.NEXT_STEP)
    successes: list[bool] = []
    for start in range(0, len(seeds), copies):
        batch = seeds[start : start + copies]
        batch += seeds[: copies - len(batch)]  # the last batch is filled up
        observation, _ = env.reset(seed=batch)
        history = {key: np.repeat(value[:, None], n_obs, axis=1) for key, value in observation.items()}
        generators = [torch.Generator().manual_seed(seed) for seed in batch]
        succeeded, done, steps = np.zeros(copies, bool), np.zeros(copies, bool), 0
        while not done.all() and steps < task.max_steps:
            tensors = {key: torch.from_numpy(value).float() for key, value in history.items()}
            with torch.inference_mode():
                plan = policy.act(tensors, generators).numpy()
            for k in range(n_act):
                action = np.clip(plan[:, k], env.single_action_space.low, env.single_action_space.high)
                observation, _, terminated, truncated, info = env.step(action)
                history = {
                    key: np.concatenate([value[:, 1:], observation[key][:, None]], axis=1)
                    for key, value in history.items()
                }
                succeeded |= info["success"] & ~done & (task.kind == "attain" or truncated)
                done |= terminated | truncated
                steps += 1
                if done.all() or steps == task.max_steps:
                    break
        successes += succeeded.tolist()
    env.close()
    return successes[: len(seeds)]


def ours(policy: Policy, task: TaskSpec, episodes: int, copies: int) -> list[bool]:
    """Success of one episode a seed, by this package."""
    records: list[EpisodeRecord] = []
    evaluation = Evaluation(policy, task.id, episodes=episodes)
    evaluation.rollout().run(evaluation.jobs, records.append, num_envs=copies)
    return [record.outcome == "success" for record in sorted(records, key=lambda record: record.episode)]


def measure(name: str, policy: Policy, task: TaskSpec, episodes: int, copies: int, turns: int) -> dict[str, Any]:
    """Episodes a second of both, in turns."""
    seeds = [job.seed for job in Evaluation(policy, task.id, episodes=episodes).jobs]
    sides: dict[str, Callable[[], list[bool]]] = {
        "ours": lambda: ours(policy, task, episodes, copies),
        "peer": lambda: plain_loop(policy, task, seeds, copies),
    }
    ours(policy, task, 1, 1)  # what a process does once is not counted
    plain_loop(policy, task, seeds[:1], 1)
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    cpu = dict.fromkeys(sides, 0.0)
    found = {}
    for turn in range(turns):
        for side in sorted(sides, reverse=bool(turn % 2)):
            clock, busy = time.perf_counter(), time.process_time()
            found[side] = sides[side]()
            seconds[side].append(time.perf_counter() - clock)
            cpu[side] += time.process_time() - busy
    rates = {side: episodes / statistics.median(values) for side, values in seconds.items()}
    ratio = statistics.median(b / a for a, b in zip(seconds["ours"], seconds["peer"], strict=True))
    successes = {side: sum(values) for side, values in found.items()}
    print(
        f"{name}: {rates['ours']:.2f} episodes/s ({100 / rates['ours']:.1f} s for 100), plain loop {rates['peer']:.2f}, "
        f"ratio {ratio:.2f} (of CPU time {cpu['peer'] / cpu['ours']:.2f}); "
        f"succeeded {successes['ours']} and {successes['peer']} of {episodes}",
        flush=True,
    )
    return {"name": f"eval_throughput/{name}", "ours": rates["ours"], "peer": rates["peer"], "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write [{name, ours, peer, ratio}]")
    parser.add_argument("--episodes", type=int, default=96)
    parser.add_argument("--copies", type=int, default=32)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--run", type=Path, help="a run or checkpoint folder too")
    args = parser.parse_args()
    cases = [(name, untrained(name)) for name in EXPERIMENTS]
    if args.run:
        cases.append((args.run.name, load_policy(args.run)))
    rows = []
    for name, policy in cases:
        assert policy.task
        rows.append(measure(name, policy, get_task(policy.task), args.episodes, args.copies, args.turns))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
