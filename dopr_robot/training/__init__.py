"""Training: one loop, its configuration, its checkpoints.

The names below are found when they are asked for, so that a configuration can be checked without torch.
"""

from importlib import import_module
from typing import Any

_LAZY = {
    "Checkpoints": "checkpoints",
    "Interrupted": "signals",
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
    "write_config": "config",
}
__all__ = sorted(_LAZY)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"dopr_robot.training.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
