"""Flow matching on small pictures: does activation-wise preconditioning help where a learned velocity is integrated?

The one-step loss is the velocity's; what counts are the samples, drawn in 1 to 64 Euler steps. Data: scikit-learn's 1,797 digits of
8 x 8 pixels, 1,200 to train. Figure: the Fréchet distance (Heusel et al., arXiv 1706.08500) between 1,000 samples and the digits that
were held out, in the 32 features of a small classifier.

    python studies/images.py
"""

import math
import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))
from loop import Problem, main

TRAINED, BATCH, SAMPLES = 1200, 128, 1000


class Velocity(nn.Module):
    """A residual perceptron: ``[N, 64]`` and times ``[N]`` to velocities ``[N, 64]``."""

    def __init__(self, dim: int = 256, blocks: int = 3) -> None:
        super().__init__()
        self.embed, self.time = nn.Linear(64, dim), nn.Linear(32, dim)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim)) for _ in range(blocks)
        )
        self.head = nn.Linear(dim, 64)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        angles = torch.exp(torch.linspace(0, math.log(100), 16)) * time[:, None]
        h = self.embed(x) + self.time(torch.cat([angles.sin(), angles.cos()], dim=1))
        for block in self.blocks:
            h = h + block(h)
        return self.head(h)


class Digits(Problem):
    """Flow matching on scikit-learn's digits."""

    steps, average = 4000, 0.995
    points, axis, figure, larger_is_better = (1, 2, 4, 8, 16, 32, 64), "integration steps", "Fréchet distance", False

    def __init__(self) -> None:
        data, labels = load_digits(return_X_y=True)
        pictures, classes = torch.tensor(data / 8 - 1, dtype=torch.float32), torch.tensor(labels)
        order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))
        self.train, self.held_out = pictures[order[:TRAINED]], pictures[order[TRAINED:]]
        self.features = self._classifier(classes[order[:TRAINED]])
        self.reference = self._moments(self.held_out)

    def model(self) -> nn.Module:
        return Velocity()

    def loss(self, model: nn.Module, draw: torch.Generator) -> Tensor:
        return self._loss(model, self.train[torch.randint(0, TRAINED, (BATCH,), generator=draw)], draw)

    def validation(self, model: nn.Module) -> float:
        draw = torch.Generator().manual_seed(10**9)  # beyond those of training
        return float(np.mean([float(self._loss(model, self.held_out, draw)) for _ in range(20)]))

    def figures(self, model: nn.Module, seed: int) -> list[float]:
        return [self._distance(self._sample(model, steps, seed)) for steps in self.points]

    def _loss(self, model: nn.Module, x: Tensor, draw: torch.Generator) -> Tensor:
        noise = torch.randn(x.shape, generator=draw)
        time = torch.rand(len(x), generator=draw)
        seen = (1 - time)[:, None] * noise + time[:, None] * x
        return F.mse_loss(model(seen, time), x - noise)

    def _sample(self, model: nn.Module, steps: int, seed: int) -> Tensor:
        x = torch.randn(SAMPLES, 64, generator=torch.Generator().manual_seed(10**9 + seed))
        for step in range(steps):
            x = x + model(x, torch.full((SAMPLES,), step / steps)) / steps
        return x

    def _classifier(self, classes: Tensor) -> nn.Module:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
        optimizer = torch.optim.Adam(net.parameters(), 1e-3)
        for _ in range(1500):
            rows = torch.randint(0, TRAINED, (BATCH,))
            loss = F.cross_entropy(net(self.train[rows] + 0.1 * torch.randn(BATCH, 64)), classes[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return net[:4]

    def _moments(self, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            features = self.features(x).double().numpy()
        return features.mean(axis=0), np.cov(features.T)

    def _distance(self, x: Tensor) -> float:
        mean, covariance = self._moments(x)
        if not np.isfinite(covariance).all():
            return math.inf
        root = _root(self.reference[1])
        between = np.sqrt(np.linalg.eigvalsh(root @ covariance @ root).clip(0)).sum()
        apart = ((mean - self.reference[0]) ** 2).sum()
        return float(apart + np.trace(covariance) + np.trace(self.reference[1]) - 2 * between)


def _root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray(vectors * np.sqrt(values.clip(0)) @ vectors.T)


if __name__ == "__main__":
    main(Digits(), "images")
