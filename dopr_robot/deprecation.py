"""Names that have moved: the old one works for a release more, and says where the new one is."""

import pkgutil
import warnings
from typing import Any


def moved(old: str, new: str, *, gone_in: str, stacklevel: int = 3) -> Any:
    """What ``new`` names, after a DeprecationWarning at the place that asked for ``old``; for a module's ``__getattr__``.

    >>> def __getattr__(name):
    ...     if name in FORMER:
    ...         return moved(f"{__name__}.{name}", FORMER[name], gone_in="0.3")
    ...     raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    Args:
        old, new: dotted names.
        gone_in: the release that no longer has the old one.
        stacklevel: of the warning; 3: the caller of the ``__getattr__`` that calls this.
    """
    warnings.warn(f"{old} is now {new}; the old name goes with {gone_in}", DeprecationWarning, stacklevel=stacklevel)
    return pkgutil.resolve_name(new)
