"""D4RL's HDF5 (github.com/Farama-Foundation/D4RL/wiki): all steps of all episodes in flat arrays, in.

``observations [N, D]``, ``actions [N, A]``, ``rewards``, ``terminals`` and ``timeouts`` ``[N]``, and ``infos/<name>``,
``next_observations`` where there are some. An episode ends where ``terminals`` or ``timeouts`` is true; steps after the last
such place are an episode that was cut off. ``metadata`` is kept in the attribute ``carried``. The Adroit hand is
told by the sizes of observation and action, and the state in which an episode began by the first of ``infos/qpos`` and what is beside it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from dopr_robot.datasets.attributes import Attributes
from dopr_robot.datasets.episode import Episode
from dopr_robot.datasets.formats import hdf5
from dopr_robot.datasets.formats.adroit import start_of, task_of
from dopr_robot.datasets.formats.format import FORMATS, Format, some
from dopr_robot.datasets.recording import Recording
from dopr_robot.errors import UserError

LOG = logging.getLogger(__name__)
NAME = "d4rl"
EXPECTED = "observations, actions, and terminals or timeouts"
KEYS = {"actions": "action", "observations": "observation"}
BLOCK = 4096


def recognises(path: Path) -> bool:
    found = hdf5.names(path)
    return {"observations", "actions"} <= found and bool({"terminals", "timeouts"} & found)


def read(path: Path) -> Recording:
    with hdf5.open_hdf5(path) as file:
        keys, ends = _layout(path, file)
        named = task_of(file["observations"].shape, file["actions"].shape)
        carried = {
            "keys": {KEYS.get(name, name): name for name in keys},
            "file": hdf5.attributes(file),
            "rest": hdf5.rest(file, {*(name.split("/")[0] for name in keys)}),
        }
    about = Attributes(observations=("observation",), source="D4RL data set", carried={NAME: carried})
    return Recording(about, _episodes(path, keys, ends), named=named)


def _layout(path: Path, file: h5py.File) -> tuple[list[str], NDArray[np.int64]]:
    """The data sets with a row a step, and the exclusive ends of the episodes."""
    found = {name: each for name, each in hdf5.datasets(file).items() if not name.startswith("metadata/")}
    if not {"observations", "actions"} <= set(found) or not {"terminals", "timeouts"} & set(found):
        raise UserError(f"{path}: found {some(sorted(found))}; expected {EXPECTED}")
    steps = hdf5.length(found["actions"])
    per_step = [name for name, each in found.items() if hdf5.length(each) == steps or "/" in name or name in STEPS]
    for name in per_step:
        if hdf5.length(found[name]) != steps:
            raise UserError(f"{path}: {name}: has {hdf5.length(found[name])} steps and actions {steps}")
    if found["actions"].ndim != 2 or not steps:
        raise UserError(f"{path}: actions: is of shape {list(found['actions'].shape)}: [steps, entries] is expected")
    flags = [_flag(path, name, found[name], steps) for name in FLAGS if name in found]
    ended = np.flatnonzero(np.logical_or.reduce(flags)) + 1
    if not len(ended):
        raise UserError(
            f"{path}: found no true entry in {' or '.join(name for name in FLAGS if name in found)}: where do episodes end?"
        )
    ends = ended if ended[-1] == steps else np.append(ended, steps)
    again = int((np.diff(ended) == 1).sum())
    if again:
        LOG.warning(
            "%s: %s stay true for several steps on end, and an episode ends at each of them: %d of %d episodes have one step "
            "(dopr edit STORE OUT --length 2: leaves them out)",
            path,
            " or ".join(name for name in FLAGS if name in found),
            again,
            len(ends),
        )
    return per_step, ends


def _flag(path: Path, name: str, dataset: h5py.Dataset, steps: int) -> NDArray[np.bool_]:
    """A flag a step, ``[N]`` or ``[N, 1]``."""
    if dataset.shape not in ((steps,), (steps, 1)) or dataset.dtype.kind not in "biuf":
        raise UserError(f"{path}: {name}: is {dataset.dtype}{list(dataset.shape)}: a flag a step is expected")
    return hdf5.read(dataset, name, None).astype(bool).ravel()


FLAGS = ("terminals", "timeouts")
STEPS = (*KEYS, *FLAGS, "rewards", "next_observations")


def _episodes(path: Path, keys: list[str], ends: NDArray[np.int64]) -> Iterator[Episode]:
    with hdf5.open_hdf5(path) as file:
        # Many episodes are read at once: short ones in a compressed file would each cost a chunk.
        done = 0
        while done < len(ends):
            first = int(ends[done - 1]) if done else 0
            until = max(int(np.searchsorted(ends, first + BLOCK, side="right")), done + 1)
            rows = slice(first, int(ends[until - 1]))
            block = {KEYS.get(name, name): hdf5.read(file[name], name, done, rows) for name in keys}
            for start, stop in zip((first, *ends[done : until - 1]), ends[done:until], strict=True):
                arrays = {key: value[start - first : stop - first] for key, value in block.items()}
                yield Episode(arrays, meta=start_of(arrays))
            done = until


FORMATS.register(NAME, Format("HDF5 with flat observations, actions, terminals", recognises, read))
