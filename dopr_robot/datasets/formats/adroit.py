"""What DAPG's and D4RL's files of the Adroit hand have in common: they name no task, and begin in a recorded state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

START = "init_state_dict"
"""``meta/init_state_dict/<name>``: the simulator's state in which an episode began, by its parts. The name is DAPG's."""
_TASKS = {
    (39, 28): "AdroitHandDoor-v1",
    (46, 26): "AdroitHandHammer-v1",
    (45, 24): "AdroitHandPen-v1",
    (39, 30): "AdroitHandRelocate-v1",
}
"""By the sizes of an observation and an action, which no other public set of these formats has."""


def task_of(observation: tuple[int, ...], action: tuple[int, ...]) -> str | None:
    """The task that the shapes ``[T, D]`` and ``[T, A]`` are of, None where it is another."""
    return _TASKS.get((observation[1], action[1])) if len(observation) == len(action) == 2 else None


def start_of(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """The state in which an episode began, as entries of ``meta``, where every step's is among its arrays (``infos/qpos``)."""
    if "infos/qpos" not in arrays or "infos/qvel" not in arrays:
        return {}
    names = [name for name in arrays if name.startswith("infos/") and name.count("/") == 1]
    return {f"{START}/{name.removeprefix('infos/')}": arrays[name][0] for name in names if arrays[name].ndim == 2}
