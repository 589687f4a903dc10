"""What people look at: plots, pages, pictures and videos. The names below are found when they are asked for."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dopr_robot.evaluation.reports.about_run import RunDescription
    from dopr_robot.evaluation.reports.about_store import StoreDescription, histogram, store_summary
    from dopr_robot.evaluation.reports.store import action_text

_LAZY = {
    "RunDescription": "about_run",
    "StoreDescription": "about_store",
    "action_text": "store",
    "histogram": "about_store",
    "store_summary": "about_store",
}
__all__ = ["RunDescription", "StoreDescription", "action_text", "histogram", "store_summary"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"dopr_robot.evaluation.reports.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
