"""Statistics under data parallelism."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from dopr_robot.optim.factors import Factor, Rows


def ranks(group: Any) -> int:
    """How many ranks statistics are averaged over; ``group`` as ``process_group`` of the preconditioner."""
    return dist.get_world_size(group) if group is not False and dist.is_available() and dist.is_initialized() else 1


def same_on_all_ranks(factors: Sequence[Factor], group: Any) -> None:
    """Raise RuntimeError where ranks saw other layers run, so that what they are about to exchange would not fit together."""
    if ranks(group) == 1:
        return
    device = factors[0].weight.device if factors else None
    number = torch.tensor([len(factors), -len(factors)], device=device)
    dist.all_reduce(number, op=dist.ReduceOp.MAX, group=group)
    if number[0] != -number[1]:
        raise RuntimeError(
            f"one rank saw {int(number[0])} layers run and another {-int(number[1])}: give DoPr the model, so that they are known "
            "before they run"
        )


def average_over_ranks(factors: Sequence[Factor], due: list[Factor], group: Any) -> list[Factor]:
    """Bring the inputs of all ranks together: sums and counts added, kept rows side by side.

    Rows are sent where all ranks' together are fewer than the layer's inputs d, so that a layer costs at most ``min(n, d) x d`` numbers a
    step. Returns the factors that any rank has inputs for.
    """
    if not factors or ranks(group) == 1:
        return due
    # A rank may have run fewer layers than another, or an attention with separate keys: agree on what there is before adding it.
    device = factors[0].weight.device
    present = torch.tensor([[factor.seen, factor.groups, factor.length] for factor in factors], device=device)
    dist.all_reduce(present, op=dist.ReduceOp.MAX, group=group)
    due, gathered = [], []
    for factor, (seen, groups, length) in zip(factors, present.tolist(), strict=True):
        if seen:
            due.append(factor)
            if factor.sketched or (factor.keeps_rows and length * dist.get_world_size(group) < factor.dim):
                gathered.append((factor, groups, length))
            else:
                factor.fill(groups)
    for factor, groups, length in gathered:
        # n x d from every rank, where a sum of d x d would be the larger message; zeros among the rows change neither S nor K.
        factor.fill_rows(groups, length)
        parts = [torch.empty_like(factor.rows[0].z) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, factor.rows[0].z, group=group)
        factor.rows = [Rows(torch.cat(parts, 1), None)]
    tensors = [
        tensor for factor in due for tensor in (*factor.sums.values(), *map(torch.as_tensor, factor.counts.values()))
    ]
    for dtype in {tensor.dtype for tensor in tensors}:
        parts = [tensor for tensor in tensors if tensor.dtype == dtype]
        message = torch.cat([part.reshape(-1) for part in parts])
        dist.all_reduce(message, group=group)
        for part, total in zip(parts, message.split([part.numel() for part in parts]), strict=True):
            part.copy_(total.view_as(part))
    return due
