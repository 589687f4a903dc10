"""What the entries of a study file are called: whole, in short where people read, and as names of files."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dopr_robot.errors import UserError
from dopr_robot.settings import leaves

LONGEST_NAME = 120
"""Characters of a run's folder; file systems end at 255 bytes, and what is written beside it has a longer name."""


def entry_name(entry: Any) -> str:
    """The registered name in an entry of ``policies`` or ``optimizers``."""
    if isinstance(entry, Mapping):
        if "name" not in entry:
            raise UserError(f"{dict(entry)} has no name: {{name: adamw, weight_decay: 0.01}}")
        return str(entry["name"])
    return str(entry)


def settings(entry: Any) -> dict[str, Any]:
    """What an entry of ``policies`` or ``optimizers`` sets: its name and options, without the label that it is given."""
    if not isinstance(entry, Mapping):
        return {"name": str(entry)}
    return {key: value for key, value in entry.items() if key != "label"}


def label(entry: Any) -> str:
    """An entry in words: the label that it is given, or its name and the options that it sets.

    >>> label({"name": "dopr_adamw", "damping": 0.3})
    'dopr_adamw damping=0.3'
    >>> label({"name": "dopr_adamw", "damping": 0.3, "label": "ours"})
    'ours'
    """
    if isinstance(entry, Mapping) and entry.get("label"):
        return str(entry["label"])
    return " ".join([entry_name(entry), *(f"{key}={value}" for key, value in _options(entry).items())])


def _options(entry: Any) -> dict[str, Any]:
    """By dotted name."""
    return {key: value for key, value in leaves(settings(entry)) if key != "name"}


def file_name(text: str) -> str:
    """A text as the name of a file on any system; a long one is cut and told from the others by a checksum.

    >>> file_name("gym_pusht/PushT-v0 dim=64")
    'gym_pusht-PushT-v0-dim=64'
    """
    name = re.sub(r"[^A-Za-z0-9_.+=-]+", "-", text)
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def short_labels(entries: Sequence[Any]) -> dict[str, str]:
    """What entries are called where people read, by their :func:`label`: the name, and the options that tell those of one name apart.

    >>> short_labels(["adamw", {"name": "dopr_adamw", "damping": 0.1, "rank": 8}, {"name": "dopr_adamw", "damping": 0.3, "rank": 8}])
    {'adamw': 'adamw', 'dopr_adamw damping=0.1 rank=8': 'dopr_adamw damping=0.1', 'dopr_adamw damping=0.3 rank=8': 'dopr_adamw damping=0.3'}
    """
    options = {label(entry): _options(entry) for entry in entries}
    names = {label(entry): entry_name(entry) for entry in entries}
    given = {label(entry) for entry in entries if isinstance(entry, Mapping) and entry.get("label")}
    short = {}
    for whole, own in options.items():
        alike = [options[other] for other, name in names.items() if name == names[whole]]
        telling = [f"{key}={value}" for key, value in own.items() if any(other.get(key) != value for other in alike)]
        short[whole] = whole if whole in given else " ".join([names[whole], *telling])
    return short
