"""dopr_robot: robot imitation learning under double preconditioning, judged by success versus horizon.

The names below are the public interface. Importing this package loads nothing of weight: they are found when they are asked for.

>>> import dopr_robot as dopr                                                          # doctest: +SKIP
>>> dopr.collect("PickPlace", 250, "data/pick_place.zarr")                             # doctest: +SKIP
>>> run = dopr.train("pick_place")                                                     # doctest: +SKIP
>>> dopr.evaluate(run, episodes=100).curve                                             # doctest: +SKIP
"""

from typing import TYPE_CHECKING

from dopr_robot.lazy import lazy

if TYPE_CHECKING:
    from dopr_robot.catalogue import (
        describe_task,
        explain,
        list_data,
        list_optimizers,
        list_policies,
        list_runs,
        list_tasks,
        versions,
    )
    from dopr_robot.collection.collect import collect
    from dopr_robot.collection.convert import convert
    from dopr_robot.collection.edit import edit
    from dopr_robot.collection.replay import check_store
    from dopr_robot.collection.several import collect_several
    from dopr_robot.datasets import Store, Windows, repair
    from dopr_robot.envs import make, make_vec
    from dopr_robot.envs.conformance import check_task
    from dopr_robot.errors import DoprError, UserError
    from dopr_robot.evaluation.compare import Comparison, compare
    from dopr_robot.evaluation.evaluate import evaluate
    from dopr_robot.evaluation.feedback import Feedback, feedback
    from dopr_robot.evaluation.push import push
    from dopr_robot.evaluation.render import render
    from dopr_robot.evaluation.results import Curve, Results
    from dopr_robot.experiment import configuration, train
    from dopr_robot.hub import fetch
    from dopr_robot.inspection import info
    from dopr_robot.optim import DoPr
    from dopr_robot.policies import load_policy
    from dopr_robot.study.run import StudyResult, run_study
    from dopr_robot.training import Interrupted, Run

__version__ = "0.1.0"

_LAZY = {
    "Comparison": "evaluation.compare",
    "Curve": "evaluation.results",
    "DoPr": "optim",
    "DoprError": "errors",
    "Feedback": "evaluation.feedback",
    "Interrupted": "training",
    "Results": "evaluation.results",
    "Run": "training",
    "Store": "datasets",
    "StudyResult": "study.run",
    "UserError": "errors",
    "Windows": "datasets",
    "check_store": "collection.replay",
    "check_task": "envs.conformance",
    "collect": "collection.collect",
    "collect_several": "collection.several",
    "compare": "evaluation.compare",
    "configuration": "experiment",
    "convert": "collection.convert",
    "describe_task": "catalogue",
    "edit": "collection.edit",
    "evaluate": "evaluation.evaluate",
    "explain": "catalogue",
    "feedback": "evaluation.feedback",
    "fetch": "hub",
    "info": "inspection",
    "list_data": "catalogue",
    "list_optimizers": "catalogue",
    "list_policies": "catalogue",
    "list_runs": "catalogue",
    "list_tasks": "catalogue",
    "load_policy": "policies",
    "make": "envs",
    "make_vec": "envs",
    "push": "evaluation.push",
    "render": "evaluation.render",
    "repair": "datasets",
    "run_study": "study.run",
    "train": "experiment",
    "versions": "catalogue",
}
__all__ = [
    "Comparison",
    "Curve",
    "DoPr",
    "DoprError",
    "Feedback",
    "Interrupted",
    "Results",
    "Run",
    "Store",
    "StudyResult",
    "UserError",
    "Windows",
    "__version__",
    "check_store",
    "check_task",
    "collect",
    "collect_several",
    "compare",
    "configuration",
    "convert",
    "describe_task",
    "edit",
    "evaluate",
    "explain",
    "feedback",
    "fetch",
    "info",
    "list_data",
    "list_optimizers",
    "list_policies",
    "list_runs",
    "list_tasks",
    "load_policy",
    "make",
    "make_vec",
    "push",
    "render",
    "repair",
    "run_study",
    "train",
    "versions",
]


__getattr__ = lazy(__name__, _LAZY)


def __dir__() -> list[str]:
    return sorted(__all__)
