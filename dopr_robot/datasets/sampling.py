"""Which episodes and which windows, in which order: functions of their arguments alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dopr_robot.errors import UserError


def split_episodes(n: int, validation_fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split episodes 0..n-1 into training and validation, both in increasing order.

    At least one episode is validation where the fraction is above 0 and there are two episodes or more; at least one
    always trains.

    >>> split_episodes(5, 0.2, seed=0)
    (array([0, 1, 3, 4]), array([2]))
    """
    if not 0 <= validation_fraction < 1:
        raise UserError(f"validation_fraction is {validation_fraction}: it must be in [0, 1)")
    held_out = min(max(round(n * validation_fraction), 1), n - 1) if validation_fraction > 0 and n > 1 else 0
    order = np.random.default_rng(seed).permutation(n)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def batch_indices(
    n: int, batch_size: int, seed: int, epoch: int, rank: int = 0, world_size: int = 1
) -> list[NDArray[np.int64]]:
    """One epoch's batches of window indices for one rank, in order.

    The order is a function of the arguments alone, so step k of an epoch is the same after a resume. The ranks share
    the epoch's permutation without overlap and have equally many batches; what does not fill a batch is left out,
    except where there would be none at all.

    Returns:
        int64 arrays ``[batch_size]``.
    """
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}: it must be at least 1")
    if not 0 <= rank < world_size:
        raise UserError(f"rank is {rank}: it must be in [0, {world_size})")
    if n < world_size:
        raise UserError(f"{n} windows cannot be shared by {world_size} processes: use fewer processes or more data")
    order = np.random.default_rng((seed, epoch)).permutation(n)
    mine = order[: n - n % world_size][rank::world_size]
    if len(mine) < batch_size:
        return [mine]
    return list(mine[: len(mine) - len(mine) % batch_size].reshape(-1, batch_size))
