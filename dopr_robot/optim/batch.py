"""The damped inverse of one step's own second moment, by whichever of S and the inputs' Gram matrix is cheaper to factorise."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dopr_robot.optim.factors import Factor
from dopr_robot.optim.inverses import damped_cholesky, is_sure
from dopr_robot.optim.products import gram

_SAME = {torch.float32: 1e-4, torch.float64: 1e-10}

_AT_ONCE = 1 << 26  # entries of matrices that are factorised together on a GPU
# On a CPU, entries of a matrix for which calls take more time than the work, and of those that are factorised together (16 MiB).
_SMALL, _SMALL_AT_ONCE = 1 << 16, 1 << 22


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

    solver: Tensor
    strength: Tensor

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
            given = rows[0].z if len(rows) == 1 else torch.cat([z for z, _ in rows], 1)
            self.z: Tensor | None = given.to(factor.dtype)
            if known:
                self.d = rows[0].d if len(rows) == 1 else torch.cat([d for _, d in rows if d is not None], 1)
            self.dual = True
            # The trace is that of K, which is formed here so that a bad input is seen before anything is factorised.
            where = (given.data_ptr(), given.shape, given.stride())
            grams = {} if grams is None else grams
            self.matrix = grams[where] if where in grams else grams.setdefault(where, gram(given))
        else:
            self.z, self.dual = None, False
            self.matrix, divided = factor.products()
            self.n = torch.ones_like(self.n) if divided else self.n
        self.trace = factor.pooled(self.matrix.diagonal(dim1=-2, dim2=-1).sum(-1) / self.n)

    @property
    def kind(self) -> str:
        """What is made of the Cholesky factor L of ``K + n strength I`` or ``S + strength I``: the inverse, L^-1, or L itself."""
        # On a GPU (H100, d = 2,048) L^-1 takes half the time of the inverse, and two solves with L take more, for every gradient. On a CPU
        # a product is several times as fast as triangular solves of as many multiplications: the inverse of the small matrix pays, and that
        # of the large one where the gradient has more rows than it.
        return "half" if self.matrix.is_cuda else "inverse" if self.dual or self.tall else "factor"

    def __call__(self, gradient: Tensor) -> Tensor:
        """``gradient`` [groups, rows, d] times the inverse; in place in the dual forms."""
        if self.z is None and self.kind != "factor":
            return self._solved(gradient)
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
        inner = self._solved(gradient @ self.z.mT)
        return gradient.baddbmm_(inner, self.z, alpha=-1).div_(self.strength.view(-1, 1, 1))

    def _solved(self, rows: Tensor) -> Tensor:
        """``rows`` times the inverse of the matrix that was factorised."""
        return rows @ self.solver.mT @ self.solver if self.kind == "half" else rows @ self.solver

    def _scale_of(self, gradient: Tensor) -> float | None:
        """The number c with ``gradient = c D^T Z``, or None where there is none: looked at along one direction, of no special kind."""
        if self.d is None or self.z is None:
            return None
        probe = _probe(self.dim, self.z.dtype)
        given, made = (gradient @ probe).flatten(), (self.d.mT @ (self.z @ probe)).flatten()
        pair = torch.stack([given, made])
        (whole, both), (_, length) = (pair @ pair.T).tolist()
        scale = both / length if length > 0 else 0.0
        rest = given.sub_(made, alpha=scale)
        return scale if scale and float(rest.dot(rest)) <= _SAME[self.z.dtype] ** 2 * whole else None

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


class Part(NamedTuple):
    """Matrices of one size that are factorised together, each with those that share it."""

    members: Sequence[Sequence[BatchInverse]]
    damping: float

    def solves(self) -> list[BatchInverse]:
        return [solve for sharing in self.members for solve in sharing]

    def factorise(self) -> None:
        """Get all of them ready to multiply."""
        firsts = [sharing[0] for sharing in self.members]
        matrix, n = _joined([first.matrix for first in firsts]), _joined([first.n for first in firsts])
        mean = _joined([first.trace / first.dim for first in firsts])
        strength = self.damping * torch.where(mean > 0, mean, 1.0)
        sure = is_sure(self.damping, max(first.dim for first in firsts))
        triangle, strength, raised = damped_cholesky(matrix, n * strength, sure=sure)
        groups = [first.matrix.shape[0] for first in firsts]
        each = list(zip(self.members, (strength / n).split(groups), raised.split(groups), strict=True))
        made: dict[tuple[str, bool], Sequence[Tensor]] = {}
        for index, (sharing, strength, raised) in enumerate(each):
            for solve in sharing:
                key = (solve.kind, solve.dual)
                if key not in made:
                    made[key] = _solver(triangle, n.view(-1, 1, 1), *key).split(groups)
                solve.solver, solve.strength, solve.raised = made[key][index], strength, raised


def factorise(solves: Sequence[BatchInverse], dampings: Sequence[float]) -> None:
    """Get ``solves`` ready to multiply, each with its damping."""
    for part in parts_of(solves, dampings):
        part.factorise()


def parts_of(solves: Sequence[BatchInverse], dampings: Sequence[float]) -> Iterator[Part]:
    """What of ``solves`` is to be factorised together, each with its damping.

    What layers of the same inputs share (query, key and value; gate and up) is factorised once, and where the number of operations takes
    the time, on a GPU and of small matrices, what is of one size together.
    """
    same: dict[Any, list[BatchInverse]] = {}
    for solve, damping in zip(solves, dampings, strict=True):
        same.setdefault((solve.matrix.data_ptr(), solve.matrix.shape, damping), []).append(solve)
    sizes: dict[Any, list[list[BatchInverse]]] = {}
    for key, sharing in same.items():
        matrix, damping = sharing[0].matrix, key[-1]
        by_size = matrix.is_cuda or matrix.shape[1:].numel() <= _SMALL
        together = (matrix.device, matrix.dtype, matrix.shape[1:], damping) if by_size else key
        sizes.setdefault(together, []).append(sharing)
    for (*_, damping), members in sizes.items():
        matrix = members[0][0].matrix
        at_once = max(1, (_AT_ONCE if matrix.is_cuda else _SMALL_AT_ONCE) // matrix.numel())
        for start in range(0, len(members), at_once):
            yield Part(members[start : start + at_once], damping)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _solver(triangle: Tensor, n: Tensor, kind: str, dual: bool) -> Tensor:
    """:attr:`BatchInverse.kind` of a Cholesky factor; in the primal form of S and not of Z^T Z, which is n times as much."""
    if kind == "inverse":
        return torch.cholesky_inverse(triangle) if dual else torch.cholesky_inverse(triangle).mul_(n)
    if kind == "factor":
        return triangle / n.sqrt()
    eye = torch.eye(triangle.shape[-1], dtype=triangle.dtype, device=triangle.device)
    half = torch.linalg.solve_triangular(triangle, eye.expand_as(triangle), upper=False)
    return half if dual else half.mul_(n.sqrt())


@functools.lru_cache(maxsize=256)
def _probe(dim: int, dtype: torch.dtype) -> Tensor:
    return torch.arange(1, dim + 1, dtype=dtype).mul_(1.7).sin_().unsqueeze(-1)


def primal_cost(n: float, d: int, out: int) -> float:
    """Multiplications of the primal form, counted as if symmetry saved nothing: S, its Cholesky factor, two triangular solves."""
    return n * d * d + d**3 / 3 + out * d * d


def dual_cost(n: float, d: int, out: int, known: bool) -> float:
    """Multiplications of a dual form, counted likewise: K, its Cholesky factor, the solve, and the products with Z; ``known``: the one
    with D."""
    return n * n * d + n**3 / 3 + n * n * min(d, out) + (1 if known else 2) * n * d * out
