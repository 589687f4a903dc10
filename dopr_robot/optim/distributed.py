"""Statistics under data parallelism."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dopr_robot.optim.factors import Factor, Rows

_MESSAGE = 1 << 25  # bytes: small tensors go together, so that latency is paid once, without a copy of all of them


def ranks(group: Any) -> int:
    """How many ranks statistics are averaged over; ``group`` as ``process_group`` of the preconditioner."""
    return dist.get_world_size(group) if group is not False and dist.is_available() and dist.is_initialized() else 1


def exchange(tensors: Sequence[Tensor], send: Callable[[Tensor], Any]) -> None:
    """Call ``send``, which works in place on every rank, on all tensors: those of one type in messages of bounded size."""
    waiting: dict[torch.dtype, list[Tensor]] = {}
    size: Counter[torch.dtype] = Counter()

    def flush(dtype: torch.dtype) -> None:
        parts, size[dtype] = waiting.pop(dtype), 0
        if len(parts) == 1 and parts[0].is_contiguous():
            send(parts[0])
            return
        message = torch.cat([part.reshape(-1) for part in parts])
        send(message)
        for part, total in zip(parts, message.split([part.numel() for part in parts]), strict=True):
            part.copy_(total.view_as(part))

    for tensor in tensors:
        if size[tensor.dtype] and size[tensor.dtype] + tensor.nbytes > _MESSAGE:
            flush(tensor.dtype)
        waiting.setdefault(tensor.dtype, []).append(tensor)
        size[tensor.dtype] += tensor.nbytes
    for dtype in list(waiting):
        flush(dtype)


def global_rank(group: Any, rank: int) -> int:
    """Of a rank of ``group``, the one that torch's collectives are told."""
    return rank if group is None or group is False else dist.get_global_rank(group, rank)


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
    step. What an owner keeps alone is sent to it alone. Returns the factors that any rank has inputs for.
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
    # What a comparison with this step's own S needs, every rank does.
    to = {factor: None if factor.compare else factor.owner for factor in due}
    exchange(_parts(factor for factor in due if to[factor] is None), partial(dist.all_reduce, group=group))
    for owner in range(dist.get_world_size(group)):
        theirs, rank = [factor for factor in due if to[factor] == owner], global_rank(group, owner)
        exchange(_parts(theirs), partial(dist.reduce, dst=rank, group=group))
        for factor in theirs:
            if not factor.mine:
                factor.sums = {}
    return due


def _parts(factors: Iterable[Factor]) -> list[Tensor]:
    return [t for factor in factors for t in (*factor.sums.values(), *map(torch.as_tensor, factor.counts.values()))]
