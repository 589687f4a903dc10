"""The damped inverse of one step's own second moment, by whichever of S and the inputs' Gram matrix is cheaper to factorise."""

import torch
from torch import Tensor

from dopr_robot.optim.factors import Factor
from dopr_robot.optim.inverses import damped_cholesky

_SAME = {torch.float32: 1e-4, torch.float64: 1e-10}


class BatchInverse:
    r"""``(S + damping tr(S)/d I)^-1`` of the inputs Z ``[n, d]`` that a factor recorded for a step.

    With :math:`K = Z Z^\top`, :math:`\lambda = \text{damping} \cdot \operatorname{tr}(S) / d` and D ``[n, out]`` the output's gradient:

    .. math::
        M = G (Z^\top Z / n + \lambda I)^{-1}
          = n D^\top (K + n \lambda I)^{-1} Z
          = \bigl(G - G Z^\top (K + n \lambda I)^{-1} Z\bigr) / \lambda

    The first is the primal form, which needs the ``d x d`` matrix S; the others are dual, and need ``n x n``. The second takes half the
    products of the third, and is used where G is seen to be ``D^T Z`` up to a number (a loss scale, clipping), so that D says all of it.

    Attributes:
        trace: tr(S) [groups], NaN or inf where an input is.
        n: how many inputs [groups].
    """

    def __init__(self, factor: Factor) -> None:
        assert factor.matrix is not None
        self.dim = factor.matrix.dim
        self.n = factor.inputs_seen()
        self.inverse: Tensor | None = None
        out = factor.weight.numel() // (factor.matrix.groups * factor.matrix.width())
        self.tall = out > self.dim
        rows, self.d = factor.rows, None
        length = sum(z.shape[1] for z, _ in rows)
        known = all(d is not None for _, d in rows)
        if rows and _dual(length, self.dim, out, known) < _primal(length, self.dim, out):
            self.z: Tensor | None = rows[0].z if len(rows) == 1 else torch.cat([z for z, _ in rows], 1)
            if known:
                self.d = rows[0].d if len(rows) == 1 else torch.cat([d for _, d in rows if d is not None], 1)
            self.moment: Tensor | None = None
            self.trace = self.z.square().sum((1, 2)) / self.n
        else:
            self.z = None
            self.moment = factor.batch_moments()["matrix"]
            self.trace = self.moment.diagonal(dim1=-2, dim2=-1).sum(-1)

    def factorise(self, damping: float) -> Tensor:
        """Get ready to multiply. Returns, as a bool tensor [groups], whether the damping had to be raised."""
        mean = self.trace / self.dim
        self.strength = damping * torch.where(mean > 0, mean, torch.ones_like(mean))
        if self.z is None:
            assert self.moment is not None
            self.triangle, self.strength, raised = damped_cholesky(self.moment, self.strength)
        else:
            self.triangle, strength, raised = damped_cholesky(self.z @ self.z.mT, self.n * self.strength)
            self.strength = strength / self.n
        # On a CPU a product is several times as fast as triangular solves of as many multiplications: the inverse of the small matrix pays,
        # and that of the large one where the gradient has more rows than it.
        self.inverse = torch.cholesky_inverse(self.triangle) if self.z is not None or self.tall else None
        return raised

    def __call__(self, gradient: Tensor) -> Tensor:
        """``gradient`` [groups, rows, d] times the inverse."""
        if self.z is None and self.inverse is not None:
            return gradient @ self.inverse
        if self.z is None:
            half = torch.linalg.solve_triangular(self.triangle.mT, gradient, upper=True, left=False)
            return torch.linalg.solve_triangular(self.triangle, half, upper=False, left=False)
        assert self.inverse is not None
        scale = self._scale_of(gradient)
        if scale is not None:
            assert self.d is not None
            inverse = self.inverse * (scale * self.n.view(-1, 1, 1))
            if self.d.shape[2] < self.z.shape[2]:
                return (inverse @ self.d).mT @ self.z
            return self.d.mT @ (inverse @ self.z)
        inner = gradient @ self.z.mT @ self.inverse
        return torch.baddbmm(gradient, inner, self.z, alpha=-1) / self.strength.view(-1, 1, 1)

    def _scale_of(self, gradient: Tensor) -> float | None:
        """The number c with ``gradient = c D^T Z``, or None where there is none: looked at along one direction, of no special kind."""
        if self.d is None or self.z is None:
            return None
        probe = torch.arange(1, self.dim + 1, dtype=self.z.dtype).mul_(1.7).sin_().unsqueeze(-1)
        given, made = gradient @ probe, self.d.mT @ (self.z @ probe)
        length = float(made.square().sum())
        scale = float((given * made).sum()) / length if length > 0 else 0.0
        same = float((given - scale * made).norm()) <= _SAME[self.z.dtype] * float(given.norm())
        return scale if same and scale else None

    def eigenvalues(self) -> Tensor:
        """Of S, ascending [groups, d]."""
        if self.moment is not None:
            return torch.linalg.eigvalsh(self.moment.double())
        assert self.z is not None
        z = self.z.double()
        inside = torch.linalg.eigvalsh(z @ z.mT) / self.n.view(-1, 1)
        return torch.nn.functional.pad(inside[:, -self.dim :], (max(0, self.dim - inside.shape[1]), 0))

    def nbytes(self) -> int:
        """Bytes of the tensors that this holds."""
        held = (self.z, self.d, self.moment, self.inverse, getattr(self, "triangle", None))
        return sum(tensor.nbytes for tensor in held if tensor is not None)


def _primal(n: int, d: int, out: int) -> float:
    """Multiplications of the primal form: S, its Cholesky factor, two triangular solves."""
    return n * d * d + d**3 / 3 + out * d * d


def _dual(n: int, d: int, out: int, known: bool) -> float:
    """Multiplications of a dual form: K, its Cholesky factor, the solve, and the products with Z; ``known``: the one with D."""
    return n * n * d + n**3 / 3 + n * n * min(d, out) + (1 if known else 2) * n * d * out
