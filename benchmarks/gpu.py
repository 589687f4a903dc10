"""What one GPU gives: the optimizer's step, training, plans, drawing, and PushT trained for four minutes.

One card, at most 12 minutes, nothing but the package and its extras. Each row is written into ``OUT/gpu.json`` and ``OUT/gpu.md`` as
soon as it is there; a part that can not run, or for which no time is left, is there with the reason. Float32 is torch's default:
convolutions in TF32, matrix products whole.

    python benchmarks/gpu.py --out gpu --diffusion-policy diffusion_policy --pusht pusht_cchi_v7_replay.zarr
    python benchmarks/gpu.py --out gpu --parts optimizer plan
    python benchmarks/gpu.py --out gpu --small --device cpu      # whether it runs at all
    python benchmarks/gpu.py --page gpu/gpu.json                 # that record as docs/gpu.md
"""

import argparse
import copy
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from dopr_robot.errors import DoprError
from dopr_robot.optim import ActivationPreconditioner
from dopr_robot.training import compose_config, read_metrics, train

sys.path.insert(0, str(Path(__file__).parent))
import optimizer_overhead as overhead
import policy_latency as latency
import training_throughput as throughput
from limits import best, copy_rate, product_rate

Row = dict[str, Any]
PAGE = Path(__file__).parents[1] / "docs" / "gpu.md"


class Skipped(Exception):
    """A part can not run here; the message says why."""


def row(name: str, ours: float, peer: float | None, unit: str, note: str = "", *, faster: bool = False) -> Row:
    """``ratio``: of the two; ``faster``: of times, so that more than 1 is better."""
    ratio = None if peer is None else peer / ours if faster else ours / peer
    return {"name": name, "ours": ours, "peer": peer, "ratio": ratio, "unit": unit, "note": note}


def machine(args: argparse.Namespace) -> Iterator[Row]:
    """What the card does at its best."""
    if args.device == "cpu":
        found = [("float32", product_rate(torch.float32, 3)), ("bfloat16", product_rate(torch.bfloat16, 1))]
        for name, rate in found:
            yield row(f"matrix product, {name}", rate / 1e12, None, "TFLOP/s")
        yield row("copy of memory, read and written", copy_rate(3) / 1e9, None, "GB/s")
        return

    def product(n: int, dtype: torch.dtype) -> float:
        a, b = torch.randn(n, n, device="cuda").to(dtype), torch.randn(n, n, device="cuda").to(dtype)
        return 2 * n**3 / best(lambda: (a @ b, torch.cuda.synchronize()), 10)

    source = torch.ones(1 << 29, device="cuda")
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / best(lambda: (target.copy_(source), torch.cuda.synchronize()), 10)
    yield row("matrix product of 8,192, float32", product(8192, torch.float32) / 1e12, None, "TFLOP/s")
    yield row("matrix product of 8,192, bfloat16", product(8192, torch.bfloat16) / 1e12, None, "TFLOP/s")
    yield row("copy of memory, read and written", copied / 1e9, None, "GB/s")


@contextmanager
def drawn_alike() -> Iterator[None]:
    """Random numbers are drawn on the CPU in float64, wherever and as whatever they are wanted."""
    generator = torch.Generator().manual_seed(0)

    def normal(like: torch.Tensor) -> torch.Tensor:
        return torch.empty(like.shape, dtype=torch.float64).normal_(generator=generator).to(like)

    def uniform(*size: int, device: Any = None, dtype: Any = None) -> torch.Tensor:
        return torch.empty(size, dtype=torch.float64).uniform_(generator=generator).to(device, dtype)

    kept = torch.randn_like, torch.rand
    torch.randn_like, torch.rand = normal, uniform  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.randn_like, torch.rand = kept


def exactness(args: argparse.Namespace) -> Iterator[Row]:
    """How far the card's preconditioned gradients are from those in float64 on the CPU: of the weight that is farthest, over its norm."""

    def gradients(policy: nn.Module, batch: Any, form: str, device: str, amp: bool) -> list[torch.Tensor]:
        made = ActivationPreconditioner(policy, form=form)
        with drawn_alike(), torch.autocast(device, torch.bfloat16, enabled=amp):
            loss, _ = policy(batch)
        loss.backward()
        made.precondition_(wait=True)
        return [p.grad.double().cpu() for p in policy.parameters() if p.grad is not None]

    for model in ["mlp"] if args.small else ["mlp", "transformer", "unet"]:
        torch.manual_seed(0)
        policy, batch = overhead.MODELS[model]()
        for form in ("batch", "average"):  # a subspace begins elsewhere in each dtype
            whole = gradients(copy.deepcopy(policy).double(), overhead.moved(batch, torch.float64), form, "cpu", False)
            for told, amp in (("float32", False), ("bf16", True)):
                mine = copy.deepcopy(policy).to(args.device)
                found = gradients(mine, overhead.moved(batch, torch.device(args.device)), form, args.device, amp)
                far = [float((a - b).norm() / b.norm()) for a, b in zip(found, whole, strict=True) if b.norm() > 0]
                note = f"median weight {statistics.median(far):.1e}"
                yield row(f"{model}, {form}, {told}", max(far), None, "relative error", note)


ARMS = {
    "DoPr-AdamW": "DoPr-AdamW, as it is by default (batch form)",
    "DoPr-AdamW, average": "DoPr-AdamW, average, whole inverse, ten steps old",
    "DoPr-AdamW, low_rank": "DoPr-AdamW, low rank, ten steps old",
    "Muon": "Muon",
    "DoPr-Muon": "DoPr-Muon",
    "SOAP": "SOAP (pytorch_optimizer)",
}


def optimizer(args: argparse.Namespace) -> Iterator[Row]:
    """A training step under each optimizer over one under fused AdamW, at the published sizes."""
    device = torch.device(args.device)
    models = overhead.MODELS if args.small else overhead.PUBLISHED
    for precision in ("float32",) if args.small else ("float32", "bf16"):
        for model in ["mlp"] if args.small else ["unet", "transformer"]:
            arms, batch = overhead.build(models[model], ["AdamW", *ARMS], device)
            overhead.measure(arms, batch, 2 if args.small else 30, device, precision, time.perf_counter, 15.0)
            millions = sum(p.numel() for p in arms[0].model.parameters()) / 1e6
            for arm in arms[1:]:
                found = overhead.summary(arm, arms[0])
                note = f"state {found['state_mib']:.0f} MiB"
                if device.type == "cuda":
                    waits = overhead.syncs_in_an_ordinary_step(arm, batch, precision)
                    note += f", peak of a step {arm.peak / 2**20:.0f} MiB (AdamW's {arms[0].peak / 2**20:.0f})"
                    note += f", waits for the device {waits} times in {overhead.CYCLE} steps"
                name = f"{model} {millions:.1f} M, {precision}: {ARMS[arm.name]}"
                bare = 1e3 * statistics.median(arms[0].times[overhead.WARM :])
                yield row(name, found["median_ms"], bare, "ms", note) | {"ratio": found["ratio"]}
            del arms
            if device.type == "cuda":
                torch.cuda.empty_cache()


def kernels(args: argparse.Namespace) -> Iterator[Row]:
    """Milliseconds of DoPr-AdamW's step alone, one of them profiled: of the card's work, and of the processor's to launch it."""
    if args.device == "cpu":
        raise Skipped("a CPU launches nothing")
    for model in ("unet", "transformer"):
        (arm,), batch = overhead.build(overhead.PUBLISHED[model], ["DoPr-AdamW"], torch.device("cuda"))
        for _ in range(3):
            arm.step(batch, torch.device("cuda"), "bf16", time.perf_counter)
        with torch.autocast("cuda", torch.bfloat16):
            arm.model(batch)[0].backward()
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
            begun = time.perf_counter()
            arm.optimizer.step()
            launched = time.perf_counter() - begun
            torch.cuda.synchronize()
        own = [each for each in found.key_averages() if each.key == "Optimizer.step#DoPr.step"]
        (work,) = [each.device_time_total for each in own if each.device_type == torch.autograd.DeviceType.CPU]
        yield row(f"{model}, bf16, batch 256: kernels", work / 1e3, None, "ms")
        yield row(f"{model}, bf16, batch 256: launching them, under the profiler", 1e3 * launched, None, "ms")


def training(args: argparse.Namespace) -> Iterator[Row]:
    """Windows a second of training as a user runs it, beside the authors' networks in the shortest loop."""
    size = {"batch": 8, "steps": 4, "warm": 1} if args.small else {"batch": 256, "steps": 50, "warm": 15}
    options = argparse.Namespace(
        device=args.device, threads=None, channels=[16, 32] if args.small else [256, 512, 1024], **size
    )
    variants: list[tuple[str, str, dict[str, Any]]] = [
        ("float32", "adamw", {}),
        ("bf16", "adamw", {"precision": "bf16"}),
        ("fp16 with a scaler", "adamw", {"precision": "fp16"}),
        ("bf16, compiled", "adamw", {"precision": "bf16", "compile": True}),
        ("float32, DoPr-AdamW", "dopr_adamw", {}),
        ("bf16, DoPr-AdamW", "dopr_adamw", {"precision": "bf16"}),
    ]
    if args.small:
        variants = variants[::4]
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "random.zarr"
        throughput.write_store(store)
        for name, policy in (("unet", throughput.unet(options.channels)), ("transformer", throughput.transformer())):
            peer = throughput.peer(options, name)[0] if args.diffusion_policy else None
            for variant, base, more in variants:
                rate = throughput.ours(throughput.settings(store, options, policy, base, **more), options.warm)
                note = "" if args.diffusion_policy else "no --diffusion-policy CHECKOUT, so nothing beside it"
                yield row(f"{name}, batch {options.batch}: {variant}", rate, peer, "windows/s", note)


def waits(args: argparse.Namespace) -> Iterator[Row]:
    """How often a step of training waits for the device."""
    if args.device == "cpu":
        raise Skipped("a CPU is not waited for")

    def counted(base: str, steps: int, folder: Path) -> int:
        options = argparse.Namespace(device="cuda", threads=None, batch=64, steps=steps)
        policy = {"name": "flow_transformer", "n_obs_steps": 2, "horizon": 16, "n_action_steps": 8}
        with warnings.catch_warnings(record=True) as caught, tempfile.TemporaryDirectory() as run:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                train(throughput.settings(folder / "random.zarr", options, policy, base), Path(run))
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(entry.message) for entry in caught)

    with tempfile.TemporaryDirectory() as folder:
        throughput.write_store(Path(folder) / "random.zarr")
        for base in ("adamw", "dopr_adamw"):
            few, many = (counted(base, steps, Path(folder)) for steps in (20, 60))
            yield row(f"a training step under {base}", (many - few) / 40, None, "waits")


def plan(args: argparse.Namespace) -> Iterator[Row]:
    """Milliseconds of a plan at batch 1: eager, compiled, and as a CUDA graph."""
    ways = {"eager": None, "CUDA graph": "reduce-overhead"}
    asked: dict[str, dict[str, str | None]] = {
        "flow_transformer": {"eager": None, "compiled": "default", "CUDA graph": "reduce-overhead"},
        "flow_unet": ways,
        "diffusion_unet": ways,
    }
    rounds = 3 if args.small else 40
    for name, modes in ({"flow_mlp": {"eager": None}} if args.small else asked).items():
        eager = 0.0
        for told, mode in modes.items():
            call, _ = latency.planner(name, args.device, mode)
            times = latency.measure({"call": call}, rounds)["call"]
            eager = 1e3 * statistics.median(times) if mode is None else eager
            note = f"99th percentile {1e3 * sorted(times)[int(0.99 * len(times))]:.2f} ms"
            yield row(f"{name}, {told}", 1e3 * statistics.median(times), eager, "ms", note, faster=True)
    if not args.small:
        ours, theirs = latency.published_unet(args.diffusion_policy, args.device)
        calls = {"ours": ours} | ({"theirs": theirs} if theirs else {})
        times = {key: 1e3 * statistics.median(each) for key, each in latency.measure(calls, rounds).items()}
        name = "published U-Net, one call, the authors' beside it"
        yield row(name, times["ours"], times.get("theirs"), "ms", faster=True)


def frames(args: argparse.Namespace) -> Iterator[Row]:
    """Frames a second that MuJoCo draws at 84 x 84, the scene moved by a step between two."""
    if args.device == "cuda":
        os.environ.setdefault("MUJOCO_GL", "egl")
    from dopr_robot.envs import make

    for camera in ["overview"] if args.small else ["overview", "wrist"]:
        try:
            env: Any = make("PickPlace", cameras=[camera], camera_size=84, max_steps=10**9)
            env.reset(seed=0)
        except Exception as error:  # whatever a machine without OpenGL says
            raise Skipped(f"no OpenGL: {' '.join(str(error).split())[:120]}") from None
        action, seconds = env.action_space.sample() * 0, []
        for _ in range(5 if args.small else 300):
            begun = time.perf_counter()
            env.step(action)
            seconds.append(time.perf_counter() - begun)
        env.close()
        rate = 1 / statistics.median(seconds)
        yield row(f"PickPlace {camera}, a control step and its picture", rate, None, "frames/s")


def pusht(args: argparse.Namespace) -> Iterator[Row]:
    """Score on PushT from keypoints (its largest of an episode) after four minutes of training, or ``--pusht-minutes``."""
    if args.pusht is None:
        raise Skipped("no --pusht STORE: the authors' pusht_cchi_v7_replay.zarr is asked for")
    from dopr_robot import evaluate
    from dopr_robot.envs import get_task
    from dopr_robot.policies import load_policy

    get_task("gym_pusht/PushT-v0").check_installed()
    seconds = 4.0 if args.small else 60 * args.pusht_minutes
    batch, episodes = (16, 2) if args.small else (256, 100)
    words = [
        "policy=flow_unet", f"data.store={args.pusht}",
        f"training.device={args.device}", f"training.batch_size={batch}", "training.rollout_every=0",
        "training.validate_every=1000000", "training.checkpoint_every=1000000", "training.log_every=10", *args.pusht_settings,
    ]  # fmt: skip
    if args.small:
        words += ["policy.network.channels=[16,32]", "training.warmup_steps=2"]
    with tempfile.TemporaryDirectory() as folder:
        tried = 20 if args.small else 200
        train(compose_config("pusht_state", [*words, f"training.steps={tried}"]), Path(folder) / "try")
        evaluate(
            load_policy(Path(folder) / "try" / "checkpoints" / str(tried), args.device),
            episodes=2,
            video=0,
            out=Path(folder) / "look",
        )
        clock = {line["step"]: line["seconds"] for line in read_metrics(Path(folder) / "try") if "loss" in line}
        rate = (tried - tried // 2) / (clock[tried] - clock[tried // 2])
        steps = max(int(rate * seconds), 1)
        begun = time.perf_counter()
        checkpoint = train(compose_config("pusht_state", [*words, f"training.steps={steps}"]), Path(folder) / "run")
        spent = time.perf_counter() - begun
        begun = time.perf_counter()
        results = evaluate(load_policy(checkpoint, args.device), episodes=episodes, video=0, out=Path(folder) / "eval")
        rolled = time.perf_counter() - begun
        figure = results.content["metrics"]["score"]
    low, high = figure["ci95"] or (0.0, 1.0)
    how = f"{steps:,} steps of {batch} in {spent:.0f} s, {rate:.0f} steps/s; {episodes} episodes in {rolled:.0f} s"
    yield row("largest score, mean (95 %)", figure["mean"], None, "of 1", f"{low:.3f} to {high:.3f}; {how}")


Part = Callable[[argparse.Namespace], Iterator[Row]]
PARTS: dict[str, tuple[Part, float]] = {
    "machine": (machine, 10),
    "exactness": (exactness, 40),
    "optimizer": (optimizer, 110),
    "kernels": (kernels, 25),
    "training": (training, 120),
    "waits": (waits, 20),
    "plan": (plan, 90),
    "frames": (frames, 10),
    "pusht": (pusht, 300),
}
"""A part and the seconds that it may need, on one H100."""


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The record, written after every row."""
    begun = time.perf_counter()
    name = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or platform.machine()
    record: dict[str, Any] = {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda, "parts": {}}
    args.out.mkdir(parents=True, exist_ok=True)
    earlier = args.out / "gpu.json"
    if earlier.is_file() and (old := json.loads(earlier.read_text(encoding="utf-8"))) | {"parts": {}} == record:
        record = old  # of the same card: its other parts stay
    for part in args.parts:
        function, needs = PARTS[part]
        spent, clock = time.perf_counter() - begun, time.perf_counter()
        found: dict[str, Any] = {"about": " ".join((function.__doc__ or "").split())}
        try:
            if not args.small and needs > 60 * args.minutes - spent:
                raise Skipped(f"of {args.minutes:g} minutes {spent / 60:.1f} were over")
            for each in function(args):
                found.setdefault("rows", []).append(each)
                write(args.out, record, part, found, clock)
        except (Skipped, DoprError, ImportError) as reason:
            found["skipped"] = str(reason)
        except Exception as error:  # the other parts are worth having
            traceback.print_exc()
            found["failed"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        write(args.out, record, part, found, clock)
        print(f"{part}: {broken(found) or 'done'}, {time.perf_counter() - clock:.0f} s", flush=True)
    return record


def write(out: Path, record: dict[str, Any], part: str, found: Row, begun: float) -> None:
    """What a part has found so far, into the record and its files."""
    record["parts"][part] = found | {"seconds": round(time.perf_counter() - begun, 1)}
    (out / "gpu.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (out / "gpu.md").write_text(tables(record), encoding="utf-8")


def broken(found: Row) -> str:
    """Why a part was left out or broke off; empty where it did neither."""
    return str(found.get("skipped") or found.get("failed") or "")


def tables(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    lines = [
        f"{record['device']}, torch {record['torch']}" + (f", CUDA {record['cuda']}." if record["cuda"] else "."),
        "",
    ]
    for part, found in record["parts"].items():
        lines += [f"## {part.capitalize()}", "", found["about"], ""]
        if broken(found):
            lines += [f"{'Broke off' if 'rows' in found else 'Not measured'}: {broken(found)}.", ""]
        if "rows" not in found:
            continue
        beside, noted = any(each["peer"] for each in found["rows"]), any(each["note"] for each in found["rows"])
        unit = found["rows"][0]["unit"]
        head = ["", unit, *(["beside", "ratio"] if beside else []), *(["note"] if noted else [])]
        lines += [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
        for each in found["rows"]:
            own = unit if each["unit"] == unit else each["unit"]
            cells = [each["name"], number(each["ours"]) + ("" if own == unit else f" {own}")]
            if beside:
                cells += ["–", "–"] if each["peer"] is None else [number(each["peer"]), f"{each['ratio']:.2f}"]
            lines.append(f"| {' | '.join([*cells, *([each['note']] if noted else [])])} |")
        lines.append("")
    return "\n".join(lines)


def page(record: dict[str, Any]) -> str:
    """docs/gpu.md."""
    return f"""# On a GPU

What one card gives, as `benchmarks/gpu.py` found it; the record is [benchmarks/gpu.json](../benchmarks/gpu.json). A smaller ratio is the
better one for the optimizer, a larger one everywhere else. Float32 is torch's default: convolutions in TF32, matrix products whole.

```
python benchmarks/gpu.py --out gpu --diffusion-policy CHECKOUT --pusht pusht_cchi_v7_replay.zarr      # at most 12 minutes
```

{tables(record)}"""


def number(value: float) -> str:
    """Three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu"), metavar="FOLDER")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--small", action="store_true", help="tiny sizes: whether it runs")
    parser.add_argument("--minutes", type=float, default=12.0, help="no part is begun that would go beyond")
    parser.add_argument(
        "--diffusion-policy", type=Path, metavar="CHECKOUT", help="of the authors' code, to stand beside ours"
    )
    parser.add_argument("--pusht", type=Path, metavar="STORE", help="the human demonstrations of PushT")
    parser.add_argument("--pusht-minutes", type=float, default=4.0)
    parser.add_argument("--pusht-settings", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--page", type=Path, metavar="RECORD", help="write docs/gpu.md of a record, measure nothing")
    parser.add_argument(
        "--to", type=Path, default=PAGE, metavar="FILE", help="where --page writes (default docs/gpu.md)"
    )
    args = parser.parse_args()
    if args.page:
        args.to.write_text(page(json.loads(args.page.read_text(encoding="utf-8"))), encoding="utf-8")
        return
    if args.diffusion_policy:
        sys.path.insert(0, str(args.diffusion_policy.resolve()))
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device: --device cpu --small shows whether it runs")
    run(args)
    print((args.out / "gpu.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
