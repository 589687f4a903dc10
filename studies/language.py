"""Sums digit by digit: does activation-wise preconditioning help where a transformer reads its own answers?

A decoder learns to add numbers of 1 to 6 digits by the cross-entropy of each next digit; it is judged by whole answers, each digit
read back, at every length. The answer's digits come lowest first (Lee et al., arXiv 2307.03381).

    python studies/language.py
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))
from loop import Problem, main

MOST, BATCH, ASKED = 6, 128, 500
PLUS, EQUALS, PAD = 10, 11, 12
LENGTH = 3 * MOST + 3


class Decoder(nn.Module):
    """Tokens ``[B, T]`` to the next digit's logits ``[B, T, 10]``."""

    def __init__(self, dim: int = 64, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(13, dim), nn.Embedding(LENGTH, dim)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, heads, 4 * dim, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))
        before = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        for block in self.blocks:
            x = block(x, before, is_causal=True)
        return self.head(self.norm(x))


class Sums(Problem):
    """A decoder on sums."""

    steps, average = 3000, 0.99
    points, axis, figure, larger_is_better = tuple(range(1, MOST + 1)), "digits", "exact answers", True

    def model(self) -> nn.Module:
        return Decoder()

    def loss(self, model: nn.Module, draw: torch.Generator) -> Tensor:
        return self._loss(model, torch.randint(1, MOST + 1, (BATCH,), generator=draw), draw)

    def validation(self, model: nn.Module) -> float:
        draw = torch.Generator().manual_seed(10**9)  # beyond those of training
        return float(np.mean([float(self._loss(model, torch.full((ASKED,), n), draw)) for n in self.points]))

    def figures(self, model: nn.Module, seed: int) -> list[float]:
        return [self._exact(model, digits, seed) for digits in self.points]

    def _loss(self, model: nn.Module, digits: Tensor, draw: torch.Generator) -> Tensor:
        tokens, asked = sums(digits, draw)
        return F.cross_entropy(model(tokens[:, :-1])[asked[:, 1:]], tokens[:, 1:][asked[:, 1:]])

    def _exact(self, model: nn.Module, digits: int, seed: int) -> float:
        draw = torch.Generator().manual_seed(10**9 + 100 * seed + digits)
        tokens, asked = sums(torch.full((ASKED,), digits), draw)
        answer = tokens[asked].view(ASKED, digits + 1)
        said = tokens[:, : 2 * digits + 2]
        for _ in range(digits + 1):
            said = torch.cat([said, model(said)[:, -1:].argmax(-1)], dim=1)
        return float((said[:, -(digits + 1) :] == answer).all(dim=1).float().mean())


def sums(digits: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """``a+b=c`` for numbers of so many digits each ``[B]``: tokens ``[B, LENGTH]``, and which of them are the answer's."""
    least_first = torch.randint(0, 10, (2, len(digits), MOST), generator=draw)
    a, b = least_first * (torch.arange(MOST) < digits[:, None])
    answer, carry = [], torch.zeros_like(digits)
    for place in range(MOST):
        total = a[:, place] + b[:, place] + carry
        answer.append(total % 10)
        carry = total // 10
    c = torch.stack([*answer, carry], dim=1)
    tokens = torch.full((len(digits), LENGTH), PAD)
    asked = torch.zeros_like(tokens, dtype=torch.bool)
    for n in digits.unique().tolist():
        rows = digits == n
        signs = torch.full((int(rows.sum()), 1), 1)
        parts = [a[rows, :n].flip(1), PLUS * signs, b[rows, :n].flip(1), EQUALS * signs, c[rows, : n + 1]]
        tokens[rows, : 3 * n + 3] = torch.cat(parts, dim=1)
        asked[rows, 2 * n + 2 : 3 * n + 3] = True
    return tokens, asked


if __name__ == "__main__":
    main(Sums(), "language")
