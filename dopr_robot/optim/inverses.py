"""Damped inverses of second moments, formed for many layers at once, without a question to the device on CUDA."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from dopr_robot.optim.factors import Factor, rank_of

# Bytes of second moments factorised at once: a factorisation holds several times as much. On a GPU the number of operations takes the time.
_CHUNK = {"cpu": 1 << 23, "cuda": 1 << 26}


def in_chunks(factors: Iterable[Factor]) -> Iterator[list[Factor]]:
    """Factors in parts whose moments are formed together: large ones alone, so that what a part needs beside them stays small."""
    part: list[Factor] = []
    size = 0
    for factor in factors:
        more = 0 if factor.matrix is None else factor.groups * factor.dim**2 * factor.dtype.itemsize
        if part and size + more > _CHUNK.get(factor.weight.device.type, _CHUNK["cuda"]):
            yield part
            part, size = [], 0
        part.append(factor)
        size += more
    if part:
        yield part


def form_inverses(factors: Sequence[Factor], damping: float, rank: int | str) -> list[tuple[Factor, Tensor]]:
    """Form the inverses of ``factors`` from their moments; those of one size are factorised together. ``rank`` is for those of low rank.

    Returns, for each factor that was factorised, a bool tensor [groups]: whether its damping had to be raised.
    """
    by_size: dict[tuple[int, int | None, torch.dtype, torch.device], list[Factor]] = {}
    for factor in factors:
        if factor.matrix is None:
            factor.state["inverse"] = 1 / (factor.state["diagonal"] + damping * factor.trace_mean())
        elif factor.diagonal is not None:
            _form_two_sided(factor, damping)
        else:
            moment = factor.value("matrix")
            kept = rank_of(moment.shape[-1], rank) if factor.form == "low_rank" else None
            key = (moment.shape[-1], kept, moment.dtype, moment.device)
            by_size.setdefault(key, []).append(factor)
    raised: list[tuple[Factor, Tensor]] = []
    for (_, kept, _, _), same in by_size.items():
        raised += _form_together(same, damping, kept)
    return raised


def _form_together(group: list[Factor], damping: float, kept: int | None) -> list[tuple[Factor, Tensor]]:
    """Form the inverses of factors of one size, ``kept`` directions of each, or all."""
    moments = [factor.value("matrix") for factor in group]
    together = moments[0] if len(moments) == 1 else torch.cat(moments)
    del moments
    strength = torch.cat([damping * factor.trace_mean() for factor in group])
    sizes = [factor.state["matrix"].shape[0] for factor in group]
    if kept is None:
        inverses, failed = damped_inverse(together, strength, sure=is_sure(damping, together.shape[-1]))
        parts = {"inverse": inverses}
    else:
        parts, failed = _leading_inverse(together, strength, _start(group, kept))
    for name, stacked in parts.items():
        for factor, part in zip(group, stacked.split(sizes), strict=True):
            # One layout whoever made it: the kernel of a multiplication, and so its last bits, depends on the strides, and a
            # checkpoint gives contiguous tensors back.
            factor.state[name] = part.clone(memory_format=torch.contiguous_format)
    return list(zip(group, failed.split(sizes), strict=True))


def damped_inverse(moment: Tensor, damping: Tensor, *, sure: bool = False) -> tuple[Tensor, Tensor]:
    """``(S + damping I)^-1`` of a batch ``[n, d, d]`` of second moments, with ``damping`` [n].

    Returns:
        The inverses, and for each whether its damping was raised, see :func:`damped_cholesky`.
    """
    triangle, _, raised = damped_cholesky(moment, damping, sure=sure)
    return torch.cholesky_inverse(triangle), raised


def is_sure(damping: float, dim: int) -> bool:
    """Whether ``damping``, in mean eigenvalues of a moment of size ``dim``, is far above what float32 leaves uncertain of its largest one,
    which is ``dim`` mean ones at most; where products are rounded to 10 bits (TF32) none is.
    """
    return damping / dim >= 1e-5 and torch.get_float32_matmul_precision() == "highest"


def damped_cholesky(
    moment: Tensor, damping: Tensor, attempts: int = 12, *, sure: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """The Cholesky factors of ``S + damping I`` for a batch ``[n, d, d]`` of positive semidefinite matrices, with ``damping`` [n].

    Where the factorisation fails it is tried again with ten times the damping. On CUDA the answer would have to be waited for: where the
    damping is ``sure`` to do, what fails all the same is replaced by a multiple of the identity; else a second strength, a hundredth of
    the mean eigenvalue, is computed at once, and one of the two is chosen there.

    Args:
        sure: see :func:`is_sure`.

    Returns:
        The lower factors, the damping that each has, and whether it was raised.

    Raises:
        RuntimeError: where no damping helped.
    """
    triangle, failed = _cholesky(moment, damping)
    if moment.is_cuda and sure:
        mean = (_trace(moment) / moment.shape[-1] + damping).view(-1, 1, 1)
        eye = torch.eye(moment.shape[-1], dtype=moment.dtype, device=moment.device)
        return torch.where(failed.view(-1, 1, 1), mean.sqrt() * eye, triangle), damping, failed
    if moment.is_cuda:
        more = damping + 0.01 * _trace(moment) / moment.shape[-1]
        stronger, _ = _cholesky(moment, more)
        return torch.where(failed.view(-1, 1, 1), stronger, triangle), torch.where(failed, more, damping), failed
    raised = failed
    for _ in range(attempts):
        if not bool(failed.any()):
            break
        damping = torch.where(failed, 10 * damping, damping)
        triangle, failed = _cholesky(moment, damping)
    if not bool(failed.any()):
        return triangle, damping, raised
    raise RuntimeError(f"a second moment of size {moment.shape[-1]} could not be factorised: use a larger damping")


def _cholesky(moment: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    damped = moment.clone()
    damped.diagonal(dim1=-2, dim2=-1).add_(damping.unsqueeze(-1))
    triangle, info = torch.linalg.cholesky_ex(damped)
    failed = info > 0
    if failed.is_cpu and not bool(failed.any()):
        return triangle, failed
    # What a failed factorisation leaves may have a zero on its diagonal, which the inversion would raise for.
    eye = torch.eye(moment.shape[-1], dtype=moment.dtype, device=moment.device)
    return torch.where(failed.view(-1, 1, 1), eye, triangle), failed


def _start(group: Sequence[Factor], rank: int) -> tuple[Tensor, int]:
    """Where subspace iteration begins, and for how many rounds: at the last basis, or anywhere (the same on every rank)."""
    if all("basis" in factor.state and factor.state["basis"].shape[-1] == rank for factor in group):
        return torch.cat([factor.value("basis") for factor in group]), 1
    moments = [factor.value("matrix") for factor in group]
    groups, dim = sum(moment.shape[0] for moment in moments), moments[0].shape[-1]
    start = torch.randn(dim, rank, generator=torch.Generator().manual_seed(0), dtype=moments[0].dtype)
    return start.to(moments[0].device).expand(groups, -1, -1), 3


def _leading_inverse(moment: Tensor, damping: Tensor, start: tuple[Tensor, int]) -> tuple[dict[str, Tensor], Tensor]:
    """The inverse where the ``rank`` leading directions Q of S are treated exactly, and the others by their mean eigenvalue t:

    ``(S + damping I)^-1 ~ scale I + left Q^T`` with ``scale = 1/(t + damping)`` and
    ``left = Q ((Q^T S Q + damping I)^-1 - scale I)``.

    Q comes from one round of subspace iteration a refresh, begun where the last one ended.
    """
    basis, rounds = start
    for _ in range(rounds):
        # The damping keeps what S has no say about where it was; without it, it would be rounding noise, other on every machine.
        basis = torch.linalg.qr(torch.baddbmm(damping.view(-1, 1, 1) * basis, moment, basis)).Q
    inside = basis.mT @ moment @ basis
    trace, kept = _trace(moment), _trace(inside)
    rest = (trace - kept).clamp_min(0) / (moment.shape[-1] - basis.shape[-1])
    inverse, failed = damped_inverse(inside, damping)
    scale = 1 / (rest + damping)
    inverse.diagonal(dim1=-2, dim2=-1).sub_(scale.unsqueeze(-1))
    return {"basis": basis, "left": basis @ inverse, "scale": scale}, failed


def _trace(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1).sum(-1)


def _form_two_sided(factor: Factor, damping: float) -> None:
    """For ``diag(s) M + M S + strength M = G``, solved in the eigenvectors of S."""
    eigenvalues, basis = torch.linalg.eigh(factor.state["matrix"][0])
    factor.state["basis"] = basis.contiguous()
    factor.state["eigenvalues"] = eigenvalues.clamp_min(0)
    rows = factor.state.get("diagonal", torch.zeros(factor.weight.shape[0], dtype=basis.dtype, device=basis.device))
    factor.state["damped"] = rows + damping * factor.trace_mean()
