"""How long a policy takes to plan one chunk at batch 1, and how many actions a second that gives.

Every family plans from states of 26 numbers for 7 joints, the demo's sizes, with its default options. The policies take turns, chunk by
chunk, so that whatever else the machine does meets all of them alike; a figure is the median over the rounds, beside the fastest and
the 99th percentile. The peer is the
published U-Net of Diffusion Policy, run by its own code where a checkout is given: one network call of the published size, ours beside
theirs.

    python benchmarks/policy_latency.py --json latency.json
    python benchmarks/policy_latency.py --diffusion-policy ~/diffusion_policy      # a checkout of the authors' repository
    python benchmarks/policy_latency.py --busy 1 --policies flow_transformer --acting-threads 2    # beside a program that wants a core
    python benchmarks/policy_latency.py --device cuda --compile reduce-overhead    # CUDA graphs
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dopr_robot.errors import UserError
from dopr_robot.policies import ArraySpec, PolicySpec, make_policy
from dopr_robot.policies.networks import UNet, UNetConfig

FAMILIES = [
    "flow_transformer", "flow_unet", "flow_mlp", "flow_cross_transformer", "diffusion_unet", "diffusion_transformer", "regression_mlp",
    "mixture_lstm", "act_cross_transformer", "bet_causal_transformer",
]  # fmt: skip
STATE, ACTION = 26, 7


def planner(
    name: str, device: str, compile_mode: str | None, threads: int | None = None
) -> tuple[Callable[[], Any], int]:
    """A call that plans one chunk, and how many actions that is."""
    spec = PolicySpec({"state": ArraySpec((STATE,))}, ArraySpec((ACTION,)), n_obs_steps=2, horizon=16, n_action_steps=8)
    policy = make_policy({"name": name, "acting": {"compile": compile_mode, "threads": threads}}, spec)
    rng = np.random.default_rng(0)
    for key, size in (("state", STATE), ("action", ACTION)):
        limits = {"min": -np.ones(size), "max": np.ones(size), "mean": np.zeros(size), "std": np.ones(size)}
        policy.normalizer.fit({key: limits}, [key])
    if policy.fits:
        action = torch.from_numpy(rng.uniform(-1, 1, (64, 16, ACTION))).float()
        policy.fit([{"observation": {"state": torch.zeros(64, 2, STATE)}, "action": action}])
    policy.to(device).eval()
    seen = {"state": torch.rand(1, 2, STATE, device=device)}
    generator = torch.Generator().manual_seed(0)

    def plan() -> None:
        with torch.inference_mode():
            policy.act(seen, generator).cpu()

    return plan, policy.n_action_steps


def published_unet(folder: Path | None, device: str) -> tuple[Callable[[], Any], Callable[[], Any] | None]:
    """One call of the published network (PushT's from states): ours, and the authors' where their code is at hand."""
    sizes: dict[str, Any] = {"channels": [256, 512, 1024], "time_dim": 256}
    ours = UNet(UNetConfig(**sizes), input_dim=2, output_dim=2, horizon=16, condition_dim=20, n_obs_steps=2)
    ours.to(device).eval()
    sample, condition = torch.rand(1, 16, 2, device=device), torch.rand(1, 2, 20, device=device)

    def our_call() -> None:
        with torch.inference_mode():
            ours(sample, torch.full((1,), 0.5, device=device), condition).cpu()

    if folder is None:
        return our_call, None
    sys.path.insert(0, str(folder))
    from diffusion_policy.model.diffusion.conditional_unet1d import ConditionalUnet1D

    theirs = ConditionalUnet1D(
        2,
        global_cond_dim=40,
        diffusion_step_embed_dim=256,
        down_dims=[256, 512, 1024],
        kernel_size=5,
        cond_predict_scale=True,
    )
    counts = [sum(parameter.numel() for parameter in network.parameters()) for network in (ours, theirs)]
    assert counts[0] == counts[1], counts
    theirs.to(device).eval()

    def their_call() -> None:
        with torch.inference_mode():
            theirs(sample, torch.full((1,), 50, device=device), global_cond=condition.flatten(1)).cpu()

    return our_call, their_call


def measure(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every call in every round, in an order that rotates."""
    for call in calls.values():
        for _ in range(3):
            call()
    names, times = list(calls), {name: [] for name in calls}
    for index in range(rounds):
        for name in names[index % len(names) :] + names[: index % len(names)]:
            start = time.perf_counter()
            calls[name]()
            times[name].append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch (default 2)")
    parser.add_argument("--acting-threads", type=int, metavar="N", help="policy.acting.threads (default: by the size)")
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="programs that want a core meanwhile")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", help="mode of torch.compile: default, reduce-overhead, max-autotune")
    parser.add_argument("--policies", nargs="+", default=FAMILIES, metavar="NAME")
    parser.add_argument("--diffusion-policy", type=Path, metavar="FOLDER", help="checkout of the authors' code")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write [{name, ours, peer, ratio}], milliseconds")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.diffusion_policy and not (args.diffusion_policy / "diffusion_policy").is_dir():
        raise UserError(f"--diffusion-policy {args.diffusion_policy} holds no folder diffusion_policy")
    planners = {name: planner(name, args.device, args.compile, args.acting_threads) for name in args.policies}
    ours, theirs = published_unet(args.diffusion_policy, args.device)
    calls = {name: plan for name, (plan, _) in planners.items()} | {"published U-Net, one call": ours}
    if theirs is not None:
        calls["peer"] = theirs
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(args.busy)]
    try:
        times = measure(calls, args.rounds)
    finally:
        for other in others:
            other.kill()
    rows = []
    for name in calls:
        if name == "peer":
            continue
        median, peer, ratio = statistics.median(times[name]), None, None
        if theirs is not None and name not in planners:
            peer = 1e3 * statistics.median(times["peer"])
            # The ratio of neighbours in time, so that a busy moment meets both.
            ratio = statistics.median(b / a for a, b in zip(times[name], times["peer"], strict=True))
        rows.append({"name": name, "ours": 1e3 * median, "peer": peer, "ratio": ratio})
        rate = f"{planners[name][1] / median:9.0f} actions/s" if name in planners else ""
        beside = f"peer {peer:.1f} ms, {ratio:.2f} times ours" if peer and ratio else ""
        late = 1e3 * sorted(times[name])[int(0.99 * len(times[name]))]
        print(
            f"{name:<26} {1e3 * median:8.1f} ms  fastest {1e3 * min(times[name]):8.1f}  99 % {late:8.1f}  {rate}{beside}"
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
