"""What a training step under DoPr costs, in time and memory, beside its bare base and beside SOAP and SINGD.

Every arm trains a copy of the same policy on the same batch. The arms take turns step by step, in an order that rotates, so that
whatever else the machine does meets all of them alike; a ratio is the median over steps of (arm's time / bare AdamW's time in the same
round). Two figures say whether some step is slow: ``worst`` is the slowest phase of the refresh cycle (the median over the steps of
one phase, over the median of all), ``first`` is the step at which every layer's inverse is formed for the first time.

    python benchmarks/optimizer_overhead.py --json overhead.json
    python benchmarks/optimizer_overhead.py --device cuda --published --precision bf16       # the sizes of the papers
"""

import argparse
import copy
import gc
import itertools
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dopr_robot.optim import DoPr, make_optimizer
from dopr_robot.policies import PolicySpec, make_policy
from dopr_robot.policies.spec import ArraySpec

WARM = 2  # rounds before those that count
CYCLE = 10  # phases that the worst step is looked for in: DoPr's default update_every


def policy_case(name: str, network: dict[str, Any], batch: int, horizon: int) -> Callable[[], tuple[nn.Module, Any]]:
    """A policy of this package, on states of 20 and actions of 7 numbers, with a batch of random data."""

    def make() -> tuple[nn.Module, Any]:
        spec = PolicySpec({"state": ArraySpec((20,))}, ArraySpec((7,)), n_obs_steps=2, horizon=horizon)
        config = {"name": name, "horizon": horizon, "network": {"name": name.split("_")[1], **network}}
        policy = make_policy(config, spec)
        limits = {"min": -2.0, "max": 2.0, "mean": 0.0, "std": 1.0}
        sizes = {"state": 20, "action": 7}
        policy.fit_normalizer({key: {k: np.full(n, v) for k, v in limits.items()} for key, n in sizes.items()})
        data = {"observation": {"state": torch.randn(batch, 2, 20)}, "action": torch.randn(batch, horizon, 7)}
        return policy, data

    return make


class Regression(nn.Module):
    """Behaviour cloning by a perceptron: state in, action chunk out, mean squared error."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        sizes = [40, *[width] * hidden, 112]
        layers = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
        self.net = nn.Sequential(*layers[:-1])

    def forward(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return (self.net(batch[0]) - batch[1]).square().mean(), {}


def mlp_case(width: int, hidden: int, batch: int) -> Callable[[], tuple[nn.Module, Any]]:
    return lambda: (Regression(width, hidden), (torch.randn(batch, 40), torch.randn(batch, 112)))


MODELS = {
    "transformer": policy_case("flow_transformer", {"dim": 256, "layers": 6}, batch=64, horizon=18),
    "unet": policy_case("flow_unet", {"channels": [128, 256, 512]}, batch=64, horizon=16),
    "mlp": mlp_case(256, 3, batch=256),
    "mlp, batch 64": mlp_case(256, 3, batch=64),
    "mlp 512": mlp_case(512, 3, batch=256),
    "mlp 512, batch 64": mlp_case(512, 3, batch=64),
}
PUBLISHED = {
    "transformer": policy_case("flow_transformer", {"dim": 512, "layers": 8, "heads": 8}, batch=256, horizon=18),
    "unet": policy_case("flow_unet", {"channels": [256, 512, 1024], "time_dim": 256}, batch=256, horizon=16),
    "mlp": mlp_case(256, 3, batch=256),
}


def adamw(model: nn.Module) -> Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)


def soap(model: nn.Module) -> Optimizer:
    from pytorch_optimizer import SOAP

    return SOAP(model.parameters(), lr=1e-4)


def singd(model: nn.Module) -> Optimizer:
    from singd.optim.optimizer import SINGD

    if any(isinstance(module, nn.Conv1d) for module in model.modules()):
        raise NotImplementedError("knows no Conv1d")
    return SINGD(model, lr=1e-4, warn_unsupported=False)


def heavyball(model: nn.Module) -> Optimizer:
    import heavyball

    # Its step is compiled, as it is by default, but without the search over kernels, which takes minutes a model on a CPU.
    heavyball.utils.compile_mode = "default"
    return heavyball.SOAP(model.parameters(), lr=1e-4)


ARMS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "AdamW": adamw,
    "DoPr-AdamW": lambda model: DoPr(adamw(model), model),
    **{
        f"DoPr-AdamW, {form}": lambda model, form=form: DoPr(adamw(model), model, form=form)
        for form in ("auto", "average", "low_rank")
    },
    "Muon": lambda model: make_optimizer("muon", model, lr=1e-4),
    "DoPr-Muon": lambda model: make_optimizer("dopr_muon", model, lr=1e-4),
    "SOAP": soap,
    "SINGD": singd,
    "HeavyBall SOAP": heavyball,
}


@dataclass
class Arm:
    """One optimizer at work on its own copy of the model."""

    name: str
    model: nn.Module
    optimizer: Optimizer
    times: list[float] = field(default_factory=list)
    peak: int = 0

    def step(self, batch: Any, device: torch.device, precision: str, clock: Callable[[], float]) -> None:
        """Forward, backward and optimizer step, timed as one."""
        synchronize(device)
        start = clock()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss, _ = self.model(batch)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        synchronize(device)
        self.times.append(clock() - start)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def moved(data: Any, where: torch.device | torch.dtype) -> Any:
    if isinstance(data, Tensor):
        return data.to(where)
    if isinstance(data, dict):
        return {key: moved(value, where) for key, value in data.items()}
    return tuple(moved(value, where) for value in data)


def state_bytes(arm: Arm) -> int:
    """Bytes of all tensors that the optimizer holds beside the model, wherever it keeps them."""
    known = {p.data_ptr() for p in (*arm.model.parameters(), *arm.model.buffers())}
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in tensors_in(arm.optimizer, set())
        if tensor.data_ptr() not in known
    }
    return sum(storages.values())


def tensors_in(thing: Any, seen: set[int]) -> Iterator[Tensor]:
    if id(thing) in seen or isinstance(thing, nn.Module | type | str | int | float):
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, dict):
        for value in thing.values():
            yield from tensors_in(value, seen)
    elif isinstance(thing, list | tuple | set):
        for value in thing:
            yield from tensors_in(value, seen)
    elif hasattr(thing, "__dict__"):
        yield from tensors_in(vars(thing), seen)


def build(make: Callable[[], tuple[nn.Module, Any]], names: list[str], device: torch.device) -> tuple[list[Arm], Any]:
    torch.manual_seed(0)
    model, batch = make()
    model.to(device)
    arms = []
    for name in names:
        mine = copy.deepcopy(model)
        try:
            arms.append(Arm(name, mine, ARMS[name](mine)))
        except (ImportError, NotImplementedError) as error:
            print(f"  {name} is left out: {error}")
    return arms, moved(batch, device)


def measure(
    arms: list[Arm],
    batch: Any,
    steps: int,
    device: torch.device,
    precision: str,
    clock: Callable[[], float],
    seconds: float = math.inf,
) -> None:
    """``steps`` rounds beyond ``WARM``, fewer where they take longer than ``seconds``; a round is one step of every arm."""
    gc.disable()
    begun = time.perf_counter()
    for number in range(WARM + steps):
        if number > WARM and time.perf_counter() - begun > seconds:
            break
        for offset in range(len(arms)):
            arms[(number + offset) % len(arms)].step(batch, device, precision, clock)
    gc.enable()
    if device.type == "cuda":
        for arm in arms:
            held = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            arm.step(batch, device, precision, clock)
            arm.times.pop()
            arm.peak = torch.cuda.max_memory_allocated() - held


def syncs_in_an_ordinary_step(arm: Arm, batch: Any, precision: str) -> int:
    """How often the optimizer's step alone waits for a CUDA device, over one cycle."""
    with (
        torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        for _ in range(CYCLE):
            arm.model(batch)[0].backward()
            torch.cuda.set_sync_debug_mode("warn")
            arm.optimizer.step()
            torch.cuda.set_sync_debug_mode("default")
            arm.optimizer.zero_grad()
    return sum("synchroniz" in str(entry.message) for entry in caught)


def summary(arm: Arm, bare: Arm) -> dict[str, float]:
    """Times in ms over the steps after warming up, and ratios to the bare base."""
    mine, theirs = arm.times[WARM:], bare.times[WARM:]
    median = statistics.median(mine)
    phases = [statistics.median(mine[phase::CYCLE]) for phase in range(min(CYCLE, len(mine)))]
    return {
        "median_ms": 1e3 * median,
        "ratio": statistics.median(a / b for a, b in zip(mine, theirs, strict=True)),
        "ratio_of_means": statistics.fmean(mine) / statistics.fmean(theirs),
        "worst": max(phases) / median,
        "slowest_seen": max(mine) / median,
        "first": arm.times[0] / median,
        "state_mib": state_bytes(arm) / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="float32", choices=["float32", "bf16"])
    parser.add_argument("--published", action="store_true", help="the published sizes, batch 256")
    parser.add_argument(
        "--cpu-time", action="store_true", help="count the process's CPU seconds, on a machine with other work"
    )
    parser.add_argument("--threads", type=int, help="CPU threads of torch")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write [{name, ours, peer, ratio}], times in ms")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    clock = time.process_time if options.cpu_time else time.perf_counter
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(
        f"torch {torch.__version__}, {where}, {options.precision}, {options.steps} steps, {'CPU' if options.cpu_time else 'wall'} time"
    )
    records: list[dict[str, Any]] = []
    names = list(dict.fromkeys(["AdamW", *options.arms]))
    for model in options.models:
        arms, batch = build((PUBLISHED if options.published else MODELS)[model], names, device)
        weights = sum(p.numel() for p in arms[0].model.parameters())
        print(f"\n{model}: {weights:,} parameters")
        print(
            f"  {'':<18} {'ms':>8} {'ratio':>6} {'of means':>9} {'worst':>6} {'slowest':>8} {'first':>6} {'state MiB':>10}"
        )
        measure(arms, batch, options.steps, device, options.precision, clock)
        results = {arm.name: summary(arm, arms[0]) for arm in arms}
        for arm in arms:
            r = results[arm.name]
            print(
                f"  {arm.name:<18} {r['median_ms']:8.2f} {r['ratio']:6.3f} {r['ratio_of_means']:9.3f} {r['worst']:6.2f} "
                f"{r['slowest_seen']:8.2f} {r['first']:6.2f} {r['state_mib']:10.1f}"
                + (f"  peak {arm.peak / 2**20:.0f} MiB" if arm.peak else "")
            )
            if arm is not arms[0]:
                records.append(
                    {
                        "name": f"{model}: {arm.name} / AdamW",
                        "ours": r["median_ms"],
                        "peer": results["AdamW"]["median_ms"],
                        "ratio": r["ratio"],
                        **{key: r[key] for key in ("ratio_of_means", "worst", "first", "state_mib")},
                    }
                )
        if device.type == "cuda" and len(arms) > 1:
            print(
                f"  {arms[1].name} waited for the device {syncs_in_an_ordinary_step(arms[1], batch, options.precision)} times"
            )
    if options.json:
        options.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
