"""DAPG's demonstrations (github.com/aravindr93/hand_dapg), in: a pickled list of dicts of arrays.

A pickle can run code while it is read. This one is read by an unpickler that admits numpy's arrays and numbers and
refuses everything else by name, before anything of it is made.

Each dict has ``observations [T, D]`` and ``actions [T, A]``; ``rewards`` and what ``env_infos`` holds with a row a step are kept
as keys, ``init_state_dict`` and single numbers as ``meta/<name>``. An episode succeeded where ``env_infos/goal_achieved`` is ever true. The
task is told by the sizes of observation and action.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dopr_robot.datasets.attributes import Attributes
from dopr_robot.datasets.episode import Episode
from dopr_robot.datasets.formats.adroit import START, task_of
from dopr_robot.datasets.formats.format import FORMATS, Format, one_line, some
from dopr_robot.datasets.recording import Recording
from dopr_robot.errors import UserError

NAME = "dapg"
EXPECTED = "a list of dicts with observations and actions"


def read(path: Path) -> Recording:
    with path.open("rb") as file:
        try:
            episodes = _ArraysOnly(file, encoding="latin1").load()
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        except Exception as error:  # a truncated or garbled pickle raises nearly anything
            raise UserError(f"{path}: cannot be read as a pickle ({one_line(error)})") from error
    if not isinstance(episodes, list | tuple) or not all(isinstance(episode, dict) for episode in episodes):
        raise UserError(f"{path}: found {_kind(episodes)}; expected {EXPECTED}")
    about = Attributes(observations=("observation",), source="DAPG demonstrations")
    first = episodes[0] if episodes else {}
    shapes = (getattr(first.get(name), "shape", ()) for name in ("observations", "actions"))
    return Recording(about, _episodes(path, list(episodes)), named=task_of(*shapes))


def _episodes(path: Path, episodes: list[dict[str, Any]]) -> Iterator[Episode]:
    for index, episode in enumerate(episodes):
        if not {"observations", "actions"} <= set(episode):
            raise UserError(f"{path}: found {some(sorted(map(str, episode)))}; expected {EXPECTED} (episode {index})")
        arrays: dict[str, NDArray[Any]] = {}
        meta: dict[str, Any] = {}
        flat = {name: _array(path, index, name, value) for name, value in _flat(episode).items()}
        if flat.get("actions", np.zeros(())).ndim == 0:
            raise UserError(f"{path}: actions: is {_kind(episode['actions'])}: an array is expected (episode {index})")
        steps = len(flat["actions"])
        for name, array in flat.items():
            key = {"observations": "observation", "actions": "action"}.get(name, name)
            expected = name in ("observations", "actions", "rewards") or name.startswith("env_infos/")
            if array.ndim and (len(array) == steps or expected) and not name.startswith(f"{START}/"):
                arrays[key] = array
            else:
                meta[key] = array if array.ndim else array[()]
        reached = arrays.get("env_infos/goal_achieved")
        yield Episode(arrays, success=None if reached is None else bool((reached > 0).any()), meta=meta)


def _array(path: Path, index: int, name: str, value: Any) -> NDArray[Any]:
    try:
        array = np.asarray(value)
    except ValueError:
        raise UserError(f"{path}: {name}: its entries differ in shape (episode {index})") from None
    if array.dtype.kind not in "biufU":
        raise UserError(f"{path}: {name}: is {_kind(value)}: numbers were expected (episode {index})")
    return array


def _flat(value: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, entry in value.items():
        if isinstance(entry, Mapping):
            found |= _flat(entry, f"{prefix}{name}/")
        elif entry is not None:
            found[f"{prefix}{name}"] = entry
    return found


def _kind(value: Any) -> str:
    if isinstance(value, list | tuple):
        return (
            f"a {type(value).__name__} of {', '.join(sorted({type(entry).__name__ for entry in value})) or 'nothing'}"
        )
    return f"a {type(value).__name__}"


def _encode(text: str, encoding: str) -> bytes:
    """What ``_codecs.encode`` is in a pickle of bytes before protocol 3, and no more."""
    if encoding not in ("latin1", "latin-1"):
        raise UserError(f"names the encoding {encoding!r}: only numpy arrays are admitted")
    return text.encode("latin1")


_SCALAR: Any = np.float64(0).__reduce__()[0]
"""numpy's own maker of numbers, which numpy 1 keeps in numpy.core and numpy 2 in numpy._core."""


class _ArraysOnly(pickle.Unpickler):
    """Makes numpy arrays and numbers, and refuses every other name. Raises UserError."""

    def find_class(self, module: str, name: str) -> Any:
        where = module.replace("numpy._core", "numpy.core")
        admitted: dict[tuple[str, str], Callable[..., Any]] = {
            ("numpy", "ndarray"): _ArrayType,
            ("numpy", "dtype"): np.dtype,
            ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
            ("numpy.core.multiarray", "scalar"): _SCALAR,
            ("numpy.core.numeric", "_frombuffer"): _frombuffer,
            ("_codecs", "encode"): _encode,
        }
        if (where, name) not in admitted:
            raise UserError(
                f"wants to use {module}.{name}: only numpy arrays are admitted, since a pickle can run code"
            )
        return admitted[where, name]

    def persistent_load(self, pid: Any) -> Any:
        raise UserError(f"refers to something outside itself ({pid!r}): only numpy arrays are admitted")


class _ArrayType:
    """Stands for the class of an array in a pickle, which is only named there: called, it would take memory without content."""

    def __init__(self, *_: Any) -> None:
        raise UserError("makes an array without content: only numpy arrays are admitted")


def _reconstruct(kind: Any, shape: Any, _: Any) -> NDArray[Any]:
    """The empty array that a pickle then fills."""
    if kind is not _ArrayType or shape != (0,):
        raise UserError(f"begins an array of shape {shape!r}: only numpy arrays are admitted")
    return np.empty(0, np.int8)


def _frombuffer(buffer: Any, dtype: np.dtype[Any], shape: tuple[int, ...], order: Any) -> NDArray[Any]:
    """numpy's maker of arrays under protocol 5."""
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order)


# A pickle is never taken for one unasked: it has to be named.
FORMATS.register(NAME, Format("a pickled list of dicts of arrays", lambda path: False, read))
