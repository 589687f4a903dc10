"""Training: one loop, its configuration, its checkpoints.

The names below are found when they are asked for, so that a configuration can be checked without torch.
"""

from typing import TYPE_CHECKING

from dopr_robot.lazy import lazy

if TYPE_CHECKING:
    from dopr_robot.training.checkpoints import Checkpoints, find_damage
    from dopr_robot.training.composition import compose_config, config_from, experiment_names, whole_keys
    from dopr_robot.training.config import RunConfig, load_config, write_config
    from dopr_robot.training.data import TrainingData, load_data, to_tensors, validation_loss
    from dopr_robot.training.folder import Run
    from dopr_robot.training.loop import build_optimizer, train
    from dopr_robot.training.metrics import import_tracker, read_metrics
    from dopr_robot.training.processes import from_main
    from dopr_robot.training.signals import Interrupted, deferred_signals

_LAZY = {
    "Checkpoints": "checkpoints",
    "Interrupted": "signals",
    "Run": "folder",
    "RunConfig": "config",
    "TrainingData": "data",
    "build_optimizer": "loop",
    "compose_config": "composition",
    "config_from": "composition",
    "deferred_signals": "signals",
    "experiment_names": "composition",
    "find_damage": "checkpoints",
    "from_main": "processes",
    "import_tracker": "metrics",
    "load_config": "config",
    "load_data": "data",
    "read_metrics": "metrics",
    "to_tensors": "data",
    "train": "loop",
    "validation_loss": "data",
    "whole_keys": "composition",
    "write_config": "config",
}
__all__ = [
    "Checkpoints",
    "Interrupted",
    "Run",
    "RunConfig",
    "TrainingData",
    "build_optimizer",
    "compose_config",
    "config_from",
    "deferred_signals",
    "experiment_names",
    "find_damage",
    "from_main",
    "import_tracker",
    "load_config",
    "load_data",
    "read_metrics",
    "to_tensors",
    "train",
    "validation_loss",
    "whole_keys",
    "write_config",
]


__getattr__ = lazy(__name__, _LAZY)
