"""Test-time feedback: a linear system where the validation loss orders two policies one way and rollouts the other.

The system x' = A x + B u + w is unstable; the expert u = K x stabilises it. On the expert's own states nearly all variance lies along one
direction, so an error of the policy elsewhere hardly shows in the one-step loss, but a policy that runs along its own predictions is
thrown out along exactly those directions. SGD learns the directions in the order of their variance; DoPr-SGD learns them all at one
rate, has the larger validation loss after the same steps on the same batches, and stays with the expert for longer.

    python benchmarks/theory_test_time_feedback.py --plot feedback.png --json feedback.json
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dopr_robot.optim import DoPr

DIM, BATCH = 6, 256
GROWTH = 1.25  # of an uncontrolled state, a step
INITIAL = (3.0, *[0.02] * (DIM - 1))  # standard deviations of the initial state along its axes
NOISE = 0.005
HORIZONS = (1, 5, 10, 20, 40)
# SGD's is near the largest that is stable. DoPr's leaves 0.9^20 = 12 % of the error in every direction after 20 steps.
LEARNING_RATES = {"SGD": 0.3, "DoPr-SGD": 0.1}


class System(NamedTuple):
    """Dynamics A, B and the expert's gain K; the axes of the initial state are the columns of ``axes``."""

    A: Tensor
    B: Tensor
    K: Tensor
    axes: Tensor

    @classmethod
    def make(cls, seed: int) -> "System":
        generator = torch.Generator().manual_seed(seed)
        axes = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator, dtype=torch.float64)).Q
        other = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator, dtype=torch.float64)).Q
        A, B = GROWTH * torch.eye(DIM, dtype=torch.float64), other
        return cls(A, B, -(GROWTH - 0.5) * other.T, axes)  # A + B K = 0.5 I

    def roll_out(self, gain: Tensor, episodes: int, steps: int, seed: int) -> Tensor:
        """States ``[steps + 1, episodes, DIM]`` under u = gain x, from initial states and noise that the seed alone fixes."""
        generator = torch.Generator().manual_seed(seed)
        scales = torch.tensor(INITIAL, dtype=torch.float64)
        x = torch.randn(episodes, DIM, generator=generator, dtype=torch.float64) * scales @ self.axes.T
        states = [x]
        for _ in range(steps):
            noise = NOISE * torch.randn(episodes, DIM, generator=generator, dtype=torch.float64)
            x = x @ (self.A + self.B @ gain).T + noise
            states.append(x)
        return torch.stack(states)


def train(system: System, name: str, steps: int, seed: int) -> Tensor:
    """The gain that behaviour cloning of the expert's states learns."""
    states = system.roll_out(system.K, 200, 10, seed=seed + 1).flatten(0, 1)
    policy = nn.Linear(DIM, DIM, bias=False, dtype=torch.float64)
    nn.init.zeros_(policy.weight)
    optimizer: torch.optim.Optimizer = torch.optim.SGD(policy.parameters(), lr=LEARNING_RATES[name])
    if name == "DoPr-SGD":
        optimizer = DoPr(optimizer, policy, form="average", damping=1e-8, stat_decay=0.9, update_every=1)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = states[torch.randint(len(states), (BATCH,), generator=generator)]
        loss = 0.5 * (policy(x) - x @ system.K.T).square().sum(-1).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return policy.weight.detach()


def run(steps: int = 20, seed: int = 0) -> dict[str, dict[str, float]]:
    """For both optimizers: the validation loss on fresh episodes of the expert, and for every horizon the distance from the expert's
    state after so many steps of the policy's own (root mean square, same initial states and noise)."""
    system = System.make(seed)
    validation = system.roll_out(system.K, 500, 10, seed=seed + 2).flatten(0, 1)
    expert = system.roll_out(system.K, 500, max(HORIZONS), seed=seed + 3)
    results = {}
    for name in LEARNING_RATES:
        gain = train(system, name, steps, seed)
        states = system.roll_out(gain, 500, max(HORIZONS), seed=seed + 3)
        apart = (states - expert).square().sum(-1).mean(-1).sqrt()
        loss = 0.5 * (validation @ (gain - system.K).T).square().sum(-1).mean()
        results[name] = {"validation_loss": loss.item(), **{f"horizon {h}": apart[h].item() for h in HORIZONS}}
    return results


def plot(results: dict[str, dict[str, float]], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for name, result in results.items():
        left.bar(name, result["validation_loss"])
        right.semilogy(HORIZONS, [result[f"horizon {h}"] for h in HORIZONS], marker="o", label=name)
    left.set(yscale="log", ylabel="validation loss", title="one step, on the expert's states")
    right.set(xlabel="horizon (steps)", ylabel="distance from the expert", title="rollout, on its own states")
    right.grid(alpha=0.3)
    right.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--plot", type=Path, metavar="PNG")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write [{name, ours, peer, ratio}]")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the matrices are small
    results = run(options.steps)
    for name, result in results.items():
        print(f"{name:<9}", "  ".join(f"{key} {value:.3g}" for key, value in result.items()))
    if options.plot:
        plot(results, options.plot)
    if options.json:
        ours, peer = results["DoPr-SGD"], results["SGD"]
        records = [{"name": key, "ours": ours[key], "peer": peer[key], "ratio": ours[key] / peer[key]} for key in ours]
        options.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
