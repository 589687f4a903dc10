"""What DoPr's defaults were chosen by: one setting changed at a time, on a small diffusion U-Net and the demonstrations of a store.

Every arm starts at the same weights and sees the same batches and the same noise. Printed for each: the training loss (mean over the last
quarter), the loss on held-out episodes (fixed noise, fixed windows), and CPU seconds a step over bare AdamW's. Then, for several ranks,
how near the low-rank inverse comes to the whole one: the cosine between both preconditioned gradients, layer by layer.

    python benchmarks/optimizer_defaults.py pusht_cchi_v7_replay.zarr.zip --json defaults.json
"""

import argparse
import copy
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dopr_robot.optim import DoPr
from dopr_robot.optim.inverses import form_inverses, rank_of
from dopr_robot.optim.multiply import precondition_
from dopr_robot.policies import make_policy
from dopr_robot.training import compose_config
from dopr_robot.training.data import load_data, to_tensors

DAMPING = 0.1
ARMS: dict[str, dict[str, Any] | None] = {
    "AdamW": None,
    "low_rank": {},
    "damping=0.01": {"damping": 0.01},
    "damping=1": {"damping": 1.0},
    "stat_decay=0": {"stat_decay": 0.0},
    "stat_decay=0.97": {"stat_decay": 0.97},
    "update_every=1": {"form": "average", "update_every": 1},
    "update_every=30": {"update_every": 30},
    "average": {"form": "average"},
    "rank=16": {"rank": 16},
    "rank=32": {"rank": 32},
    "max_tokens=256": {"max_tokens": 256},
}


def load(store: str, batch_size: int) -> tuple[Any, Any, Any]:
    """A policy with fitted normaliser, training windows and held-out windows."""
    config = compose_config("pusht_state", [f"data.store={store}", "data.validation_fraction=0.1"])
    data = load_data(config)
    policy = make_policy({**config.policy, "network": {"name": "unet", "channels": [64, 128, 256]}}, data.spec)
    policy.fit_normalizer(data.statistics)
    return policy, data.train, data.validation


def loss_of(policy: torch.nn.Module, batch: Any, seed: int) -> Tensor:
    torch.manual_seed(seed)  # the noise of the flow
    return policy(batch)[0]


def held_out_loss(policy: torch.nn.Module, batches: list[Any]) -> float:
    with torch.no_grad():
        return statistics.fmean(loss_of(policy, batch, seed).item() for seed, batch in enumerate(batches))


def fidelity(optimizer: DoPr, ranks: list[int | str]) -> dict[str, list[float]]:
    """Cosine of the gradient under a low-rank inverse with that under the whole one, for every layer that is large enough."""
    preconditioner = optimizer.preconditioner
    factors = [f for f in preconditioner.factors if f.matrix is not None and rank_of(f.matrix.dim, 16) is not None]
    results: dict[str, list[float]] = {str(rank): [] for rank in ranks}
    for factor in factors:
        gradient, state = factor.weight.grad, factor.state
        assert gradient is not None
        before, turned = gradient.clone(), {}
        for rank in [None, *ranks]:
            factor.state, factor.form = {"matrix": state["matrix"]}, "average" if rank is None else "low_rank"
            form_inverses([factor], DAMPING, rank or "auto")
            gradient.copy_(before)
            precondition_(factor)
            turned[rank] = gradient.clone()
        factor.state = state
        for rank in ranks:
            results[str(rank)].append(
                torch.cosine_similarity(turned[None].flatten(), turned[rank].flatten(), dim=0).item()
            )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", help="demonstrations of PushT, as a store with `state` and `action`")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write [{name, ours, peer, ratio}]: held-out losses, peer is AdamW"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    policy, train, validation = load(options.store, options.batch_size)
    generator = torch.Generator().manual_seed(0)
    shape = (options.steps, options.batch_size)
    indices = torch.randint(0, len(train), shape, generator=generator).numpy()
    chosen = torch.randperm(len(validation), generator=generator)[:512].split(64)
    held_out = [to_tensors(validation.batch(part.numpy()), torch.device("cpu")) for part in chosen]
    names = list(dict.fromkeys(["AdamW", *options.arms]))
    seconds: dict[str, float] = {}
    records: list[dict[str, Any]] = []
    last: DoPr | None = None
    print(
        f"{'':<18} {'training loss':>13} {'held-out loss':>13} {'CPU time':>8}   {options.steps} steps of {options.batch_size}"
    )
    for name in names:
        model, settings = copy.deepcopy(policy), ARMS[name]
        base = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=1e-6)
        optimizer = (
            base if settings is None else DoPr(base, model, **{"form": "low_rank", "damping": DAMPING, **settings})
        )
        losses, spent = [], 0.0
        for step, row in enumerate(indices):
            batch = to_tensors(train.batch(row), torch.device("cpu"))
            start = time.process_time()
            loss = loss_of(model, batch, step)
            loss.backward()
            optimizer.step()
            spent += time.process_time() - start
            losses.append(loss.item())
            if step + 1 < len(indices):
                optimizer.zero_grad()
        if isinstance(optimizer, DoPr) and not settings:
            last = optimizer
        seconds[name] = spent
        value = held_out_loss(model, held_out)
        training = statistics.fmean(losses[-len(losses) // 4 :])
        print(f"{name:<18} {training:13.4f} {value:13.4f} {spent / seconds['AdamW']:8.3f}", flush=True)
        records.append({"name": name, "ours": value, "training_loss": training, "cpu_time": spent / seconds["AdamW"]})
    for record in records:
        record["peer"], record["ratio"] = records[0]["ours"], record["ours"] / records[0]["ours"]
    if last is not None:
        print("\ncosine with the whole inverse: median, least")
        for rank, cosines in fidelity(last, [8, 16, 32, 64, "auto"]).items():
            print(f"  rank {rank:<5} {statistics.median(cosines):.4f} {min(cosines):.4f}  ({len(cosines)} layers)")
    if options.json:
        options.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
