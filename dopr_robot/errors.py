"""Errors that a user can mend. Each message is one line that names the value and the mend.

The command turns a :class:`UserError` into that line on stderr and exit code 2; a library user sees an ordinary exception.
"""

import difflib
import logging
from collections.abc import Iterable

LISTED = 20
"""A message with a hint lists the known names up to so many."""


class DoprError(Exception):
    """Root of every error raised on purpose by this package."""


class UserError(DoprError, ValueError):
    """Something asked for cannot be done as asked: a wrong name, value, path or combination."""


class UnknownNameError(UserError):
    """A name that is not in a registry, answered with the closest one that is.

    >>> str(UnknownNameError("policy", "flow_unit", ["flow_unet", "diffusion_unet"]))
    "unknown policy 'flow_unit': did you mean 'flow_unet'? (known: diffusion_unet, flow_unet)"

    Args:
        kind, name: of what is not known.
        known: what there is.
        close: the one that is named; by default the :func:`closest`, and none where it is empty.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], close: str | None = None) -> None:
        known = sorted(set(known))
        if close is None:
            close = closest(name, known)
        hint = f": did you mean {close!r}?" if close else ""
        if not close or len(known) <= LISTED:  # a long list buries the hint
            hint += f" (known: {', '.join(known)})"
        super().__init__(f"unknown {kind} {name!r}{hint}")


class MissingExtraError(UserError):
    """A package that lives in an optional extra is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs a package that is not installed: pip install 'dopr-robot[{extra}]'")


class DamagedError(DoprError):
    """A file or store whose content contradicts itself."""


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that looks most like ``name``, or None where nothing is close; case and namespace do not count."""

    def bare(text: str) -> str:
        return text.rsplit("/", 1)[-1].lower()

    by_bare = {bare(candidate): candidate for candidate in known}
    match = difflib.get_close_matches(bare(name), by_bare, n=1, cutoff=0.5)
    return by_bare[match[0]] if match else None


def errors_only(record: logging.LogRecord) -> bool:
    """A filter for the logger of a package that warns of its own set-up whenever it is imported: what it reports as an error passes.

    A filter and not a level, since such a package sets the level of its logger anew while it is imported.
    """
    return record.levelno >= logging.ERROR
