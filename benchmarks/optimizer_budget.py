"""What comes nearest to this step's exact form at a given price: the table of docs/optimizer.md on budgets.

One model is trained under `low_rank`. Then, for each of its layers of more than 64 inputs, one gradient is preconditioned by this step's S
and by approximations of it that cost the same share of the layer's own forward and backward, in multiplications. A cosine is the median
over the layers. All is in float64. The sketch begins at the leading directions of another batch, as in training once they have settled,
and the QR of its basis is not counted.

    python benchmarks/optimizer_budget.py --json budget.json
    python benchmarks/optimizer_budget.py --models mlp --steps 20
"""

import argparse
import json
import math
import statistics
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from dopr_robot.optim import DoPr
from dopr_robot.optim.kinds import find_layers

sys.path.insert(0, str(Path(__file__).parent))
from optimizer_fidelity import MODELS

DAMPING, SHARES, WIDE = 0.1, (0.1, 0.3), 64
Layers = dict[str, tuple[Tensor, Tensor]]


def seen(model: nn.Module, optimizer: DoPr, batch: object) -> Layers:
    """Inputs ``[n, d]`` and gradient ``[out, d]`` of every layer with one S, of one batch."""
    inputs, handles = {}, []
    for name, module in model.named_modules():
        for layer in find_layers(module):
            if not layer.diagonal and layer.role == "input":

                def hook(module, args, output, name=name, layer=layer):
                    inputs[name] = (layer, layer.inputs(args[0].detach().float())[0])

                handles.append(module.register_forward_hook(hook))
    model(batch)[0].backward()
    for handle in handles:
        handle.remove()
    found = {
        name: (z[0].double(), layer.view(layer.weight.grad.clone())[0].flatten(0, -2).double())
        for name, (layer, z) in inputs.items()
        if len(z) == 1 and layer.weight.grad is not None
    }
    optimizer.zero_grad()
    return found


def solved(gradient: Tensor, s: Tensor) -> Tensor:
    """The gradient times the damped inverse of S."""
    strength = DAMPING * s.trace() / len(s)
    return torch.linalg.solve(s + strength * torch.eye(len(s), dtype=s.dtype), gradient.T).T


def by_rows(rows: Tensor, gradient: Tensor) -> Tensor:
    return solved(gradient, rows.T @ rows / len(rows))


def sample(z: Tensor, gradient: Tensor, cost: float) -> Tensor:
    """Rows evenly spread over the batch."""
    number = affordable_rows(z, gradient, cost)
    return by_rows(z[torch.arange(number) * len(z) // number], gradient)


def first(z: Tensor, gradient: Tensor, cost: float) -> Tensor:
    """The first rows of the batch."""
    return by_rows(z[: affordable_rows(z, gradient, cost)], gradient)


def signs(z: Tensor, gradient: Tensor, cost: float) -> Tensor:
    """Rows added up under random signs (a count sketch)."""
    number, generator = affordable_rows(z, gradient, cost), torch.Generator().manual_seed(0)
    sign = torch.randint(0, 2, (len(z), 1), generator=generator).double() * 2 - 1
    place = torch.arange(len(z))[torch.randperm(len(z), generator=generator)] % number
    summed = torch.zeros(number, z.shape[1], dtype=z.dtype).index_add_(0, place, z * sign)
    return by_rows(summed * math.sqrt(number / len(z)), gradient)


def affordable_rows(z: Tensor, gradient: Tensor, cost: float) -> int:
    """So many rows that the dual form of them costs ``cost``."""
    (n, d), out = z.shape, len(gradient)
    number = (-2 * d * out + math.sqrt((2 * d * out) ** 2 + 4 * (d + out) * cost)) / (2 * (d + out))
    return max(1, min(n, int(number)))


def blocks(z: Tensor, gradient: Tensor, cost: float) -> Tensor:
    """S in blocks on the diagonal."""
    (n, d), out = z.shape, len(gradient)
    size = max(1, int((-(n + out) + math.sqrt((n + out) ** 2 + 4 * cost / d / 3)) / (2 / 3)))
    place = torch.arange(d) // size
    return solved(gradient, z.T @ z / n * (place[:, None] == place))


def sketch(z: Tensor, gradient: Tensor, cost: float, before: Tensor) -> Tensor:
    """Leading directions by one round of subspace iteration, begun at those of ``before``; the others by their mean eigenvalue."""
    (n, d), out = z.shape, len(gradient)
    rank = max(1, min(d - 1, int(cost / (3 * n * d + 2 * out * d))))
    basis = torch.linalg.eigh(before.T @ before)[1][:, -rank:]
    basis = torch.linalg.qr(z.T @ (z @ basis) / n).Q
    inside = (z @ basis).T @ (z @ basis) / n
    whole = z.square().sum() / n
    rest, strength = (whole - inside.trace()) / (d - rank), DAMPING * whole / d
    eye = torch.eye(rank, dtype=z.dtype)
    inner = torch.linalg.inv(inside + strength * eye) - eye / (rest + strength)
    return gradient / (rest + strength) + gradient @ basis @ inner @ basis.T


def cosine(first: Tensor, second: Tensor) -> float:
    return float((first * second).sum() / (first.norm() * second.norm()).clamp_min(1e-30))


def table(model_name: str, steps: int) -> dict[str, dict[str, float]]:
    """``{share: {approximation: median cosine}}``."""
    torch.manual_seed(0)
    model, data = MODELS[model_name]()
    optimizer = DoPr(torch.optim.AdamW(model.parameters(), lr=1e-3), model, form="low_rank", damping=DAMPING)
    for step in range(steps):
        model(data(step))[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    earlier, now = seen(model, optimizer, data(steps - 10)), seen(model, optimizer, data(steps))
    found: dict[str, dict[str, list[float]]] = {}
    for name, (z, gradient) in now.items():
        (n, d), out = z.shape, len(gradient)
        if d <= WIDE:
            continue
        exact = by_rows(z, gradient)
        for share in SHARES:
            cost = share * 3 * n * d * out
            made = {
                "first rows": first(z, gradient, cost),
                "sample of rows": sample(z, gradient, cost),
                "rows under random signs": signs(z, gradient, cost),
                "blocks": blocks(z, gradient, cost),
                "sketch": sketch(z, gradient, cost, earlier[name][0]),
                "bare gradient": gradient,
            }
            column = found.setdefault(str(share), {})
            for approximation, result in made.items():
                column.setdefault(approximation, []).append(cosine(result, exact))
    return {share: {key: statistics.median(each) for key, each in column.items()} for share, column in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--steps", type=int, default=60, help="of training before")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table as [{name, cosine}]")
    options = parser.parse_args()
    records = []
    for model in options.models:
        for share, column in table(model, options.steps).items():
            for name, value in column.items():
                print(f"{model:<12} {share:>4} {name:<24} {value:.3f}", flush=True)
                records.append({"name": f"{model}: {name} at {share}", "cosine": value})
    if options.json:
        options.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
