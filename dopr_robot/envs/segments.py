"""What a task says of itself so that few demonstrations become many (:mod:`dopr_robot.collection.transformation`)."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
"""Numbers, of a shape that is said."""
Arrays = Mapping[str, NDArray[Any]]
"""A store's arrays by key, ``[steps, ...]``."""


@dataclass(frozen=True)
class Segment:
    """A part of every demonstration of a task.

    Attributes:
        object: what the hand's poses are relative to.
        symmetry: how many turns about its own z axis leave the object as it was (4: a cube); the smallest one is taken.
    """

    object: str
    symmetry: int = 1


class SegmentedTask(ABC):
    """What the transformation needs to know of a task. Poses are homogeneous matrices ``[n, 4, 4]``, in metres, in one fixed frame.

    ``hand`` and ``objects`` read arrays of n rows: the steps of a source, or what the n copies of the environment show now.

    Args:
        env: a batch of copies.
    """

    keys: ClassVar[Mapping[str, tuple[int, ...]]]
    """What a source has to hold, with the shape of a step."""
    segments: ClassVar[tuple[Segment, ...]]
    noise: ClassVar[Floats]
    """As an expert's."""
    gripper: ClassVar[slice]
    """Entries of an action that are copied, not worked out."""
    reach: ClassVar[float]
    turn: ClassVar[float]
    """Metres and radians a step, on the straight ways between segments."""
    lead: ClassVar[int] = 0
    """Steps by which a target is ahead of the hand that follows it, where ``targets`` are poses that the hand has reached."""

    def __init__(self, env: Any) -> None:
        self.env = env

    @abstractmethod
    def observe(self) -> Arrays:
        """The environment's observations now, ``[N, ...]``."""

    @abstractmethod
    def hand(self, arrays: Arrays) -> Floats:
        """The hand's pose at every step."""

    @abstractmethod
    def objects(self, arrays: Arrays) -> dict[str, Floats]:
        """Every object's pose at every step, by its name."""

    @abstractmethod
    def action(self, target: Floats, gripper: Floats) -> Floats:
        """Actions ``[N, A]`` that bring every hand to, or nearer to, a pose, with the gripper's entries as they are."""

    def targets(self, arrays: Arrays) -> Floats:
        """Poses that a source's actions brought the hand to."""
        return self.hand(arrays)

    def split(self, arrays: Arrays) -> tuple[slice, ...]:
        """The steps of every segment. Raises UserError where the source has none of one."""
        return (slice(None),)


def poses(positions: Floats, rotations: Floats) -> Floats:
    """Positions ``[n, 3]`` and rotations ``[n, 3, 3]`` as matrices ``[n, 4, 4]``."""
    matrices = np.tile(np.eye(4), (len(positions), 1, 1))
    matrices[:, :3, :3], matrices[:, :3, 3] = rotations, positions
    return matrices
