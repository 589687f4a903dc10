"""Names of a package that are found when they are asked for, so that importing it costs nothing of weight."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy(package: str, places: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's ``__getattr__``.

    Args:
        package: its name.
        places: the module inside it that each name is in, ``{"Run": "folder"}``.

    >>> __getattr__ = lazy("dopr_robot", {"UserError": "errors"})
    >>> __getattr__("UserError").__module__
    'dopr_robot.errors'
    """

    def found(name: str) -> Any:
        if name in places:
            return getattr(import_module(f"{package}.{places[name]}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return found
