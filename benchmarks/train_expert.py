"""Train a learned expert of one of Gymnasium's MuJoCo tasks, and write its deterministic actor as the package ships it.

    pip install 'dopr-robot[experts]'
    python benchmarks/train_expert.py Hopper-v5                   # starts, or goes on where it was stopped
    python benchmarks/train_expert.py Hopper-v5 --export          # 100 episodes of the best so far, and its file

One thread; stopped at any moment, the same call goes on from its last checkpoint, a few minutes before. In the folder are:
`training-<steps>.zip` and `state.json` (networks, optimizers, counters), `replay/` (the replay buffer, which lives in its files and so
needs no copy), `curve.jsonl` (a line an evaluation), `best.safetensors` and, at the end, `<task>.safetensors` with its provenance.
That file goes into `dopr_robot/envs/assets/experts/`, and `dopr tasks --page docs/tasks.md` writes the page anew.

The actor is evaluated without noise, every EVERY steps on seeds of the package's range for selection; the best of these is kept, and its
return is then measured on 100 seeds of the range for final figures, which decide nothing.

Library and algorithm. CrossQ (arXiv 1902.05605: batch normalisation instead of target networks) of sbx-rl, actor and critics of 256 x 256
(the authors' critics are 2,048 wide, for a GPU), four environment steps for each gradient step: these are the cheap ones, a gradient step
with its four takes 20 ms of a busy core. HalfCheetah-v5, return of ten episodes without noise after so many CPU
seconds (sbx-rl 0.28, JAX 0.10):

    CrossQ  335 s 4,998    667 s 6,567    987 s 8,139
    TD3     159 s -236 (as many steps as CrossQ's first)

An environment step with a gradient step each, a CPU second: TD3 107, SAC 80, CrossQ 60, TQC 55, SAC of stable-baselines3 40; TD3 and
SAC are published with 1 M of both (rl-baselines3-zoo, benchmark.md), which is hours of a core.
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
from sbx.common.jax_layers import BatchRenorm
from scipy import stats as scipy_stats
from stable_baselines3.common.buffers import ReplayBuffer

from dopr_robot import seeds
from dopr_robot.envs import get_task
from dopr_robot.envs.adapters.gymnasium_experts import Actor
from dopr_robot.files import replacing, write_json
from dopr_robot.locks import held

STEPS = {
    "HalfCheetah-v5": 256_000,
    "Hopper-v5": 256_000,
    "Walker2d-v5": 416_000,
    "Ant-v5": 480_000,
    "Humanoid-v5": 128_000,
}
"""Environment steps of a training where nobody says how many: those of the actors that ship, after 22, 22, 39, 66
and 21 CPU minutes."""
TOGETHER, PER_UPDATE = 32, 4
"""Gradient steps in one compiled loop (what Python and JAX cost a call is shared), and environment steps for each of them."""
EVERY, EPISODES, FINAL = 125 * TOGETHER * PER_UPDATE, 10, 100
"""Environment steps between two evaluations, and so between two checkpoints; episodes of one; of the last. Returns swing from look to look
(Walker2d 3,840, 1,112, 3,961, 4,266 at 320, 384, 400 and 416 thousand steps), so looks are frequent."""
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


def make_learner(task: str, seed: int, folder: Path, buffer: int) -> sbx.CrossQ:
    return sbx.CrossQ(
        "MlpPolicy",
        make_env(task),
        policy_kwargs={"net_arch": {"pi": [256, 256], "qf": [256, 256]}},
        train_freq=TOGETHER * PER_UPDATE,
        gradient_steps=TOGETHER,
        learning_starts=10_000,
        buffer_size=buffer,
        replay_buffer_class=OnDisk,
        replay_buffer_kwargs={"folder": str(folder / "replay")},
        seed=seed,
    )


def actor_of(learner: sbx.CrossQ, task: str, provenance: dict[str, Any]) -> Actor:
    """The layers of the mean; those of the spread, the last one, stay behind. What normalises a layer's input is linear, and goes into the
    layer."""
    parameters, seen = learner.policy.actor_state.params, learner.policy.actor_state.batch_stats
    layers = []
    for number in range(len(learner.policy.net_arch_pi) + 1):
        dense, norm, stats = (
            parameters[f"Dense_{number}"],
            parameters[f"BatchRenorm_{number}"],
            seen[f"BatchRenorm_{number}"],
        )
        weight, bias, gain, shift, mean, var = (
            np.asarray(array, np.float64)
            for array in (dense["kernel"], dense["bias"], norm["scale"], norm["bias"], stats["mean"], stats["var"])
        )
        gain = gain / np.sqrt(var + BatchRenorm.epsilon)
        bias = bias + (shift - mean * gain) @ weight
        layers.append(((gain[:, None] * weight).astype(np.float32), bias.astype(np.float32)))
    return Actor(tuple(layers), task, provenance)


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


def save(learner: sbx.CrossQ, state: dict[str, Any], folder: Path) -> None:
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


def restore(task: str, state: dict[str, Any], folder: Path) -> sbx.CrossQ:
    """The learner of a checkpoint, with the buffer that lies beside it."""
    learner = sbx.CrossQ.load(
        folder / state["training"], env=make_env(task), replay_buffer_kwargs={"folder": str(folder / "replay")}
    )
    learner.replay_buffer.pos, learner.replay_buffer.full = state["pos"], state["full"]
    learner.set_random_seed(learner.seed + state["steps"])  # not the noise of the first steps again
    return learner


def train(task: str, steps: int, folder: Path, seed: int, buffer: int, every: int) -> None:
    """Train up to ``steps``, from the checkpoint that is there."""
    state: dict[str, Any] = {"steps": 0, "best": None, "cpu_s": 0.0}
    if (folder / "state.json").exists():
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        learner = restore(task, state, folder)
    else:
        learner = make_learner(task, seed, folder, buffer)
    print(f"{task}: seed {seed}, from step {state['steps']} to {steps}", flush=True)
    clock = time.process_time() - state["cpu_s"]
    while learner.num_timesteps < steps:
        learner.learn(min(every, steps - learner.num_timesteps), reset_num_timesteps=False)
        about = {
            "algorithm": "CrossQ",
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
    mean, margin = values.mean(), scipy_stats.t.ppf(0.975, FINAL - 1) * values.std(ddof=1) / np.sqrt(FINAL)
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
    parser.add_argument("task", choices=STEPS)
    parser.add_argument("--folder", type=Path, help="of the training; without: experts/<task>-<seed>")
    parser.add_argument("--steps", type=int, help="of the environment, in all; without: the task's usual number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--buffer", type=int, default=1_000_000, help="transitions kept")
    parser.add_argument("--every", type=int, default=EVERY, help="steps between evaluations")
    parser.add_argument("--export", action="store_true", help="train no further, and export the best so far")
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = args.folder or Path("experts") / f"{args.task}-{args.seed}"
    with held(folder):
        if not args.export:
            train(args.task, args.steps or STEPS[args.task], folder, args.seed, args.buffer, args.every)
        export(folder, args.task, folder / f"{args.task}.safetensors")


if __name__ == "__main__":
    main()
