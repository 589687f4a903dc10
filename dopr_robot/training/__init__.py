"""Training: one loop, its configuration, its checkpoints."""

from dopr_robot.training.checkpoints import Checkpoints, find_damage
from dopr_robot.training.config import (
    RunConfig,
    compose_config,
    config_from,
    experiment_names,
    load_config,
    write_config,
)
from dopr_robot.training.data import TrainingData, load_data, to_tensors, validation_loss
from dopr_robot.training.loop import build_optimizer, train
from dopr_robot.training.metrics import import_tracker, read_metrics
from dopr_robot.training.processes import from_main
from dopr_robot.training.signals import Interrupted, deferred_signals

__all__ = [
    "Checkpoints",
    "Interrupted",
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
    "write_config",
]
