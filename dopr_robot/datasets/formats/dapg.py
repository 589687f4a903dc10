"""DAPG's demonstrations (github.com/aravindr93/hand_dapg), in: a pickled list of dicts of arrays.

A pickle can run code while it is read. This one is read by an unpickler that admits numpy's arrays and numbers and
refuses everything else by name, before anything of it is made.

Each dict has ``observations [T, D]`` and ``actions [T, A]``; ``rewards`` and what ``env_infos`` holds with a row a step are kept
as keys, ``init_state_dict`` and single numbers as ``meta/<name>``.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dopr_robot.datasets.attributes import Attributes
from dopr_robot.datasets.formats.format import FORMATS, Format, one_line, some
from dopr_robot.datasets.recording import Episode, Recording
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
    return Recording(about, _episodes(path, list(episodes)))


def _episodes(path: Path, episodes: list[dict[str, Any]]) -> Iterator[Episode]:
    for index, episode in enumerate(episodes):
        if not {"observations", "actions"} <= set(episode):
            raise UserError(f"{path}: found {some(sorted(map(str, episode)))}; expected {EXPECTED} (episode {index})")
        arrays: dict[str, NDArray[Any]] = {}
        meta: dict[str, Any] = {}
        steps = len(np.atleast_1d(episode["actions"]))
        for name, value in _flat(episode).items():
            try:
                array = np.asarray(value)
            except ValueError:
                raise UserError(f"{path}: {name}: its entries differ in shape (episode {index})") from None
            if array.dtype.kind not in "biufU":
                raise UserError(f"{path}: {name}: is {_kind(value)}: numbers were expected (episode {index})")
            key = {"observations": "observation", "actions": "action"}.get(name, name)
            expected = name in ("observations", "actions", "rewards") or name.startswith("env_infos/")
            if array.ndim and (len(array) == steps or expected) and not name.startswith("init_state_dict/"):
                arrays[key] = array
            else:
                meta[key] = array if array.ndim else array[()]
        yield Episode(arrays, meta=meta)


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


class _ArraysOnly(pickle.Unpickler):
    """Makes numpy arrays and numbers, and refuses every other name. Raises UserError."""

    def find_class(self, module: str, name: str) -> Any:
        where = module.replace("numpy._core", "numpy.core")
        admitted: dict[tuple[str, str], Callable[..., Any]] = {
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("numpy.core.multiarray", "_reconstruct"): _multiarray("_reconstruct"),
            ("numpy.core.multiarray", "scalar"): _multiarray("scalar"),
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


def _multiarray(name: str) -> Any:
    """numpy's own maker of arrays, wherever this numpy keeps it."""
    core = getattr(np, "_core", None) or np.core  # type: ignore[attr-defined]
    return getattr(core.multiarray, name)


def _frombuffer(buffer: Any, dtype: np.dtype[Any], shape: tuple[int, ...], order: Any) -> NDArray[Any]:
    """numpy's maker of arrays under protocol 5."""
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order)


# A pickle is never taken for one unasked: it has to be named.
FORMATS.register(NAME, Format("a pickled list of dicts of arrays", lambda path: False, read))
