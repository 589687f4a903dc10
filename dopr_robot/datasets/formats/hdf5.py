"""HDF5 as the formats that sit on it need it: opened safely, read with errors that name the place, attributes as JSON and back.

This is where the bytes of somebody else's file become checked values. What the library finds wrong while a file is open is told by
:func:`open_hdf5`, in one line; how much a file may take is checked before anything is decoded.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from dopr_robot.datasets.formats.format import natural, one_line, some
from dopr_robot.datasets.windows import physical_bytes
from dopr_robot.errors import UserError

INLINE = 64
"""Arrays up to so many numbers are written as numbers in JSON, larger ones as base64."""
UNQUESTIONED = 64 * 1024**2
"""Bytes that an array may take whatever its file holds."""
LARGEST_RATIO = 1100
"""Decoded to stored bytes that a larger array may have: deflate reaches 1032."""
DEEPEST = 16
"""Groups inside one another: a group may be in itself."""


def is_hdf5(path: Path) -> bool:
    return path.is_file() and h5py.is_hdf5(path)


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """A file to read. Raises UserError where it is missing, truncated or no HDF5, or turns out to be damaged while it is open."""
    try:
        file = h5py.File(path, "r")
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{path}: cannot be opened as HDF5 ({one_line(error)})") from error
    try:
        with file:
            yield file
    except UserError as error:
        if type(error) is not UserError or str(path) in str(error):
            raise
        raise UserError(f"{path}: {error}") from error
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise UserError(f"{path}: its content is damaged ({one_line(error)})") from error


def names(path: Path) -> set[str]:
    """Names at the root and one below, ``{"data", "data/demo_0", ...}``; empty where it is no HDF5."""
    return _look(path, _names)


def first_demonstration(path: Path) -> set[str]:
    """Names in the first ``data/demo_<n>``; empty where there is none."""
    return _look(path, lambda file: set(file["data"][min(_children(file["data"]), key=natural)]))


def _look(path: Path, at: Callable[[h5py.File], set[str]]) -> set[str]:
    if not is_hdf5(path):
        return set()
    try:
        with open_hdf5(path) as file:
            return at(file)
    except UserError:
        return set()


def _names(file: h5py.File) -> set[str]:
    found = set(file)
    for name in list(found)[:64]:
        node = file.get(name) if isinstance(file.get(name, getlink=True), h5py.HardLink) else None
        found |= {f"{name}/{child}" for child in node} if isinstance(node, h5py.Group) else set()
    return found


def _children(node: h5py.Group | h5py.Dataset) -> list[str]:
    return list(node) if isinstance(node, h5py.Group) else []


def group(parent: h5py.Group, name: str, expected: str) -> h5py.Group:
    """A group that has to be there. Raises UserError with what was found and what was expected."""
    node = parent.get(name) if name in parent else None
    if not isinstance(node, h5py.Group):
        where = parent.name.strip("/") or "the root"
        raise UserError(f"{parent.file.filename}: found {some(sorted(parent))} in {where}; expected {expected}")
    return node


def datasets(parent: h5py.Group, prefix: str = "") -> dict[str, h5py.Dataset]:
    """Every data set below a group, by its path there. Raises UserError for one whose content lies in another file."""
    if prefix.count("/") > DEEPEST:
        raise UserError(f"{parent.file.filename}: {prefix[:80]}: groups lie in one another more than {DEEPEST} deep")
    found: dict[str, h5py.Dataset] = {}
    for name in sorted(parent):
        link, path = parent.get(name, getlink=True), prefix + name
        place = f"{parent.file.filename}: {parent.name.strip('/')}/{name}"
        if isinstance(link, h5py.ExternalLink):
            raise UserError(f"{place}: leads into another file ({link.filename}): only what is in this one is read")
        try:
            node = parent[name]
        except (KeyError, OSError, RuntimeError) as error:
            raise UserError(f"{place}: cannot be opened ({one_line(error)})") from error
        if isinstance(node, h5py.Group):
            found |= datasets(node, f"{path}/")
        elif isinstance(node, h5py.Dataset):
            if node.external or node.is_virtual:
                raise UserError(f"{place}: its content lies in another file: only what is in this one is read")
            if node.dtype.kind not in "biufSO" or (
                node.dtype.hasobject and h5py.check_string_dtype(node.dtype) is None
            ):
                raise UserError(f"{place}: its elements are {node.dtype}: numbers or texts were expected")
            found[path] = node
    return found


def read(dataset: h5py.Dataset, key: str, episode: int | str | None, rows: slice | tuple[()] = ()) -> NDArray[Any]:
    """A data set's content. Raises UserError naming file, key and episode where it cannot be read."""
    where = "" if episode is None else f" (episode {episode})"
    try:
        too_much = _too_much(dataset, rows)
        if too_much:
            raise UserError(f"{dataset.file.filename}: {key}: {too_much}: nothing of it is read{where}")
        value = dataset.asstr()[rows] if h5py.check_string_dtype(dataset.dtype) else dataset[rows]
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise UserError(f"{dataset.file.filename}: {key}: cannot be read: {one_line(error)}{where}") from error
    return np.asarray(value)


def _too_much(dataset: h5py.Dataset, rows: slice | tuple[()]) -> str:
    """Why a data set is not decoded, or "": small files can hold arrays of any size."""
    row = math.prod(dataset.shape[1:]) * dataset.dtype.itemsize
    whole = row * length(dataset)
    asked = whole if isinstance(rows, tuple) else row * len(range(*rows.indices(length(dataset))))
    if asked > physical_bytes() // 2:
        return f"takes {asked / 1024**3:.1f} GiB at once, more than half of this machine's memory"
    chunk = math.prod(dataset.chunks or ()) * dataset.dtype.itemsize
    if chunk > max(UNQUESTIONED, 4 * whole):
        return f"has chunks of {chunk / 1024**3:.2g} GiB and {whole / 1024**3:.2g} GiB of content"
    if whole > UNQUESTIONED and whole > LARGEST_RATIO * (stored := dataset.id.get_storage_size()):
        return f"declares {whole / 1024**3:.2g} GiB of which its file holds {stored} bytes"
    return ""


def length(dataset: h5py.Dataset) -> int:
    """Rows of a data set; 0 for a single number."""
    return dataset.shape[0] if dataset.shape else 0


def json_attribute(node: h5py.Group, name: str) -> Any:
    """The JSON value that an attribute holds as text, None where it is absent. Raises UserError where it is none."""
    text = node.attrs.get(name)
    if text is None:
        return None
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"{node.file.filename}: attribute {name} of {node.name.strip('/')} is no JSON ({one_line(error)})"
        ) from None


# Attributes and odd arrays, to be carried in a store's attributes


def to_json(value: Any) -> Any:
    """A JSON value from which :func:`from_json` makes the same one again, dtype and shape included."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, h5py.Empty):
        return {"empty": value.dtype.str}
    array = np.asarray(value)
    if array.dtype.kind in "OUT":
        return {"texts": np.asarray(np.frompyfunc(_text, 1, 1)(array), object).tolist()}
    described: dict[str, Any] = {"dtype": array.dtype.str, "shape": list(array.shape)}
    if array.size <= INLINE and array.dtype.kind in "iub":
        return {**described, "values": array.ravel().tolist()}
    return {**described, "base64": base64.b64encode(array.tobytes()).decode()}


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def from_json(value: Any) -> Any:
    """What :func:`to_json` was given."""
    if not isinstance(value, Mapping):
        return value
    if "bytes" in value:
        return base64.b64decode(value["bytes"])
    if "empty" in value:
        return h5py.Empty(value["empty"])
    if "texts" in value:
        return np.asarray(value["texts"], object)
    dtype, shape = np.dtype(value["dtype"]), tuple(value["shape"])
    if "values" in value:
        array = np.array(value["values"], dtype).reshape(shape)
    else:
        array = np.frombuffer(base64.b64decode(value["base64"]), dtype).reshape(shape)
    return array[()] if not shape else array


def attributes(node: h5py.Group | h5py.Dataset) -> dict[str, Any]:
    """The attributes of a node as JSON values."""
    return {name: to_json(value) for name, value in node.attrs.items()}


def write_attributes(node: h5py.Group | h5py.Dataset, values: Mapping[str, Any]) -> None:
    """Put back what :func:`attributes` returned."""
    for name, value in values.items():
        node.attrs[name] = from_json(value)


def rest(file: h5py.File, known: set[str]) -> dict[str, Any]:
    """Everything at the root of a file beside the groups ``known``, as JSON values by path."""
    found: dict[str, Any] = {}
    for name in sorted(set(file) - known):
        node = file.get(name) if isinstance(file.get(name, getlink=True), h5py.HardLink) else None
        if isinstance(node, h5py.Group):
            found |= {path: to_json(read(each, path, None)) for path, each in datasets(node, f"{name}/").items()}
        elif isinstance(node, h5py.Dataset):
            found[name] = to_json(read(node, name, None))
    return found


def write_dataset(parent: h5py.Group, path: str, value: NDArray[Any]) -> None:
    """A data set; images compressed a frame at a time, texts as variable-length strings."""
    if value.dtype.kind in "OUT":
        parent.create_dataset(path, data=value.astype(object), dtype=h5py.string_dtype())
    elif value.dtype == np.uint8 and value.ndim == 4:
        parent.create_dataset(path, data=value, chunks=(1, *value.shape[1:]), compression="gzip", compression_opts=1)
    else:
        parent.create_dataset(path, data=value)
