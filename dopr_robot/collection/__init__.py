"""Demonstrations: made by experts or from few, replayed, brought from other formats, edited, checked against their task.

The names below are found when they are asked for, so that importing one costs what it needs alone.
"""

from typing import TYPE_CHECKING

from dopr_robot.lazy import lazy

if TYPE_CHECKING:
    from dopr_robot.collection.experts import Demonstration, demonstrations, measure_expert
    from dopr_robot.collection.replay import check_store, executed_actions, replaying
    from dopr_robot.collection.transformation import SegmentExpert

_LAZY = {
    "Demonstration": "experts",
    "SegmentExpert": "transformation",
    "check_store": "replay",
    "demonstrations": "experts",
    "executed_actions": "replay",
    "measure_expert": "experts",
    "replaying": "replay",
}
__all__ = [
    "Demonstration",
    "SegmentExpert",
    "check_store",
    "demonstrations",
    "executed_actions",
    "measure_expert",
    "replaying",
]


__getattr__ = lazy(__name__, _LAZY)
