"""Second moments known by their leading directions alone: no matrix of the layer's width is formed, whatever the form is called."""

import torch
from torch import Tensor

from dopr_robot.optim.factors import Factor, rank_of
from dopr_robot.optim.inverses import damped_inverse
from dopr_robot.optim.products import gram

_ROUNDS = 3  # of subspace iteration where there is no basis yet to go on from


class Sketch:
    r"""One refresh of ``r`` leading directions Q of :math:`S = (1 - \beta) Z^\top Z / n + \beta S_{old}`, with
    :math:`S_{old} = Q_{old} H Q_{old}^\top + t (I - Q_{old} Q_{old}^\top)`; beta is 0 for this step's own S.

    Q comes from one round of subspace iteration begun where the last refresh ended: a round costs ``3 n d r`` multiplications. The
    directions beyond it get their mean eigenvalue t, as in ``"low_rank"``. Source: Halko, Martinsson & Tropp, "Finding structure with
    randomness", 2011, algorithm 4.4.

    Attributes:
        trace: tr(S) [groups], NaN or inf where an input is.
    """

    def __init__(self, factor: Factor, decay: float) -> None:
        self.factor = factor
        self.n = factor.inputs_seen()
        # Z^T Z by its sum where the first step added up more inputs than they are long.
        self.rows = [z for z, _ in factor.rows]
        self.total = factor.sums.get("matrix")
        self.decay = decay if "basis" in factor.state else 0.0
        own = sum((torch.linalg.vector_norm(z, dim=(1, 2)).square() for z in self.rows), torch.zeros_like(self.n))
        if self.total is not None:
            own = own + self.total.diagonal(dim1=-2, dim2=-1).sum(-1)
        self.trace = (1 - self.decay) * own / self.n + (self.decay * self._old_trace() if self.decay else 0.0)

    def _old_trace(self) -> Tensor:
        value = self.factor.value
        beyond = self.factor.dim - value("basis").shape[-1]
        return value("inside").diagonal(dim1=-2, dim2=-1).sum(-1) + beyond * value("rest")

    def times(self, x: Tensor) -> Tensor:
        """``S x`` [groups, d, r]."""
        result = sum((z.mT @ (z @ x) for z in self.rows), torch.zeros_like(x))
        if self.total is not None:
            result = result + self.total @ x
        result = result / self.n.view(-1, 1, 1)
        return torch.lerp(result, self._old_times(x), self.decay) if self.decay else result

    def inside(self, x: Tensor) -> Tensor:
        """``x^T S x`` [groups, r, r]: of rows half the products that ``S x`` takes."""
        result = sum((gram((z @ x).mT) for z in self.rows), x.new_zeros(len(x), x.shape[-1], x.shape[-1]))
        if self.total is not None:
            result = result + x.mT @ self.total @ x
        result = result / self.n.view(-1, 1, 1)
        return torch.lerp(result, x.mT @ self._old_times(x), self.decay) if self.decay else result

    def _old_times(self, x: Tensor) -> Tensor:
        basis, inside, rest = (self.factor.value(key) for key in ("basis", "inside", "rest"))
        along, rest = basis.mT @ x, rest.view(-1, 1, 1)
        return rest * x + basis @ (inside @ along - rest * along)

    def form(self, damping: float) -> tuple[dict[str, Tensor], Tensor]:
        """The factor's next state, and for each group whether the damping had to be raised."""
        rank, state = self.factor.rank, self.factor.state
        assert rank is not None
        mean = self.factor.pooled(self.trace / self.factor.dim)
        strength = damping * torch.where(mean > 0, mean, 1.0)
        groups, dim = self.factor.groups, self.factor.dim
        if "basis" in state and state["basis"].shape == (groups, dim, rank):
            basis, rounds = self.factor.value("basis"), 1
        else:
            start = torch.randn(dim, rank, generator=torch.Generator().manual_seed(0), dtype=self.factor.dtype)
            basis, rounds = start.to(self.trace.device).expand(groups, -1, -1), _ROUNDS
        for _ in range(rounds):
            # The damping keeps what S has no say about where it was; without it, it would be rounding noise, other on every machine.
            basis = torch.linalg.qr(self.times(basis).addcmul_(strength.view(-1, 1, 1), basis)).Q
        inside = self.inside(basis)
        rest = (self.trace - inside.diagonal(dim1=-2, dim2=-1).sum(-1)).clamp_min(0) / (dim - rank)
        inverse, raised = damped_inverse(inside, strength)
        scale = 1 / (rest + strength)
        inverse.diagonal(dim1=-2, dim2=-1).sub_(scale.unsqueeze(-1))
        formed = {"basis": basis, "left": basis @ inverse, "scale": scale, "inside": inside, "rest": rest}
        return {key: part.contiguous() for key, part in formed.items()}, raised


def settle_rank(factor: Factor, rank: int | str) -> None:
    """Give a sketch its rank; a layer too small for one takes the exact form of the same S."""
    if factor.sketched and factor.rank is None:
        factor.rank = rank_of(factor.dim, rank)
        if factor.rank is None:
            factor.form = "batch" if factor.form == "sketch" else "average"
