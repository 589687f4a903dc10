"""Demonstrations: the store, its windows and statistics, and other people's formats."""

from dopr_robot.datasets.attributes import ActionAttributes, Attributes
from dopr_robot.datasets.sampling import batch_indices, split_episodes
from dopr_robot.datasets.statistics import statistics
from dopr_robot.datasets.store import KeyInfo, Store
from dopr_robot.datasets.windows import Batch, Windows

__all__ = [
    "ActionAttributes",
    "Attributes",
    "Batch",
    "KeyInfo",
    "Store",
    "Windows",
    "batch_indices",
    "split_episodes",
    "statistics",
]
