"""The damped inverse of one step's own second moment, by whichever of S and the inputs' Gram matrix is cheaper to factorise."""

import functools
from typing import Any

import torch
from torch import Tensor

from dopr_robot.optim.factors import Factor
from dopr_robot.optim.inverses import damped_cholesky
from dopr_robot.optim.products import gram

_SAME = {torch.float32: 1e-4, torch.float64: 1e-10}

Factorised = dict[Any, tuple[Tensor, ...]]  # what layers of the same inputs share: query, key and value; gate and up


class BatchInverse:
    r"""``(S + damping tr(S)/d I)^-1`` of the inputs Z ``[n, d]`` that a factor recorded for a step.

    With :math:`K = Z Z^\top`, :math:`\lambda = \text{damping} \cdot \operatorname{tr}(S) / d` and D ``[n, out]`` the output's gradient:

    .. math::
        M = G (Z^\top Z / n + \lambda I)^{-1}
          = n D^\top (K + n \lambda I)^{-1} Z
          = \bigl(G - G Z^\top (K + n \lambda I)^{-1} Z\bigr) / \lambda

    The first is the primal form, which needs the ``d x d`` matrix S; the others are dual, and need ``n x n``. The second takes half the
    products of the third, and is used where G is seen to be ``D^T Z`` up to a number (a loss scale, clipping), so that D says all of it.

    Args:
        factor: whose inputs.
        grams: K of the inputs that were met so far in this step, by where they lie.

    Attributes:
        trace: tr(S) [groups], NaN or inf where an input is.
        n: what the matrix that is factorised, K or Z^T Z, is to be divided by [groups]: how many inputs there are.
    """

    def __init__(self, factor: Factor, grams: dict[Any, Tensor] | None = None) -> None:
        assert factor.matrix is not None
        self.dim = factor.dim
        self.n = factor.inputs_seen()
        self.raised: Tensor | None = None
        out = factor.out
        self.tall = out > self.dim
        rows, self.d = factor.rows, None
        length = sum(z.shape[1] for z, _ in rows)
        known = all(d is not None for _, d in rows)
        if rows and dual_cost(length, self.dim, out, known) < primal_cost(length, self.dim, out):
            self.z: Tensor | None = rows[0].z if len(rows) == 1 else torch.cat([z for z, _ in rows], 1)
            if known:
                self.d = rows[0].d if len(rows) == 1 else torch.cat([d for _, d in rows if d is not None], 1)
            self.dual = True
            # The trace is that of K, which is formed here so that a bad input is seen before anything is factorised.
            where = (self.z.data_ptr(), self.z.shape, self.z.stride())
            grams = {} if grams is None else grams
            self.matrix = grams[where] if where in grams else grams.setdefault(where, gram(self.z))
        else:
            self.z, self.dual = None, False
            self.matrix, divided = factor.products()
            self.n = torch.ones_like(self.n) if divided else self.n
        self.trace = factor.pooled(self.matrix.diagonal(dim1=-2, dim2=-1).sum(-1) / self.n)

    def factorise(self, damping: float, done: Factorised | None = None) -> Tensor:
        """Get ready to multiply, once. Returns, as a bool tensor [groups], whether the damping had to be raised.

        ``done``: what was factorised in this step so far.
        """
        if self.raised is not None:
            return self.raised
        # On a CPU a product is several times as fast as triangular solves of as many multiplications: the inverse of the small matrix pays,
        # and that of the large one where the gradient has more rows than it.
        self.inverted = self.dual or self.tall
        done, key = {} if done is None else done, (self.matrix.data_ptr(), self.matrix.shape, damping)
        if key not in done:
            mean = self.trace / self.dim
            strength = damping * torch.where(mean > 0, mean, 1.0)
            triangle, strength, raised = damped_cholesky(self.matrix, self.n * strength)
            done[key] = triangle, strength / self.n, raised
        triangle, self.strength, self.raised = done[key]
        if (*key, self.inverted) not in done:
            done[*key, self.inverted] = (self._solver(triangle),)
        (self.solver,) = done[*key, self.inverted]
        return self.raised

    def _solver(self, triangle: Tensor) -> Tensor:
        """``(K + n strength I)^-1``; of the primal form ``(S + strength I)^-1``, or the factor of what is inverted there."""
        if self.dual:
            return torch.cholesky_inverse(triangle)
        scale = self.n.view(-1, 1, 1)
        return torch.cholesky_inverse(triangle).mul_(scale) if self.inverted else triangle / scale.sqrt()

    def __call__(self, gradient: Tensor) -> Tensor:
        """``gradient`` [groups, rows, d] times the inverse; in place in the dual forms."""
        if self.z is None and self.inverted:
            return gradient @ self.solver
        if self.z is None:
            half = torch.linalg.solve_triangular(self.solver.mT, gradient, upper=True, left=False)
            return torch.linalg.solve_triangular(self.solver, half, upper=False, left=False)
        scale = self._scale_of(gradient)
        if scale is not None:
            assert self.d is not None
            factor = scale * self.n.view(-1, 1, 1)
            if self.d.shape[2] < self.z.shape[2]:
                return torch.bmm((self.solver @ (factor * self.d)).mT, self.z, out=gradient)
            return torch.bmm(self.d.mT, self.solver @ (factor * self.z), out=gradient)
        inner = gradient @ self.z.mT @ self.solver
        return gradient.baddbmm_(inner, self.z, alpha=-1).div_(self.strength.view(-1, 1, 1))

    def _scale_of(self, gradient: Tensor) -> float | None:
        """The number c with ``gradient = c D^T Z``, or None where there is none: looked at along one direction, of no special kind."""
        if self.d is None or self.z is None:
            return None
        probe = _probe(self.dim, self.z.dtype)
        given, made = (gradient @ probe).flatten(), (self.d.mT @ (self.z @ probe)).flatten()
        length = float(made.dot(made))
        scale = float(given.dot(made)) / length if length > 0 else 0.0
        rest = given.sub(made, alpha=scale)
        return scale if scale and float(rest.norm()) <= _SAME[self.z.dtype] * float(given.norm()) else None

    def eigenvalues(self) -> Tensor:
        """Of S, ascending [groups, d]."""
        inside = torch.linalg.eigvalsh(self.matrix.double()) / self.n.view(-1, 1)
        if not self.dual:
            return inside
        return torch.nn.functional.pad(inside[:, -self.dim :], (max(0, self.dim - inside.shape[1]), 0))

    def release(self) -> None:
        """Let go of all but what :meth:`eigenvalues` needs: the smaller matrix."""
        self.z = self.d = None
        del self.solver

    def nbytes(self) -> int:
        """Bytes held after :meth:`release`."""
        return self.matrix.nbytes


@functools.lru_cache(maxsize=256)
def _probe(dim: int, dtype: torch.dtype) -> Tensor:
    return torch.arange(1, dim + 1, dtype=dtype).mul_(1.7).sin_().unsqueeze(-1)


def primal_cost(n: float, d: int, out: int) -> float:
    """Multiplications of the primal form: S, its Cholesky factor, two triangular solves."""
    return n * d * d + d**3 / 3 + out * d * d


def dual_cost(n: float, d: int, out: int, known: bool) -> float:
    """Multiplications of a dual form: K, its Cholesky factor, the solve, and the products with Z; ``known``: the one with D."""
    return n * n * d + n**3 / 3 + n * n * min(d, out) + (1 if known else 2) * n * d * out
