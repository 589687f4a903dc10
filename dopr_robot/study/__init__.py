"""Matched comparisons: arms that differ in one thing, over tasks, policies, optimizers, learning rates and seeds.

The names below are found when they are asked for, so that a study file can be checked without torch.
"""

from typing import TYPE_CHECKING

from dopr_robot.lazy import lazy

if TYPE_CHECKING:
    from dopr_robot.study.config import Arm, Study
    from dopr_robot.study.file import load_study
    from dopr_robot.study.run import run_study

_LAZY = {"Arm": "config", "Study": "config", "load_study": "file", "run_study": "run"}
__all__ = ["Arm", "Study", "load_study", "run_study"]


__getattr__ = lazy(__name__, _LAZY)
