"""A weight's gradient times its inverse, in place."""

from collections.abc import Callable

import torch
from torch import Tensor

from dopr_robot.optim.factors import Factor
from dopr_robot.optim.sharding import Shard

Multiply = Callable[[Tensor], Tensor]  # of rows [groups, n, d]
_CACHED = 1 << 18  # entries for each thread: 1 MiB of float32, of a core's second-level cache


def precondition_(
    factor: Factor, times: Multiply | None = None, measure: bool = False, exact: Multiply | None = None
) -> None:
    """Multiply the weight's gradient (and the bias's) by the inverse, in place: by ``times`` where the inverse is this step's own.

    ``measure`` sets the factor's ``turned``, and ``exact``, this step's inverse beside another, its ``cosine``.
    """
    shard = Shard(factor)
    gradient, bias = shard.gradient, shard.bias
    before = gradient.clone() if measure else None
    if factor.matrix is None:
        gradient.mul_(factor.state["inverse"][shard.rows].unsqueeze(-1))
    elif factor.diagonal is not None:
        turned = gradient.to(factor.dtype) @ factor.state["basis"]
        turned /= factor.state["damped"][shard.rows].unsqueeze(-1) + factor.state["eigenvalues"]
        gradient.copy_(turned @ factor.state["basis"].mT)
    else:
        _multiply_(factor, gradient, bias, times or (lambda rows: _times_inverse(factor, rows)))
    if before is not None:
        factor.turned = 1 - shard.cosine(before, gradient).square()
        if exact is not None and factor.matrix is not None:
            _multiply_(factor, before, None, exact)
            factor.cosine = shard.cosine(before, gradient)
    shard.put_back()


def _multiply_(factor: Factor, gradient: Tensor, bias: Tensor | None, times: Multiply) -> None:
    layer = factor.matrix
    assert layer is not None
    rows = layer.view(gradient)  # [groups, rows, ..., width]
    if not rows.numel():
        return  # of a sharded weight, on a rank that has none
    if rows.data_ptr() != gradient.data_ptr():  # not dense in memory
        dense = gradient.contiguous()
        _multiply_(factor, dense, bias, times)
        gradient.copy_(dense)
        return
    if layer.bias is not None:
        column = rows.new_zeros(rows.shape[:2]) if bias is None else bias.view(rows.shape[:2])
        flat = torch.cat([rows.reshape(*rows.shape[:2], -1), column.unsqueeze(-1)], dim=-1)
        result = times(flat.to(factor.dtype))
        rows.copy_(result[..., :-1].view(rows.shape))
        if bias is not None:
            column.copy_(result[..., -1])
        return
    # A convolution's rows have to be gathered: on a CPU in parts that stay in its cache, twice as fast as all at once.
    cached = _CACHED * torch.get_num_threads()
    for part in rows.split(max(1, cached // rows[:, :1].numel()), 1) if rows.dim() > 3 and rows.is_cpu else [rows]:
        result = times(part.reshape(part.shape[0], -1, part.shape[-1]).to(factor.dtype))
        if result.data_ptr() != part.data_ptr():
            part.copy_(result.view(part.shape))


def _times_inverse(factor: Factor, rows: Tensor) -> Tensor:
    """``rows @ inverse`` [groups, n, d]; in place where the inverse is of low rank."""
    if "inverse" in factor.state:
        return rows @ factor.value("inverse")
    basis, left, scale = factor.value("basis"), factor.value("left"), factor.value("scale")
    if len(rows) == 1 and rows.is_cpu:  # the scale as a number: one pass over the gradient less
        matrix = rows[0]
        matrix.addmm_(matrix @ left[0], basis[0].mT, beta=float(scale))
        return rows
    inner = rows @ left
    return rows.mul_(scale.view(-1, 1, 1)).baddbmm_(inner, basis.mT)
