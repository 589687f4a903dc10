"""Matched comparisons: arms that differ in one thing, over tasks, policies, optimizers, learning rates and seeds.

The names below are found when they are asked for, so that a study file can be checked without torch.
"""

from importlib import import_module
from typing import Any

_LAZY = {"Arm": "config", "Study": "config", "load_study": "config", "run_study": "run"}
__all__ = ["Arm", "Study", "load_study", "run_study"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"dopr_robot.study.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
