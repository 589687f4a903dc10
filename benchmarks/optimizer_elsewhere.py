"""Learning rates outside robotics: a small language model and a small image classifier under each optimizer and rate.

    python benchmarks/optimizer_elsewhere.py --json elsewhere.json         # minutes
    python benchmarks/optimizer_elsewhere.py --tasks text --steps 20 --rates 0.01 --seeds 1

``text``: letters of Python's own help texts (``pydoc_data``), the last tenth held out, by a transformer of two blocks. ``digits``:
scikit-learn's 1,797 handwritten digits, a fifth held out, by three convolutions and two linear layers. All arms of a task begin from the
same weights and see the same batches; the rate falls to zero along half a cosine. Printed: held-out loss in nats, and of digits held-out
accuracy; mean over the seeds (lowest to highest).
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR

from dopr_robot.optim import make_optimizer

ARMS: dict[str, dict[str, Any]] = {
    "adamw": {"name": "adamw"},
    "dopr_adamw, damping=0.1": {"name": "dopr_adamw", "damping": 0.1},
    "dopr_adamw, damping=1": {"name": "dopr_adamw", "damping": 1.0},
    "muon": {"name": "muon"},
    "dopr_muon, damping=0.1": {"name": "dopr_muon", "damping": 0.1},
}
RATES = (1e-3, 3e-3, 1e-2, 3e-2)


class Task(NamedTuple):
    """What is learned.

    Attributes:
        model: makes it.
        batch: the inputs and targets of a step.
        held_out: inputs and targets that no step sees.
    """

    model: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], tuple[Tensor, Tensor]]
    held_out: tuple[Tensor, Tensor]


class Block(nn.Module):
    """Causal attention and a perceptron, each behind a norm and beside a residual."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class Letters(nn.Module):
    """A GPT of letters: ``[B, T] -> [B, T, vocabulary]``."""

    def __init__(self, vocabulary: int, length: int, dim: int = 64, blocks: int = 2) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(vocabulary, dim), nn.Parameter(0.02 * torch.randn(length, dim))
        self.blocks = nn.Sequential(*(Block(dim, 4) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embed(tokens) + self.position)))


def text(length: int = 32, batch: int = 16) -> Task:
    """Next letters."""
    from pydoc_data.topics import topics

    written = "\n".join(topics[key] for key in sorted(topics))
    letters = {letter: n for n, letter in enumerate(sorted(set(written)))}
    tokens = torch.tensor([letters[letter] for letter in written])
    train, rest = tokens[: -len(tokens) // 10], tokens[-len(tokens) // 10 :]

    def drawn(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        starts = torch.randint(len(train) - length, (batch, 1), generator=generator)
        windows = train[starts + torch.arange(length + 1)]
        return windows[:, :-1], windows[:, 1:]

    windows = rest[: len(rest) // (length + 1) * (length + 1)].view(-1, length + 1)[:128]
    return Task(lambda: Letters(len(letters), length), drawn, (windows[:, :-1], windows[:, 1:]))


def digits(batch: int = 64) -> Task:
    """Ten classes of 8 x 8 pixels."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, rest = order[: -len(x) // 5], order[-len(x) // 5 :]

    def drawn(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = train[torch.randint(len(train), (batch,), generator=generator)]
        return x[chosen], y[chosen]

    def model() -> nn.Module:
        convolutions = [nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, 2, 1), nn.Conv2d(32, 32, 3, 2, 1)]
        parts: list[nn.Module] = [part for convolution in convolutions for part in (convolution, nn.ReLU())]
        return nn.Sequential(*parts, nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))

    return Task(model, drawn, (x[rest], y[rest]))


TASKS: dict[str, Callable[[], Task]] = {"text": text, "digits": digits}


def trained(task: Task, arm: dict[str, Any], lr: float, steps: int, seed: int) -> tuple[float, float]:
    """Held-out loss and accuracy after ``steps``."""
    torch.manual_seed(seed)
    model, generator = task.model(), torch.Generator().manual_seed(seed)
    optimizer = make_optimizer(model=model, lr=lr, weight_decay=0.01, **arm)
    schedule = CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x, y = task.batch(generator)
        F.cross_entropy(model(x).flatten(0, -2), y.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    x, y = task.held_out
    with torch.no_grad():
        output = model(x)
    right = (output.argmax(-1) == y).float().mean()
    return float(F.cross_entropy(output.flatten(0, -2), y.flatten())), float(right)


def span(values: list[float], shape: str) -> str:
    return f"{statistics.fmean(values):{shape}} ({min(values):{shape}} to {max(values):{shape}})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write [{name, task, arm, rate, losses, accuracies}]")
    options = parser.parse_args()
    records = []
    for name in options.tasks:
        task = TASKS[name]()
        print(f"{name}: {options.steps} steps, {options.seeds} seeds")
        for arm in options.arms:
            for rate in options.rates:
                begin = time.process_time()
                results = [trained(task, ARMS[arm], rate, options.steps, seed) for seed in range(options.seeds)]
                losses, accuracies = (list(values) for values in zip(*results, strict=True))
                took = time.process_time() - begin
                accuracy = f"  {span(accuracies, '.1%')}" if name == "digits" else ""
                print(f"  {arm:<22} {rate:<6g} {span(losses, '.3f')}{accuracy}  {took:.0f} CPU s", flush=True)
                figures = {"losses": losses, "accuracies": accuracies}
                records.append(
                    {"name": f"{name}: {arm}, lr={rate:g}", "task": name, "arm": arm, "rate": rate, **figures}
                )
    if options.json:
        options.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
