"""What each form of S makes of a gradient, beside the exact forms, and what it costs: the table of docs/optimizer.md.

One model is trained for a while under the default. At the steps that are looked at, every form preconditions the very same gradient from
its own statistics, gathered over the very same run; a cosine is the median over the layers, the lowest in brackets.

    python benchmarks/optimizer_fidelity.py --json fidelity.json
    python benchmarks/optimizer_fidelity.py --models mlp --steps 40 --no-cost

Columns: the cosine to the exact form of this step's S (the paper's), to the whole inverse of the averaged S formed at every step, to the
whole inverse of the average that the form itself holds, and to the bare gradient; the paired cost of a training step over fused AdamW's,
and the bytes held.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dopr_robot.optim import ActivationPreconditioner, DoPr
from dopr_robot.optim.factors import Factor
from dopr_robot.optim.inverses import damped_inverse

sys.path.insert(0, str(Path(__file__).parent))
from optimizer_overhead import Arm, Regression, adamw, build, measure, policy_case, state_bytes, summary

DAMPING = 0.1
FORMS: dict[str, dict[str, Any]] = {
    "average, every step": {"form": "average", "update_every": 1},
    "average": {"form": "average"},
    "low_rank": {"form": "low_rank"},
    "batch, ten steps old": {"form": "average", "stat_decay": 0.0},
    "batch, 256 tokens": {"form": "batch", "max_tokens": 256},
    "batch, blocks of 64": {"form": "batch", "max_dim": 64},
    "sketch": {"form": "sketch"},
    "average_sketch": {"form": "average_sketch"},
    "auto": {"form": "auto"},
    "batch": {"form": "batch"},  # the default, whose gradients the training takes
}
Case = Callable[[], tuple[nn.Module, Callable[[int], Any]]]


def learnable(
    model: nn.Module, batch: int, observation: int, action: int, wrap: Callable[[Tensor, Tensor], Any]
) -> tuple[nn.Module, Any]:
    """A model with batches of a task that can be learned: correlated observations, actions a smooth function of them."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(observation, observation, generator=generator) / observation**0.5
    truth = torch.randn(observation, action, generator=generator) / observation**0.5

    def data(step: int) -> Any:
        z = torch.randn(batch, observation, generator=torch.Generator().manual_seed(step + 1)) @ mix
        return wrap(z, (z @ truth).tanh())

    return model, data


def mlp(width: int = 512, batch: int = 64) -> Case:
    return lambda: learnable(Regression(width, 3), batch, 40, 112, lambda x, y: (x, y))


def policy(name: str, network: dict[str, Any], batch: int, horizon: int) -> Case:
    def make() -> tuple[nn.Module, Any]:
        model, _ = policy_case(name, network, batch=batch, horizon=horizon)()

        def wrap(x: Tensor, y: Tensor) -> Any:
            return {"observation": {"state": x.view(batch, 2, 20)}, "action": y.view(batch, horizon, 7)}

        return learnable(model, batch, 40, horizon * 7, wrap)

    return make


class Language(nn.Module):
    """A GPT-2 on text of a random two-step Markov chain."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        self.net = GPT2LMHeadModel(GPT2Config(vocab_size=256, n_positions=64, n_embd=192, n_layer=3, n_head=3))

    def forward(self, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.net(input_ids=tokens, labels=tokens).loss, {}


def gpt2() -> tuple[nn.Module, Callable[[int], Tensor]]:
    table = torch.randint(0, 256, (256, 4), generator=torch.Generator().manual_seed(0))

    def data(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step + 1)
        tokens = [torch.randint(0, 256, (16,), generator=generator)]
        for _ in range(63):
            tokens.append(table[tokens[-1], torch.randint(0, 4, (16,), generator=generator)])
        return torch.stack(tokens, 1)

    return Language(), data


MODELS: dict[str, Case] = {
    "mlp": mlp(),
    "transformer": policy("flow_transformer", {"dim": 256, "layers": 4}, batch=64, horizon=16),
    "unet": policy("flow_unet", {"channels": [128, 256, 512]}, batch=64, horizon=16),
    "gpt2": gpt2,
}


def cosines(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> tuple[float, float]:
    """Median over the layers, and the lowest."""
    values = [
        float((a * b).sum() / (a.norm() * b.norm()).clamp_min(1e-30))
        for a, b in ((ours[name].flatten().double(), theirs[name].flatten().double()) for name in theirs)
    ]
    return statistics.median(values), min(values)


def whole_inverse(factor: Factor, gradient: Tensor, damping: float) -> Tensor:
    """The gradient times the whole damped inverse of the S that the factor holds."""
    assert factor.matrix is not None
    inverse, _ = damped_inverse(factor.state["matrix"].double(), (damping * factor.trace_mean()).double())
    rows = factor.matrix.view(gradient.double())
    return (rows.reshape(rows.shape[0], -1, rows.shape[-1]) @ inverse).view(rows.shape)


def fidelity(case: Case, steps: int, looked_at: int) -> dict[str, dict[str, Any]]:
    """Median cosines of every form, over the last ``looked_at`` steps of ``steps``."""
    torch.manual_seed(0)
    model, data = case()
    watchers = {name: ActivationPreconditioner(model, damping=DAMPING, **options) for name, options in FORMS.items()}
    base = torch.optim.AdamW(model.parameters(), lr=1e-3)
    found: dict[str, dict[str, list[tuple[float, float]]]] = {name: {} for name in FORMS}
    for step in range(steps):
        model(data(step))[0].backward()
        bare = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        made: dict[str, dict[str, Tensor]] = {}
        for form, watcher in watchers.items():
            for name, p in model.named_parameters():
                if p.grad is not None:
                    p.grad = bare[name].clone()
            watcher.precondition_()
            layers = {f.name: f for f in watcher.factors if f.diagonal is None and f.refreshed >= 0}
            made[form] = {name: f.weight.grad.clone() for name, f in layers.items() if f.weight.grad is not None}
            if step >= steps - looked_at and all("matrix" in f.state for f in layers.values()):
                own = {name: whole_inverse(f, bare[name], DAMPING) for name, f in layers.items() if name in made[form]}
                views = {name: layers[name].matrix.view(made[form][name]) for name in own}
                found[form].setdefault("own", []).append(cosines(views, own))
        if step >= steps - looked_at:
            for form, ours in made.items():
                for reference in ("batch", "average, every step"):
                    found[form].setdefault(reference, []).append(cosines(ours, made[reference]))
                found[form].setdefault("bare", []).append(cosines(ours, {name: bare[name] for name in ours}))
        # The step is the default's: the last of the forms has left its gradients in place.
        base.step()
        base.zero_grad()
    return {
        form: {key: [statistics.median(each) for each in zip(*values, strict=True)] for key, values in columns.items()}
        for form, columns in found.items()
    }


def costs(case: Case, steps: int) -> dict[str, dict[str, float]]:
    """Paired cost of a training step under every form over fused AdamW's, and MiB held beyond the base's own state."""

    def make() -> tuple[nn.Module, Any]:
        model, data = case()
        return model, data(0)

    arms, batch = build(make, ["AdamW"], torch.device("cpu"))
    bare = arms[0]
    for name, options in FORMS.items():
        torch.manual_seed(0)
        model = make()[0]
        arms.append(Arm(name, model, DoPr(adamw(model), model, damping=DAMPING, **options)))
    measure(arms, batch, steps, torch.device("cpu"), "float32", time.perf_counter)
    held = state_bytes(bare)
    return {
        arm.name: {"ratio": summary(arm, bare)["ratio"], "mib": (state_bytes(arm) - held) / 2**20} for arm in arms[1:]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--steps", type=int, default=100, help="of training")
    parser.add_argument("--look", type=int, default=10, help="so many of the last steps are compared")
    parser.add_argument("--no-cost", action="store_true", help="leave out the timing")
    parser.add_argument("--rounds", type=int, default=30, help="of the timing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table as [{name, ours, peer, ratio}]")
    options = parser.parse_args()
    records = []
    columns = {"batch": "this step's", "average, every step": "average", "own": "own S", "bare": "bare"}
    for model in options.models:
        print(f"\n{model}, {options.steps} steps; cosine to ...")
        print(f"  {'form':<22}" + "".join(f"{title:>16}" for title in columns.values()) + f"{'cost':>8}{'MiB':>8}")
        table = fidelity(MODELS[model], options.steps, options.look)
        cost = {} if options.no_cost else costs(MODELS[model], options.rounds)
        for form, row in table.items():
            cells = [f"{row[key][0]:.3f} ({row[key][1]:.3f})" if key in row else "-" for key in columns]
            price = f"{cost[form]['ratio']:8.2f}{cost[form]['mib']:8.1f}" if cost else ""
            print(f"  {form:<22}" + "".join(f"{cell:>16}" for cell in cells) + price, flush=True)
            record = {"name": f"{model}: {form}", "cosines": row}
            records.append(record | ({"ratio": cost[form]["ratio"], "mib": cost[form]["mib"]} if cost else {}))
    if options.json:
        options.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
