"""Rollouts, success versus horizon, and what can be said of it.

The names below are found when they are asked for, so that the ranges of seeds cost no import of torch.
"""

from importlib import import_module
from typing import Any

_LAZY = {
    "EpisodeRecord": "records",
    "Evaluation": "plan",
    "RecordWriter": "records",
    "Rollout": "rollout",
    "evaluate": "evaluator",
    "read_records": "records",
    "read_results": "records",
}
__all__ = ["EpisodeRecord", "Evaluation", "RecordWriter", "Rollout", "evaluate", "read_records", "read_results"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"dopr_robot.evaluation.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
