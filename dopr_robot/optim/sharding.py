"""Weights of which a rank holds some rows: FSDP2's ``fully_shard``.

A shard of dimension 0 of a weight ``[out, in]`` holds whole rows, and M = G (S + lambda I)^-1 acts on columns: each rank multiplies its own
rows, and only S is shared. Where dimension 0 is not a matrix's rows, the gradient is gathered, multiplied, and cut again.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dopr_robot.optim.factors import Factor


def is_sharded(parameter: Any) -> bool:
    """Whether a parameter is a DTensor."""
    return hasattr(parameter, "device_mesh")


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds; of a gradient, what it is written to by."""
    return tensor._local_tensor if is_sharded(tensor) else tensor  # type: ignore[no-any-return, attr-defined]


def gathered(tensor: Tensor) -> Tensor:
    """All of a tensor, gathered where each rank has a part."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[no-any-return, attr-defined]


def refuse_unknown_sharding(model: Any, process_group: Any) -> None:
    """Raise ValueError, by name, for a weight of a model whose shards are not rows."""
    sharded = {name: p for name, p in model.named_parameters() if is_sharded(p)}
    flat = [name for name, p in model.named_parameters() if type(p).__name__ == "FlatParameter"]
    if flat or any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise ValueError(
            f"{type(model).__name__} is sharded into flat pieces of weights (FullyShardedDataParallel): use "
            "torch.distributed.fsdp.fully_shard, whose shards are rows, or DistributedDataParallel"
        )
    fully = any("FSDPModule" in (base.__name__ for base in type(module).__mro__) for module in model.modules())
    for name, p in sharded.items():
        cut = [placement for placement in p.placements if placement.is_shard()]
        if any(placement.dim > 0 for placement in cut):
            raise ValueError(
                f"{name} is sharded along dimension {max(placement.dim for placement in cut)}, the side of its inputs (tensor "
                "parallelism), of which no rank sees all: S cannot be formed; shard it by fully_shard alone"
            )
        if len(cut) > 1 or not fully:
            raise ValueError(f"{name} is sharded by tensor parallelism: shard it by fully_shard alone")
    if sharded and process_group is False:
        raise ValueError("process_group=False: the rows of one sharded weight need one S, so its ranks have to share")


class Shard:
    """The gradient of a factor as it is to be multiplied here, which is in place.

    Attributes:
        gradient: the rank's rows of it, the whole of a weight that is not sharded, or whose shards are not rows.
        bias: the same of the bias that is multiplied along; None where there is none, or it has no gradient.
        rows: which rows they are.
    """

    def __init__(self, factor: Factor) -> None:
        gradient, bias = factor.weight.grad, None if factor.bias is None else factor.bias.grad
        assert gradient is not None
        self.gradient, self.bias, self.rows = gradient, bias, slice(None)
        self._own: list[tuple[Tensor, Tensor, slice]] = []  # shard, whole, the shard's place in it
        self._shared = False
        if not is_sharded(gradient):
            return
        if all(layer.by_rows for layer in factor.layers):
            self.gradient, self.rows, self._shared = local(gradient), _rows(gradient), True
            self.bias = None if bias is None else local(bias)
            return
        self.gradient = gradient.full_tensor()  # type: ignore[attr-defined]
        self._own.append((local(gradient), self.gradient, _rows(gradient)))
        if bias is not None:
            self.bias = bias.full_tensor()  # type: ignore[attr-defined]
            self._own.append((local(bias), self.bias, _rows(bias)))

    def put_back(self) -> None:
        """Cut what was gathered."""
        for shard, whole, rows in self._own:
            shard.copy_(whole[rows])

    def cosine(self, first: Tensor, second: Tensor) -> Tensor:
        """Between two gradients of that shape, over all ranks' rows."""
        a, b = (each.flatten().to(torch.promote_types(each.dtype, torch.float32)) for each in (first, second))
        products = torch.stack([a @ b, a @ a, b @ b])
        if self._shared:
            dist.all_reduce(products)  # replicas of shards count alike in all three
        return products[0] / (products[1] * products[2]).sqrt().clamp_min(1e-30)


def _rows(tensor: Any) -> slice:
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return slice(offset[0], offset[0] + shape[0])


def agree(bad: Tensor, parameters: list[nn.Parameter], group: Any) -> Tensor:
    """Whether a step is bad on any rank: where gradients are sharded, each looks at its own, and at the moments that it owns."""
    if any(is_sharded(parameter) for parameter in parameters):
        dist.all_reduce(bad, op=dist.ReduceOp.MAX, group=group)
    return bad
