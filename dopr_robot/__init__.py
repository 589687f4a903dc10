"""dopr_robot: robot imitation learning under double preconditioning, judged by success versus horizon.

Importing this package loads nothing of weight: the names below are found when they are asked for.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "DoPr": "dopr_robot.optim",
    "Store": "dopr_robot.datasets",
    "load_policy": "dopr_robot.policies",
}
__all__ = ["DoPr", "Store", "__version__", "load_policy"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
