"""Statistics under data parallelism."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dopr_robot.optim.factors import Factor


def refuse_sharded(model: nn.Module) -> None:
    """Raise ValueError for FSDP: a rank holds rows or flat pieces of a weight, not the matrix that the inverse multiplies."""
    sharded = [
        name for name, p in model.named_parameters() if hasattr(p, "device_mesh") or type(p).__name__ == "FlatParameter"
    ]
    if sharded or any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise ValueError(
            f"{type(model).__name__} is sharded (FSDP): a rank does not hold whole weights, so their gradients cannot be multiplied by "
            "the inverse second moment. Use DistributedDataParallel"
        )


def average_over_ranks(factors: Sequence[Factor], due: list[Factor], group: Any) -> list[Factor]:
    """Add the recorded sums and counts over all ranks, in one message. Returns the factors that any rank has inputs for."""
    if group is False or not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1:
        return due
    device = factors[0].weight.device
    seen = torch.tensor(
        [[factor.seen, *(layer.groups == 3 for layer in factor.layers[:1])] for factor in factors], device=device
    )
    seen = seen.to(torch.int32)
    dist.all_reduce(seen, op=dist.ReduceOp.MAX, group=group)
    due = [factor for factor, (flag, _) in zip(factors, seen.tolist(), strict=True) if flag]
    tensors: list[Tensor] = []
    for factor in due:
        factor.fill()
        tensors += [*factor.sums.values(), factor.count]  # type: ignore[list-item]
    for dtype in {tensor.dtype for tensor in tensors}:
        parts = [tensor for tensor in tensors if tensor.dtype == dtype]
        message = torch.cat([part.reshape(-1) for part in parts])
        dist.all_reduce(message, group=group)
        for part, total in zip(parts, message.split([part.numel() for part in parts]), strict=True):
            part.copy_(total.view_as(part))
    return due
