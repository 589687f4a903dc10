"""One rank a layer: of a weight that is sharded, it alone keeps the averaged moments and forms the inverse.

A layer's sums of products are sent to its owner alone; what multiplies comes back to all ranks, once a refresh, or with
``owned="inverses"`` at every step, in which case it is kept by the owner alone too. A state dict has what one rank keeps as DTensors, of
which each rank holds some rows, so that it opens under any number of ranks. Layers of weights that are not sharded have no owner: all ranks
hold all of the model, and one of them may save it alone.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dopr_robot.optim.distributed import exchange, global_rank, ranks
from dopr_robot.optim.factors import Factor
from dopr_robot.optim.sharding import is_sharded
from dopr_robot.optim.state import shapes_of


def assign_owners(factors: Sequence[Factor], owned: str, group: Any) -> None:
    """Give an owner to each that needs one and has none, alike on every rank: the costliest first, each to the rank that has least to do
    at that layer's turn, and of those to the one that has least in all.
    """
    if all(factor.owner is not None or not _needs_owner(factor) for factor in factors) or ranks(group) == 1:
        return
    number, me = ranks(group), dist.get_rank(group)
    at_turn: Counter[tuple[int, int]] = Counter()
    in_all: Counter[int] = Counter()
    for factor in sorted(filter(_needs_owner, factors), key=lambda factor: (factor.owner is None, -factor.cost)):
        if factor.owner is None:
            turn = factor.phase
            loads = [(at_turn[turn, rank], in_all[rank]) for rank in range(number)]
            factor.owner = loads.index(min(loads))
            factor.mine, factor.lent = factor.owner == me, owned == "inverses"
            factor.leave_to_owner()
        at_turn[factor.phase, factor.owner] += factor.cost
        in_all[factor.owner] += factor.cost


def _needs_owner(factor: Factor) -> bool:
    return factor.averaged and is_sharded(factor.weight)


def hand_out(factors: Sequence[Factor], rank: int | str, group: Any, keys: Sequence[str] | None = None) -> None:
    """Send parts of the state from the owners to all: those that are not theirs alone, or ``keys``."""
    for owner in range(ranks(group)):
        tensors = []
        for factor in factors:
            if factor.owner != owner:
                continue
            for key, shape in shapes_of(factor, rank).items():
                if factor.alone(key) if keys is None else key not in keys:
                    continue
                if not factor.mine:
                    dtype = factor.kept_dtype(len(shape))
                    factor.state[key] = torch.empty(shape, dtype=dtype, device=factor.weight.device)
                tensors.append(factor.state[key])
        source = global_rank(group, owner)
        exchange(tensors, partial(dist.broadcast, src=source, group=group))


@contextmanager
def borrowed(factor: Factor, rank: int | str, group: Any) -> Iterator[None]:
    """Have what multiplies here for a while, where its owner keeps it alone."""
    if not factor.lent:
        yield
        return
    needed = [key for key in shapes_of(factor, rank) if key not in ("matrix", "diagonal")]
    hand_out([factor], rank, group, needed)
    try:
        yield
    finally:
        if not factor.mine:
            factor.state = {}


def with_shares(entry: Mapping[str, Any], factor: Factor, rank: int | str, group: Any) -> dict[str, Any]:
    """An entry of a state dict, with what one rank keeps alone as DTensors of which each rank holds some rows. All ranks call it."""
    shapes = {key: shape for key, shape in shapes_of(factor, rank).items() if factor.alone(key)}
    if not shapes:
        return dict(entry)
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Shard

    assert factor.owner is not None
    device = factor.weight.device
    whole: Any = dist.group.WORLD if group is None else group
    mesh = DeviceMesh.from_group(whole, device.type)
    shares: dict[str, Tensor] = {}
    for key, shape in shapes.items():
        dim = 1 if len(shape) == 3 else 0
        tensor = torch.empty(shape, dtype=factor.kept_dtype(len(shape)), device=device)
        if factor.refreshed < 0:  # room for what may be loaded
            tensor.zero_()
        else:
            if factor.mine:
                tensor.copy_(factor.state[key])
            dist.broadcast(tensor, global_rank(group, factor.owner), group=group)
        parts = tensor.chunk(ranks(group), dim)
        me = dist.get_rank(group)
        own = parts[me].clone() if me < len(parts) else tensor.narrow(dim, 0, 0)
        shares[key] = DTensor.from_local(
            own, mesh, [Shard(dim)], run_check=False, shape=tensor.shape, stride=tensor.stride()
        )
    kept = {key: value for key, value in entry.get("average", {}).items() if key not in shares}
    return {**entry, "average": {**kept, **shares}}
