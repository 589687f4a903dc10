"""How anisotropic a layer's inputs are, and so how much preconditioning has to say."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from dopr_robot.optim.factors import Factor


class Spectrum(NamedTuple):
    """Figures of one layer's second moment S (of several groups, their mean).

    Attributes:
        condition_number: largest eigenvalue over the smallest one, or over the largest one's 1e-7th part where that is larger.
        effective_rank: exp of the entropy of the normalised eigenvalues; between 1 and d (Roy & Vetterli, 2007).
        turned: share of the squared length of M that is not along G, at the last refresh: 0 where preconditioning only scaled the gradient.
        cosine: between M and what form="batch" would have made of the same gradient, at the last refresh that was asked for it; else None.
    """

    condition_number: float
    effective_rank: float
    turned: float
    cosine: float | None


@torch.no_grad()
def spectrum_of(factor: Factor) -> Spectrum:
    """The spectrum of a factor that has, or had at its last turn, an inverse."""
    if factor.last is not None:
        eigenvalues = factor.last.eigenvalues()
    elif factor.matrix is not None and "matrix" in factor.state:
        eigenvalues = torch.linalg.eigvalsh(factor.state["matrix"].double())
    elif factor.matrix is not None:
        known = torch.linalg.eigvalsh(factor.state["inside"].double())
        rest = factor.state["rest"].double().unsqueeze(-1).expand(-1, factor.dim - known.shape[-1])
        eigenvalues = torch.cat([rest, known], -1).sort().values
    else:
        eigenvalues = factor.state["diagonal"].double().sort().values.unsqueeze(0)
    eigenvalues = eigenvalues.clamp_min(0)
    largest = eigenvalues[..., -1]
    condition = largest / torch.maximum(eigenvalues[..., 0], largest * 1e-7).clamp_min(1e-300)
    shares = eigenvalues / eigenvalues.sum(-1, keepdim=True).clamp_min(1e-300)
    rank = torch.exp(-torch.special.xlogy(shares, shares).sum(-1))
    return Spectrum(
        float(condition.mean()),
        float(rank.mean()),
        float(factor.turned),
        None if factor.cosine is None else float(factor.cosine),
    )


def write_spectrum(spectrum: Mapping[str, Spectrum], writer: Any, step: int) -> None:
    """Write it to a TensorBoard ``SummaryWriter``, under ``dopr/<figure>/<layer>``."""
    for name, figures in spectrum.items():
        for figure, value in figures._asdict().items():
            if value is not None:
                writer.add_scalar(f"dopr/{figure}/{name}", value, step)
