"""Train a learned expert of one of Gymnasium's MuJoCo tasks, and write its deterministic actor as the package ships it.

    pip install 'dopr-robot[experts]'
    python benchmarks/train_expert.py Hopper-v5                   # starts, or goes on where it was stopped
    python benchmarks/train_expert.py Hopper-v5 --export          # 100 episodes of the best so far, and its file

One thread; stopped at any moment, the same call goes on from its last checkpoint, a few minutes before. In the folder are:
`training.zip` and `state.json` (networks, optimizers, counters), `replay/` (the replay buffer, which lives in its files and so needs
no copy), `curve.jsonl` (a line an evaluation), `best.safetensors` and, at the end, `<task>.safetensors` with its provenance.
That file goes into `dopr_robot/envs/assets/experts/`, and `dopr tasks --page docs/tasks.md` writes the page anew.

The actor is evaluated without noise, every EVERY steps on seeds of the package's range for selection; the best of these is kept, and its
return is then measured on 100 seeds of the range for final figures, which decide nothing.

Library and algorithms. HalfCheetah-v5, batches of 256, networks of 256 x 256, an environment step with a gradient step, a CPU second of one
core that carried other work (sbx-rl 0.28, JAX 0.10; stable-baselines3 2.9, torch 2.13):

    sbx TD3 107, SAC 80 (34 on Humanoid-v5, compilation included), CrossQ of 256 x 256 60, TQC 55; stable-baselines3 SAC 40

Returns of one run each after 1 M steps (Humanoid 2 M), deterministic, of the v3 tasks (rl-baselines3-zoo, benchmark.md):

    TD3  HalfCheetah  9,656  Hopper 3,606  Walker2d 4,718  Ant 5,813  Humanoid 5,567
    SAC               9,535         2,326           3,863      4,616           6,232
    TQC              12,090         3,754           4,381      3,339           7,239

So TD3 is the cheapest that reaches a return worth the name, and SAC for Humanoid, where it leaves more room; `--algorithm TQC` where
time is no matter.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Before JAX is loaded: one thread, and no accelerator.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import gymnasium
import numpy as np
import sbx
import torch
from scipy import stats
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import NormalActionNoise

from dopr_robot import seeds
from dopr_robot.envs import get_task
from dopr_robot.envs.adapters.gymnasium_experts import Actor
from dopr_robot.files import replacing, write_json
from dopr_robot.locks import held

RECIPES = {
    # task: algorithm, steps of a training
    "HalfCheetah-v5": ("TD3", 1_000_000),
    "Hopper-v5": ("TD3", 1_000_000),
    "Walker2d-v5": ("TD3", 1_000_000),
    "Ant-v5": ("TD3", 1_000_000),
    "Humanoid-v5": ("SAC", 2_000_000),
}
TOGETHER = 32
"""Environment steps, and then as many gradient steps in one compiled loop: what Python and JAX cost a call is shared."""
EVERY, EPISODES, FINAL = 625 * TOGETHER, 10, 100
"""Steps between two evaluations, and so between two checkpoints; episodes of one; of the last."""
COMMON: dict[str, Any] = {"batch_size": 256, "learning_rate": 3e-4, "train_freq": TOGETHER, "gradient_steps": TOGETHER}
ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


class OnDisk(ReplayBuffer):
    """A replay buffer whose arrays are files, mapped into memory: what a kill leaves is all that was written.

    Rows beyond the position of the checkpoint, in a full buffer the oldest ones overwritten, are of later steps than the checkpoint's:
    valid transitions too.
    """

    def __init__(self, *args: Any, folder: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        for name in ARRAYS:
            empty = getattr(self, name)  # zeros that nobody has touched take no memory
            file = place / f"{name}.npy"
            if file.exists():
                array = np.lib.format.open_memmap(file, mode="r+")
            else:
                array = np.lib.format.open_memmap(file, mode="w+", dtype=empty.dtype, shape=empty.shape)
            assert array.shape == empty.shape and array.dtype == empty.dtype, f"{file} is of another training"
            setattr(self, name, array)


def make_env(task: str) -> gymnasium.Env:
    """The task with the numbers that the package's adapter shows: float32."""
    env = gymnasium.make(task)
    seen = gymnasium.spaces.Box(-np.inf, np.inf, env.observation_space.shape, np.float32)
    return gymnasium.wrappers.TransformObservation(env, lambda values: values.astype(np.float32), seen)


def make_learner(task: str, algorithm: str, seed: int, folder: Path, buffer: int) -> Any:
    env = make_env(task)
    settings = COMMON | {
        "buffer_size": buffer,
        "learning_starts": 10_000,
        "replay_buffer_class": OnDisk,
        "replay_buffer_kwargs": {"folder": str(folder / "replay")},
        "seed": seed,
    }
    if algorithm == "TD3":  # as its authors run it (github.com/sfujim/TD3)
        joints = env.action_space.shape
        settings |= {
            "learning_starts": 25_000,
            "action_noise": NormalActionNoise(np.zeros(joints), np.full(joints, 0.1)),
        }
    return getattr(sbx, algorithm)("MlpPolicy", env, **settings)


def actor_of(learner: Any, task: str, provenance: dict[str, Any]) -> Actor:
    """The mean's layers; those of the spread, the last one of SAC's and TQC's, stay behind."""
    parameters = learner.policy.actor_state.params["params"]
    layers = [parameters[f"Dense_{number}"] for number in range(len(learner.policy.net_arch_pi) + 1)]
    return Actor(
        tuple((np.asarray(layer["kernel"], np.float32), np.asarray(layer["bias"], np.float32)) for layer in layers),
        task,
        provenance,
    )


def returns(actor: Actor, task: str, episodes: Sequence[int]) -> np.ndarray:
    """Sum of rewards of one episode from each seed, without noise: float64 ``[episodes]``."""
    env, action = make_env(task), get_task(task).action
    found = []
    for seed in episodes:
        observation, _ = env.reset(seed=seed)
        total, ended = 0.0, False
        while not ended:
            chosen = actor(observation[None], action.low, action.high)[0]
            observation, reward, terminated, truncated, _ = env.step(chosen)
            total, ended = total + float(reward), terminated or truncated
        found.append(total)
    env.close()
    return np.array(found)


def save(learner: Any, state: dict[str, Any], folder: Path) -> None:
    """A checkpoint; the state names the networks' file and is written last, so that the two are of one moment."""
    for name in ARRAYS:
        getattr(learner.replay_buffer, name).flush()
    kept = folder / f"training-{learner.num_timesteps}.zip"
    with replacing(kept) as beside, beside.open("wb") as file:
        learner.save(file)
    buffer = learner.replay_buffer
    state |= {"steps": learner.num_timesteps, "pos": buffer.pos, "full": buffer.full, "training": kept.name}
    write_json(folder / "state.json", state)
    for old in folder.glob("training-*.zip"):
        if old != kept:
            old.unlink()


def restore(task: str, algorithm: str, state: dict[str, Any], folder: Path) -> Any:
    """The learner of a checkpoint, with the buffer that lies beside it."""
    learner = getattr(sbx, algorithm).load(
        folder / state["training"], env=make_env(task), replay_buffer_kwargs={"folder": str(folder / "replay")}
    )
    learner.replay_buffer.pos, learner.replay_buffer.full = state["pos"], state["full"]
    learner.set_random_seed(learner.seed + state["steps"])  # not the noise of the first steps again
    return learner


def train(task: str, algorithm: str, steps: int, folder: Path, seed: int, buffer: int, every: int) -> None:
    """Train up to ``steps``, from the checkpoint that is there."""
    state: dict[str, Any] = {"steps": 0, "best": None, "cpu_s": 0.0}
    if (folder / "state.json").exists():
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        learner = restore(task, algorithm, state, folder)
    else:
        learner = make_learner(task, algorithm, seed, folder, buffer)
    print(f"{task}: {algorithm}, seed {seed}, from step {state['steps']} to {steps}", flush=True)
    clock = time.process_time() - state["cpu_s"]
    while learner.num_timesteps < steps:
        learner.learn(min(every, steps - learner.num_timesteps), reset_num_timesteps=False)
        about = {
            "algorithm": algorithm,
            "library": "sbx-rl",
            "library_version": version("sbx-rl"),
            "steps": learner.num_timesteps,
            "seed": seed,
            "environment": task,
            "gymnasium": version("gymnasium"),
            "mujoco": version("mujoco"),
        }
        actor = actor_of(learner, task, about)
        values = returns(actor, task, seeds.block("selection", seed, EPISODES))
        if state["best"] is None or values.mean() > state["best"]:
            state["best"] = float(values.mean())
            actor.save(folder / "best.safetensors")
        state["cpu_s"] = time.process_time() - clock
        save(learner, state, folder)
        line = {"steps": learner.num_timesteps, "return": float(values.mean()), "least": float(values.min())}
        line |= {"best": state["best"], "cpu_s": round(state["cpu_s"])}
        print(json.dumps(line), flush=True)
        with (folder / "curve.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def export(folder: Path, task: str, out: Path) -> None:
    """Measure the best actor on the final seeds, and write it with its provenance."""
    best = Actor.load(folder / "best.safetensors", get_task(task))
    values = returns(best, task, seeds.block("final", 0, FINAL))
    mean, margin = values.mean(), stats.t.ppf(0.975, FINAL - 1) * values.std(ddof=1) / np.sqrt(FINAL)
    about = {
        **best.provenance,
        "episodes": FINAL,
        "return_mean": float(mean),
        "return_ci95": [float(mean - margin), float(mean + margin)],
        "return_min": float(values.min()),
    }
    Actor(best.layers, task, about).save(out)
    print(f"{out}: return {mean:.0f} +- {margin:.0f} over {FINAL} episodes, least {values.min():.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=RECIPES)
    parser.add_argument("--folder", type=Path, help="of the training; without: experts/<task>-<algorithm>-<seed>")
    parser.add_argument("--algorithm", choices=("TQC", "SAC", "TD3"), help="without: the task's recipe")
    parser.add_argument("--steps", type=int, help="of the whole training; without: the task's recipe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--buffer", type=int, default=1_000_000, help="transitions kept")
    parser.add_argument("--every", type=int, default=EVERY, help="steps between evaluations")
    parser.add_argument("--export", action="store_true", help="train no further, and export the best so far")
    args = parser.parse_args()
    torch.set_num_threads(1)
    algorithm, steps = args.algorithm or RECIPES[args.task][0], args.steps or RECIPES[args.task][1]
    folder = args.folder or Path("experts") / f"{args.task}-{algorithm}-{args.seed}"
    with held(folder):
        if not args.export:
            train(args.task, algorithm, steps, folder, args.seed, args.buffer, args.every)
        export(folder, args.task, folder / f"{args.task}.safetensors")


if __name__ == "__main__":
    main()
