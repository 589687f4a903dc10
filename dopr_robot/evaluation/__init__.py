"""Rollouts, success versus horizon, and what can be said of it."""

from dopr_robot.evaluation.evaluate import evaluate, read_results, report
from dopr_robot.evaluation.plan import Evaluation
from dopr_robot.evaluation.records import EpisodeRecord, RecordWriter, read_records
from dopr_robot.evaluation.rollout import Rollout

__all__ = [
    "EpisodeRecord",
    "Evaluation",
    "RecordWriter",
    "Rollout",
    "evaluate",
    "read_records",
    "read_results",
    "report",
]
