"""Which seeds serve which purpose, so that no initial state is trained on, selected on and reported on.

A seed is the integer given to ``env.reset``. The three ranges are disjoint, so a seed tells its use; ``--seed S`` picks a
block of consecutive seeds inside the range.
"""

from collections.abc import Iterable

from dopr_robot.errors import UserError

RANGES = {
    "demonstrations": range(2**30),
    "selection": range(2**30, 3 * 2**29),
    "final": range(3 * 2**29, 2**31),
}
BLOCK = 2**16
"""Seeds in a block, and so the most episodes of one evaluation."""


def block(use: str, seed: int, episodes: int, first: int = 0) -> range:
    """The seeds of episodes ``first .. first + episodes - 1`` of block ``seed`` in the range of ``use``.

    Args:
        use: "demonstrations", "selection" or "final".
        seed: number of the block (what a user types as ``--seed``).
        episodes: how many seeds.
        first: position of the first one inside the block.

    Raises:
        UserError: the block does not exist or is too short.

    >>> block("final", 1, 3)
    range(1610678272, 1610678275)
    """
    whole = RANGES[use]
    blocks = len(whole) // BLOCK
    if not 0 <= seed < blocks:
        raise UserError(f"seed {seed} is outside 0..{blocks - 1}")
    if episodes < 0 or first < 0 or first + episodes > BLOCK:
        raise UserError(
            f"{first + episodes} episodes do not fit into a block of {BLOCK} seeds: take another seed for the rest"
        )
    start = whole.start + seed * BLOCK + first
    return range(start, start + episodes)


def use_of(seed: int) -> str:
    """The use that a seed belongs to: "demonstrations", "selection" or "final"."""
    for use, seeds in RANGES.items():
        if seed in seeds:
            return use
    raise UserError(f"seed {seed} is outside every range: seeds run from 0 to 2**31 - 1")


def require_use(seeds: Iterable[int], use: str) -> None:
    """Refuse seeds of another range. Raises UserError naming the first one."""
    for seed in seeds:
        if (found := use_of(seed)) != use:
            raise UserError(
                f"seed {seed} belongs to {found}, not to {use}: figures of one use are never made from seeds of another"
            )
