"""How far from the machine's limit: what share of its matrix products, of its copies of memory and of MuJoCo's own steps is reached.

The machine is measured first, on one thread: products of 1,024 x 1,024 matrices in float32 and bfloat16, copies of 256 MB, and MuJoCo's
steps of PickPlace in its own C loop (``mujoco.rollout``). Then what the package does with it, each beside the limit that it meets:
floating-point operations of the matrix products alone, as ``torch.utils.flop_counter`` counts them, and of DoPr those of the cheaper of
its two forms; bytes that have to be read and written once; control steps times substeps. The best of several rounds counts on both sides,
and products are those that training takes (``dopr_robot.policies.products``).

    python benchmarks/limits.py
    python benchmarks/limits.py --rounds 20 --json limits.json        # [{name, ours, peer, ratio, why}], the peer is the machine
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import torch
from mujoco.rollout import Rollout
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dopr_robot.datasets import Attributes, Episode, Recording, Windows, batch_indices, write_store
from dopr_robot.envs import make_vec
from dopr_robot.optim import make_optimizer
from dopr_robot.policies.products import fast_products

sys.path.insert(0, str(Path(__file__).parent))
from optimizer_overhead import MODELS

COPIES = 64
LOW = 0.6
OPERATIONS, BYTES = "operations/s", "bytes/s"
WHY = {
    "matrix products in bfloat16": "the processor has no instructions for it, or few: training.precision=bf16 is for those that have",
    "training step, transformer": "norms, softmax and GELU between the products are memory traffic",
    "training step, U-Net": "group norms, Mish and FiLM between narrow convolutions are memory traffic, not products",
    "DoPr's solves, transformer": "factorising matrices of some hundred rows, and triangular solves, are no products",
    "plan, transformer": "16 tokens: products of 16 rows do not fill the processor's registers, and an operation costs microseconds",
    "AdamW's step, transformer": "torch's fused step reads and writes four arrays a weight",
    "windows": "64 windows of some hundred bytes: the batch is made in tens of microseconds, mostly Python's",
    "rollout of PickPlace": "observations, rewards and the gripper's contacts are read in NumPy after every control step",
}
"""Why what lies under :data:`LOW` does so, or would."""


def best(call: Callable[[], Any], rounds: int) -> float:
    """Seconds of the fastest call, after one that does not count."""
    call()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def product_rate(dtype: torch.dtype, rounds: int) -> float:
    """Floating-point operations a second of a large matrix product."""
    n = 1024 if dtype == torch.float32 else 256  # bfloat16 takes seconds where the processor does not know it
    a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
    return 2 * n**3 / best(lambda: a @ b, rounds)


def copy_rate(rounds: int) -> float:
    """Bytes read and written a second by a copy that no cache holds."""
    source = np.ones(1 << 25)
    target = np.empty_like(source)
    return 2 * source.nbytes / best(lambda: np.copyto(target, source), rounds)


def flops(call: Callable[[], Any]) -> int:
    """Of the matrix products and convolutions of a call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def training_step(name: str, rounds: int) -> float:
    """Operations a second of forward and backward of a model of optimizer_overhead.py."""
    policy, batch = MODELS[name]()
    policy.train()

    def step() -> None:
        policy.zero_grad()
        policy(batch)[0].backward()

    return flops(step) / best(step, rounds)


def adamw_step(name: str, rounds: int) -> float:
    """Bytes a second of torch's fused AdamW: weight, gradient and two moments are read, weight and moments written."""
    policy, batch = MODELS[name]()
    policy(batch)[0].backward()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.0, fused=True)
    return 7 * 4 * sum(p.numel() for p in policy.parameters()) / best(optimizer.step, rounds)


def solves(name: str, rounds: int) -> float:
    """Operations a second of DoPr's own part of a step, those of the layers that are plain matrices; layers of one input share them."""
    policy, batch = MODELS[name]()
    optimizer: Any = make_optimizer("dopr_adamw", policy, lr=0.0)
    outputs: dict[tuple[int, int, int], set[nn.Module]] = {}  # of one input: where it lies, n, d

    def note(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        (z,) = args
        outputs.setdefault((z.data_ptr(), z.numel() // z.shape[-1], z.shape[-1]), set()).add(module)

    for module in policy.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(note)
    seconds = []
    for _ in range(rounds + 1):
        outputs.clear()
        policy.zero_grad()
        policy(batch)[0].backward()
        start = time.perf_counter()
        optimizer.preconditioner.precondition_()
        seconds.append(time.perf_counter() - start)
    work = 0.0
    for (_, n, d), modules in outputs.items():
        out = sum(int(module.out_features) for module in modules)  # type: ignore[arg-type]
        work += 2 * min(form(n, d, out) for form in (primal, dual))
    return work / min(seconds[1:])


def primal(n: int, d: int, out: int) -> float:
    """The fewest multiplications of the primal form: half of S, its Cholesky factor, two triangular solves."""
    return n * d * d / 2 + d**3 / 6 + out * d * d


def dual(n: int, d: int, out: int) -> float:
    """Those of the dual form, whose product with the outputs' gradients is known: half of K, its factor, the solves, a product."""
    return n * n * d / 2 + n**3 / 6 + n * n * min(d, out) + n * d * out


def plan(rounds: int) -> float:
    """Operations a second of a plan of one observation by a flow transformer."""
    policy, batch = MODELS["transformer"]()
    made: Any = policy.eval()
    seen = {key: value[:1] for key, value in batch["observation"].items()}
    generator = torch.Generator()

    def call() -> None:
        made.act(seen, generator.manual_seed(0))

    return flops(call) / best(call, 3 * rounds)


def window_rate(folder: Path, rounds: int) -> float:
    """Bytes a second, read and written, of batches of 64 windows from a store held in memory."""
    rng = np.random.default_rng(0)
    arrays = [
        {"state": rng.normal(size=(n, 20)).astype("f4"), "action": rng.normal(size=(n, 7)).astype("f4")}
        for n in rng.integers(50, 250, 100).tolist()
    ]
    episodes = (Episode(each) for each in arrays)
    store = write_store(Recording(Attributes(), episodes), folder / "store.zarr")
    windows = Windows(store, ["state"], n_obs_steps=2, horizon=16, n_action_steps=8)
    batches = batch_indices(len(windows), 64, seed=0, epoch=0)
    made: Any = windows.batch(batches[0])
    size = sum(value.nbytes for value in [*made["observation"].values(), made["action"]])
    return 2 * size * len(batches) / best(lambda: [windows.batch(indices) for indices in batches], rounds)


def rollout_rates(rounds: int) -> tuple[float, float]:
    """Simulation steps a second of PickPlace with all that an environment does, and in MuJoCo's own loop from its states; one thread."""
    env: Any = make_vec("PickPlace", COPIES, threads=1)
    env.reset(seed=[*range(COPIES)])
    rollout, data = Rollout(nthread=0), [mujoco.MjData(env.model)]
    control = np.zeros((COPIES, 1, env.model.nu))
    action = env.action_space.sample() * 0
    theirs, ours = [], []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        rollout.rollout(env.model, data, env.physics, control, nstep=env.substeps)
        theirs.append(time.perf_counter() - start)
        start = time.perf_counter()
        env.step(action)
        ours.append(time.perf_counter() - start)
    work = float(COPIES * env.substeps)
    return work / min(ours[1:]), work / min(theirs[1:])


def table(rounds: int, folder: Path) -> list[dict[str, Any]]:
    """What is reached beside the machine's limit: ``[{name, ours, peer, ratio, unit, why}]``.

    The limit is measured before and after each, and the better figure counts: a machine's clock is not the same from minute to minute.
    """
    products, copies = partial(product_rate, torch.float32, rounds), partial(copy_rate, min(rounds, 3))
    parts: list[tuple[str, Callable[[], float], Callable[[], float], str]] = [
        ("matrix products in bfloat16", lambda: product_rate(torch.bfloat16, min(rounds, 3)), products, OPERATIONS),
        ("training step, transformer", lambda: training_step("transformer", rounds), products, OPERATIONS),
        ("training step, U-Net", lambda: training_step("unet", rounds), products, OPERATIONS),
        ("DoPr's solves, transformer", lambda: solves("transformer", rounds), products, OPERATIONS),
        ("plan, transformer", lambda: plan(rounds), products, OPERATIONS),
        ("AdamW's step, transformer", lambda: adamw_step("transformer", rounds), copies, BYTES),
        ("windows", lambda: window_rate(folder, rounds), copies, BYTES),
    ]
    found = []
    for name, reached, limit, unit in parts:
        before, ours, after = limit(), reached(), limit()
        found.append((name, ours, max(before, after), unit))
    found.append(("rollout of PickPlace", *rollout_rates(rounds), "simulation steps/s"))
    rows = []
    for name, ours, limit_, unit in found:
        why = WHY[name] if ours < LOW * limit_ else ""
        rows.append({"name": name, "ours": ours, "peer": limit_, "ratio": ours / limit_, "unit": unit, "why": why})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write [{name, ours, peer, ratio, unit, why}]")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, fast_products():
        rows = table(args.rounds, Path(folder))
    for row in rows:
        print(f"{row['ratio']:7.1%}  {row['name']:28} {row['ours']:9.3g} of {row['peer']:9.3g} {row['unit']}")
        if row["why"]:
            print(f"         {row['why']}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
