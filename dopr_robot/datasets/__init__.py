"""Demonstrations: the store, its windows and statistics, and other people's formats."""

from dopr_robot.datasets.attributes import ActionAttributes, Attributes
from dopr_robot.datasets.check import Finding, Report, check, repair
from dopr_robot.datasets.episode import Episode
from dopr_robot.datasets.layout import KeyInfo
from dopr_robot.datasets.opening import is_store
from dopr_robot.datasets.recording import Recording, read_store, write_store
from dopr_robot.datasets.sampling import batch_indices, split_episodes
from dopr_robot.datasets.statistics import statistics
from dopr_robot.datasets.store import Store
from dopr_robot.datasets.windows import Batch, Windows

__all__ = [
    "ActionAttributes",
    "Attributes",
    "Batch",
    "Episode",
    "Finding",
    "KeyInfo",
    "Recording",
    "Report",
    "Store",
    "Windows",
    "batch_indices",
    "check",
    "is_store",
    "read_store",
    "repair",
    "split_episodes",
    "statistics",
    "write_store",
]
