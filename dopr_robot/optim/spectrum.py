"""How anisotropic a layer's inputs are, and so how much preconditioning has to say."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

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
def spectra_of(factors: Sequence[Factor], group: Any) -> dict[str, Spectrum]:
    """The spectra of factors that have, or had at their last turn, an inverse. Where moments have owners all ranks call it."""
    figures = torch.zeros(len(factors), 2, dtype=torch.float64)
    for place, factor in enumerate(factors):
        if factor.mine:
            figures[place] = _condition_and_rank(factor)
    owned = torch.tensor([factor.owner is not None for factor in factors], dtype=torch.bool)
    if owned.any():
        known = figures[owned].to(factors[0].weight.device)
        dist.all_reduce(known, group=group)
        figures[owned] = known.cpu()
    return {
        factor.name: Spectrum(
            condition, rank, float(factor.turned), None if factor.cosine is None else float(factor.cosine)
        )
        for factor, (condition, rank) in zip(factors, figures.tolist(), strict=True)
    }


def _condition_and_rank(factor: Factor) -> Tensor:
    """Condition number and effective rank [2]."""
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
    return torch.stack([condition.mean(), rank.mean()]).cpu()


def write_spectrum(spectrum: Mapping[str, Spectrum], writer: Any, step: int) -> None:
    """Write it to a TensorBoard ``SummaryWriter``, under ``dopr/<figure>/<layer>``."""
    for name, figures in spectrum.items():
        for figure, value in figures._asdict().items():
            if value is not None:
                writer.add_scalar(f"dopr/{figure}/{name}", value, step)
