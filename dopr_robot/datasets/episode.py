"""One demonstration, and what it has to be like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dopr_robot.datasets.layout import KeyInfo
from dopr_robot.errors import UserError

UNKNOWN = -1
"""Stands in ``meta/seed`` and ``meta/success`` where nothing is known."""


@dataclass
class Episode:
    """One demonstration: ``arrays {key: [T, ...]}``, its seed and success where known, and whatever else belongs to it."""

    arrays: dict[str, NDArray[Any]]
    seed: int | None = None
    success: bool | None = None
    meta: dict[str, Any] = field(default_factory=dict)


def check_episode(where: str, index: int, episode: Mapping[str, NDArray[Any]], known: Mapping[str, KeyInfo]) -> int:
    """Whether an episode is one, and like those before it (``known``, empty for the first).

    Returns:
        its number of steps.

    Raises UserError, naming ``where``, the key and the episode.
    """
    if not episode:
        raise UserError(f"{where}: an episode without any key cannot be appended (episode {index})")
    lengths = {key: len(value) if value.ndim else 0 for key, value in episode.items()}
    length = next(iter(lengths.values()))
    for key, n in lengths.items():
        if not all(part not in ("", ".", "..") for part in key.split("/")):
            raise UserError(f"{where}: {key!r} is no name of a key: parts between slashes cannot be empty, . or ..")
        if n != length or n == 0:
            raise UserError(
                f"{where}: {key}: has {n} steps and others {length}: all need the same number, above 0 (episode {index})"
            )
    if known and set(known) != set(episode):
        missing, new = sorted(set(known) - set(episode)), sorted(set(episode) - set(known))
        raise UserError(
            f"{where}: keys differ from the first episode's: missing: {missing}, new: {new} (episode {index})"
        )
    for key, info in known.items():
        value = episode[key]
        if value.shape[1:] != info.shape or not (
            value.dtype == info.dtype or {value.dtype.kind, info.dtype.kind} <= {"O", "T"}
        ):
            raise UserError(
                f"{where}: {key}: is {value.dtype}{list(value.shape[1:])} a step, the first episode's "
                f"{info.dtype}{list(info.shape)} (episode {index})"
            )
    return length


def as_array(value: ArrayLike) -> NDArray[Any]:
    """An array that zarr takes: in the machine's byte order; texts as Python objects, whatever numpy's version."""
    array = np.asarray(value)
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8")
    if array.dtype.kind in "UT":
        return array.astype(object)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
