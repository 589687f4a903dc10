"""Rollouts, success versus horizon, and what can be said of it.

``rollouts`` has a policy in its environments, ``statistics`` what can be said of the records, ``reports`` what people look at; the files
here put them together. The names below are found when they are asked for, since most of them need torch.
"""

from typing import TYPE_CHECKING, Any

from dopr_robot.deprecation import moved
from dopr_robot.lazy import lazy

if TYPE_CHECKING:
    from dopr_robot.evaluation.evaluator import run_evaluation
    from dopr_robot.evaluation.feedback import MEASURES
    from dopr_robot.evaluation.results import Results
    from dopr_robot.evaluation.rollouts.plan import Evaluation
    from dopr_robot.evaluation.rollouts.records import EpisodeRecord, RecordWriter, read_records, read_results
    from dopr_robot.evaluation.rollouts.rollout import Rollout

_LAZY = {
    "EpisodeRecord": "rollouts.records",
    "Evaluation": "rollouts.plan",
    "MEASURES": "feedback",
    "RecordWriter": "rollouts.records",
    "Results": "results",
    "Rollout": "rollouts.rollout",
    "read_records": "rollouts.records",
    "read_results": "rollouts.records",
    "run_evaluation": "evaluator",
}
__all__ = [
    "MEASURES",
    "EpisodeRecord",
    "Evaluation",
    "RecordWriter",
    "Results",
    "Rollout",
    "read_records",
    "read_results",
    "run_evaluation",
]


_found = lazy(__name__, _LAZY)


def __getattr__(name: str) -> Any:
    if name == "seeds":
        return moved("dopr_robot.evaluation.seeds", "dopr_robot.seeds", gone_in="0.3")
    return _found(name)
