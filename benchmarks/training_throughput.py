"""How many windows a second training takes, beside a plain loop around Diffusion Policy's own networks.

Peers: their ``ConditionalUnet1D`` and ``TransformerForDiffusion`` from a checkout of github.com/real-stanford/diffusion_policy, with the
DDPM loss, clipping, AdamW and an average of the weights, in the shortest loop that does that, over tensors that lie in memory. Ours:
``training.train`` as a user runs it, with the same network sizes, batch, loss and threads. They take turns, the peer in processes of its
own, since ours says how this one holds memory; a figure is the median over turns. Further rows have our default policies, bf16 where the
processor has it, ``torch.compile`` and DoPr beside our plain AdamW run (``ratio``: that over this).

    git clone https://github.com/real-stanford/diffusion_policy
    python benchmarks/training_throughput.py --diffusion-policy diffusion_policy --json throughput.json
"""

import argparse
import copy
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dopr_robot.datasets import Attributes, Store
from dopr_robot.policies import load_policy
from dopr_robot.training import RunConfig, config_from, read_metrics, train
from dopr_robot.training.processes import bf16_takes

STATE, ACTION, TO, H, TA = 20, 7, 2, 16, 8


def write_store(path: Path) -> None:
    """Thirty random episodes of an arm's size; the numbers do not matter for speed."""
    rng = np.random.default_rng(0)
    with Store.create(path, Attributes(task=None, control_hz=20, observations=("state",))) as store:
        for seed in range(30):
            arrays = {
                "state": rng.normal(size=(200, STATE)).astype(np.float32),
                "action": rng.uniform(-1, 1, (200, ACTION)).astype(np.float32),
            }
            store.append(arrays, seed=seed, success=True)


def settings(
    store: Path, args: argparse.Namespace, policy: Any, optimizer: str = "adamw", **training: Any
) -> RunConfig:
    """A run of ``args.steps`` steps without validation in between."""
    return config_from(
        {
            "data": {"store": str(store), "validation_fraction": 0.0},
            "policy": policy,
            "optimizer": optimizer,
            "training": {
                "steps": args.steps, "batch_size": args.batch, "warmup_steps": 0, "log_every": 1,
                "checkpoint_every": args.steps, "threads": args.threads, "device": args.device, **training,
            },
        }
    )  # fmt: skip


def ours(config: RunConfig, warm: int) -> float:
    """Windows a second of our loop after its first ``warm`` steps."""
    with tempfile.TemporaryDirectory() as folder:
        train(config, Path(folder))
        clock = {line["step"]: line["seconds"] for line in read_metrics(Path(folder)) if "loss" in line}
    steps = config.training.steps
    return (steps - warm) * config.training.batch_size / (clock[steps] - clock[warm])


def unet(channels: list[int]) -> dict[str, Any]:
    """Our policy of the published U-Net's sizes."""
    network = {"channels": channels, "kernel_size": 5, "time_dim": 256}
    return {"name": "diffusion_unet", "n_obs_steps": TO, "horizon": H, "n_action_steps": TA, "network": network}


def transformer() -> dict[str, Any]:
    """Our policy of the published transformer's sizes."""
    network = {"dim": 256, "layers": 8, "heads": 4, "observation_layers": 0, "causal": True, "dropout": 0.01}
    steps = {"n_obs_steps": TO, "horizon": H, "n_action_steps": TA}
    return {"name": "diffusion_cross_transformer", **steps, "network": network}


def published(name: str, channels: list[int]) -> tuple[nn.Module, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """The authors' network, and its call on noisy actions ``[B, H, A]``, steps ``[B]`` and observations ``[B, To, O]``."""
    network: nn.Module
    if name == "unet":
        from diffusion_policy.model.diffusion.conditional_unet1d import ConditionalUnet1D

        network = ConditionalUnet1D(
            ACTION, global_cond_dim=TO * STATE, diffusion_step_embed_dim=256, down_dims=channels, kernel_size=5, n_groups=8,
            cond_predict_scale=True,
        )  # fmt: skip
        return network, lambda noisy, steps, state: network(noisy, steps, global_cond=state.flatten(1))
    from diffusion_policy.model.diffusion.transformer_for_diffusion import TransformerForDiffusion

    network = TransformerForDiffusion(
        ACTION, ACTION, H, TO, STATE, n_layer=8, n_head=4, n_emb=256, p_drop_emb=0.0, p_drop_attn=0.01, causal_attn=True,
        obs_as_cond=True,
    )  # fmt: skip
    return network, network


def peer(args: argparse.Namespace, name: str = "unet") -> tuple[float, int]:
    """Windows a second of the plain loop after its first ``args.warm`` steps, and the network's parameters."""
    from diffusers import DDPMScheduler

    torch.manual_seed(0)
    network, call = published(name, args.channels)
    network.to(args.device)
    average = copy.deepcopy(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    schedule = DDPMScheduler(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2")
    state, action = (
        torch.randn(6000, TO, STATE, device=args.device),
        torch.rand(6000, H, ACTION, device=args.device) * 2 - 1,
    )
    clock = 0.0
    for step in range(args.steps):
        if step == args.warm:
            clock = time.perf_counter()
        chosen = torch.randint(len(state), (args.batch,), device=args.device)
        noise = torch.randn(args.batch, H, ACTION, device=args.device)
        steps = torch.randint(100, (args.batch,), device=args.device)
        noisy = schedule.add_noise(action[chosen], noise, steps)
        loss = F.mse_loss(call(noisy, steps, state[chosen]), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for mean, weight in zip(average.parameters(), network.parameters(), strict=True):
                mean.lerp_(weight, 0.01)
        loss.item()
    rate = (args.steps - args.warm) * args.batch / (time.perf_counter() - clock)
    return rate, sum(p.numel() for p in network.parameters())


def apart(args: argparse.Namespace, name: str = "unet") -> tuple[float, int]:
    """:func:`peer` in a new process."""
    begun = (str(args.diffusion_policy.resolve()), args.threads)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), begin, begun) as pool:
        return pool.submit(peer, args, name).result()


def begin(checkout: str, threads: int) -> None:
    """A peer's process: where its networks lie."""
    sys.path.insert(0, checkout)
    torch.set_num_threads(threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--diffusion-policy", type=Path, required=True, metavar="CHECKOUT")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write [{name, ours, peer, ratio}]")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--warm", type=int, default=4, help="steps that are not counted")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--channels", type=lambda text: [int(part) for part in text.split(",")], default=[64, 128, 256])
    parser.add_argument("--compile", action="store_true", help="a row with torch.compile (needs a C++ compiler)")
    args = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "random.zarr"
        write_store(store)
        plain = settings(store, args, unet(args.channels))
        for name, config in (("unet", plain), ("transformer", settings(store, args, transformer()))):
            sides: dict[str, list[float]] = {"ours": [], "peer": []}
            for _ in range(args.turns):
                sides["ours"].append(ours(config, args.warm))
                rate, parameters = apart(args, name)
                sides["peer"].append(rate)
            with tempfile.TemporaryDirectory() as run:
                own = sum(p.numel() for p in load_policy(train(config, Path(run))).parameters())
            print(f"{name}: {own:,} parameters, Diffusion Policy's {parameters:,}")
            results.append(row(f"training_throughput/{name}_vs_diffusion_policy", sides["ours"], sides["peer"]))
        variants = {"unet_dopr_adamw": settings(store, args, unet(args.channels), "dopr_adamw")}
        if args.device != "cpu" or bf16_takes() < 2:
            variants["unet_bf16"] = settings(store, args, unet(args.channels), precision="bf16")
        if args.compile:
            variants["unet_compile"] = settings(store, args, unet(args.channels), compile=True)
        for name, config in variants.items():
            pairs = [(ours(config, args.warm), ours(plain, args.warm)) for _ in range(args.turns)]
            results.append(row(f"training_throughput/{name}_vs_plain", *map(list, zip(*pairs, strict=True))))
        for name in ("flow_transformer", "flow_mlp"):
            config = settings(store, args, {"name": name, "n_obs_steps": TO, "horizon": H, "n_action_steps": TA})
            pairs = [(ours(config, args.warm), apart(args)[0]) for _ in range(args.turns)]
            results.append(
                row(f"training_throughput/{name}_vs_diffusion_policy_unet", *map(list, zip(*pairs, strict=True)))
            )
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def row(name: str, ours: list[float], peer: list[float]) -> dict[str, Any]:
    """Medians over turns; the ratio is the median of the turns' ratios."""
    found = {
        "name": name,
        "ours": statistics.median(ours),
        "peer": statistics.median(peer),
        "ratio": statistics.median(a / b for a, b in zip(ours, peer, strict=True)),
    }
    print(f"{name}: {found['ours']:.1f} windows/s beside {found['peer']:.1f}, ratio {found['ratio']:.2f}")
    return found


if __name__ == "__main__":
    main()
