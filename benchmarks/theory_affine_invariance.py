"""Affine invariance in function space (Proposition 4.2 of arXiv 2606.06418).

Two networks hold the same function: in the second one a fixed affine map stands before every layer, and the layer's weights undo it.
Both are trained on the same batches. Under DoPr-SGD they go on holding the same function; under SGD they part.

    python benchmarks/theory_affine_invariance.py --plot affine.png --json affine.json
"""

import argparse
import copy
import itertools
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from dopr_robot.optim import DoPr

SIZES = (6, 16, 16, 3)
CONDITION_NUMBER = 10.0
# As small as float64 allows: damping is relative to the mean eigenvalue of S, which an affine map changes.
DAMPING = 1e-12
LEARNING_RATES = {"SGD": 0.02, "DoPr-SGD": 0.05}


class FixedAffine(nn.Module):
    """``x -> A x + b``, not trained."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        left, right = (torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64)).Q for _ in range(2))
        scales = torch.logspace(-0.5, 0.5, dim, base=CONDITION_NUMBER, dtype=torch.float64)
        self.register_buffer("matrix", left * scales @ right)
        self.register_buffer("shift", torch.randn(dim, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.get_buffer("matrix").T + self.get_buffer("shift")


def make_pair() -> tuple[nn.Sequential, nn.Sequential]:
    """A perceptron, and the same function seen through an affine map before every layer."""
    layers = [nn.Linear(a, b, dtype=torch.float64) for a, b in itertools.pairwise(SIZES)]
    changed: list[nn.Module] = []
    for layer in layers:
        affine, other = FixedAffine(layer.in_features), copy.deepcopy(layer)
        with torch.no_grad():
            other.weight.copy_(layer.weight @ torch.linalg.inv(affine.get_buffer("matrix")))
            other.bias.sub_(other.weight @ affine.get_buffer("shift"))
        changed += [nn.Sequential(affine, other), nn.Tanh()]
    plain = [part for layer in layers for part in (layer, nn.Tanh())]
    return nn.Sequential(*plain[:-1]), nn.Sequential(*changed[:-1])


def optimizer_of(name: str, model: nn.Module) -> torch.optim.Optimizer:
    base = torch.optim.SGD(model.parameters(), lr=LEARNING_RATES[name])
    if name == "SGD":
        return base
    return DoPr(base, model, damping=DAMPING, stat_decay=0, update_every=1, include_bias=True)


def run(steps: int = 100, seed: int = 0) -> dict[str, dict[str, list[float]]]:
    """For both optimizers, at every step: the training loss and the relative distance between the two networks' outputs."""
    results = {}
    for name in LEARNING_RATES:
        torch.manual_seed(seed)
        pair = make_pair()
        target = nn.Sequential(nn.Linear(SIZES[0], 32), nn.Tanh(), nn.Linear(32, SIZES[-1])).double()
        test = torch.randn(256, SIZES[0], dtype=torch.float64)
        optimizers = [optimizer_of(name, model) for model in pair]
        history: dict[str, list[float]] = {"loss": [], "distance": []}
        for _ in range(steps):
            x = torch.randn(128, SIZES[0], dtype=torch.float64)
            for model, optimizer in zip(pair, optimizers, strict=True):
                loss = (model(x) - target(x).detach()).square().sum(-1).mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            with torch.no_grad():
                first, second = (model(test) for model in pair)
            history["loss"].append(loss.item())
            history["distance"].append(((first - second).norm() / first.norm()).item())
        results[name] = history
    return results


def plot(results: dict[str, dict[str, list[float]]], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for name, history in results.items():
        left.semilogy(history["distance"], label=name)
        right.semilogy(history["loss"], label=name)
    left.set(xlabel="step", ylabel="relative distance of the outputs", title="one function, two coordinate systems")
    right.set(xlabel="step", ylabel="training loss", title="second network")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--plot", type=Path, metavar="PNG")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write [{name, ours, peer, ratio}]")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the matrices are small
    results = run(options.steps)
    largest = {name: max(history["distance"]) for name, history in results.items()}
    for name, history in results.items():
        print(
            f"{name:<9} outputs part by at most {largest[name]:.1e}; loss {history['loss'][0]:.3f} -> {history['loss'][-1]:.4f}"
        )
    if options.plot:
        plot(results, options.plot)
    if options.json:
        ours, peer = largest["DoPr-SGD"], largest["SGD"]
        record = {"name": "largest relative distance of the outputs", "ours": ours, "peer": peer, "ratio": ours / peer}
        options.json.write_text(json.dumps([record], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
