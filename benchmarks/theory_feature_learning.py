"""Feature learning under anisotropic inputs (Proposition 4.1 of arXiv 2606.06418; theory in arXiv 2502.01763).

A linear feature model y = F* G* x, learned as F G x with features G [k, d]. The inputs' covariance has condition number 1, 10^2 or 10^4.
What counts is the distance between the row spaces of G and G*. DoPr-SGD contracts it at the same rate whatever the condition number;
SGD, at the best of many learning rates, does not.

    python benchmarks/theory_feature_learning.py --plot features.png --json features.json
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dopr_robot.optim import DoPr

INPUTS, FEATURES, OUTPUTS, BATCH = 20, 3, 10, 512
CONDITION_NUMBERS = (1.0, 1e2, 1e4)
# Relative to the mean eigenvalue of S, so it has to lie below the smallest share that counts, here 1e-4.
DAMPING = 1e-8
LEARNING_RATES = {"SGD": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0), "DoPr-SGD": (0.5,)}


class Problem(NamedTuple):
    """Inputs ``z @ root.T`` with z standard normal, and the map ``heads @ features`` to learn."""

    root: Tensor
    features: Tensor
    heads: Tensor

    @classmethod
    def make(cls, condition_number: float, seed: int) -> "Problem":
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        scales = torch.logspace(0, -0.5, INPUTS, base=condition_number, dtype=torch.float64)
        scales /= scales.square().mean().sqrt()  # the inputs' mean square stays 1
        rotation = torch.linalg.qr(normal(INPUTS, INPUTS)).Q
        features = torch.linalg.qr(normal(INPUTS, FEATURES)).Q.T
        heads = torch.linalg.qr(normal(OUTPUTS, FEATURES)).Q
        return cls(rotation * scales, features, heads)


def subspace_distance(features: Tensor, target: Tensor) -> float:
    """Sine of the largest angle between two row spaces."""
    basis = torch.linalg.qr(features.T).Q
    return torch.linalg.matrix_norm(basis - target.T @ (target @ basis), 2).item()


def train(problem: Problem, optimizer_name: str, lr: float, steps: int, seed: int) -> list[float]:
    """The subspace distance at every step; ends early, at 1, where training diverges."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(INPUTS, FEATURES, bias=False, dtype=torch.float64),
        nn.Linear(FEATURES, OUTPUTS, bias=False, dtype=torch.float64),
    )
    with torch.no_grad():  # a start that is not yet informative, but whose features are of full rank
        model[0].weight.copy_(torch.linalg.qr(torch.randn(INPUTS, FEATURES, dtype=torch.float64)).Q.T)
        model[1].weight.copy_(problem.heads + 0.3 * torch.randn(OUTPUTS, FEATURES, dtype=torch.float64))
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    if optimizer_name == "DoPr-SGD":
        optimizer = DoPr(optimizer, model, damping=DAMPING, stat_decay=0, update_every=1)
    distances = []
    for _ in range(steps):
        x = torch.randn(BATCH, INPUTS, dtype=torch.float64) @ problem.root.T
        y = x @ problem.features.T @ problem.heads.T
        loss = 0.5 * (model(x) - y).square().sum(-1).mean()
        if not loss < 1e6:
            return distances + [1.0] * (steps - len(distances))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        distances.append(subspace_distance(model[0].weight.detach(), problem.features))
    return distances


def run(steps: int = 60, seed: int = 0) -> dict[str, dict[float, list[float]]]:
    """For both optimizers and every condition number the subspace distances, at the learning rate where they end lowest."""
    return {
        name: {
            number: min(
                (train(Problem.make(number, seed), name, lr, steps, seed) for lr in rates),
                key=lambda history: history[-1],
            )
            for number in CONDITION_NUMBERS
        }
        for name, rates in LEARNING_RATES.items()
    }


def plot(results: dict[str, dict[float, list[float]]], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for axes, (name, curves) in zip(panels, results.items(), strict=True):
        for number, distances in curves.items():
            axes.semilogy([max(value, 1e-15) for value in distances], label=f"condition number {number:g}")
        axes.set(xlabel="step", title=name)
        axes.grid(alpha=0.3)
        axes.legend()
    panels[0].set_ylabel("distance of the feature subspaces")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--plot", type=Path, metavar="PNG")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write [{name, ours, peer, ratio}]")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the matrices are small
    results = run(options.steps)
    records = []
    for number in CONDITION_NUMBERS:
        ours, peer = results["DoPr-SGD"][number][-1], results["SGD"][number][-1]
        print(
            f"condition number {number:7g}: distance {ours:.1e} under DoPr-SGD, {peer:.1e} under SGD, after {options.steps} steps"
        )
        records.append(
            {
                "name": f"subspace distance, condition number {number:g}",
                "ours": ours,
                "peer": peer,
                "ratio": ours / peer,
            }
        )
    if options.plot:
        plot(results, options.plot)
    if options.json:
        options.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
