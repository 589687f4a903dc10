"""HDF5 as the formats that sit on it need it: opened safely, read with errors that name the place, attributes as JSON and back."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from dopr_robot.datasets.formats.format import one_line, some
from dopr_robot.errors import UserError

INLINE = 64
"""Arrays up to so many numbers are written as numbers in JSON, larger ones as base64."""


def is_hdf5(path: Path) -> bool:
    return path.is_file() and h5py.is_hdf5(path)


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """A file to read. Raises UserError where it is missing, truncated or no HDF5."""
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"{path}: cannot be opened as HDF5 ({one_line(error)})") from error
    with file:
        yield file


def names(path: Path) -> set[str]:
    """Names at the root and one below, ``{"data", "data/demo_0", ...}``; empty where it is no HDF5."""
    if not is_hdf5(path):
        return set()
    try:
        with h5py.File(path, "r") as file:
            found = set(file)
            for name in list(found)[:64]:
                node = file.get(name) if isinstance(file.get(name, getlink=True), h5py.HardLink) else None
                found |= {f"{name}/{child}" for child in node} if isinstance(node, h5py.Group) else set()
            return found
    except OSError:
        return set()


def group(parent: h5py.Group, name: str, expected: str) -> h5py.Group:
    """A group that has to be there. Raises UserError with what was found and what was expected."""
    node = parent.get(name) if name in parent else None
    if not isinstance(node, h5py.Group):
        where = parent.name.strip("/") or "the root"
        raise UserError(f"{parent.file.filename}: found {some(sorted(parent))} in {where}; expected {expected}")
    return node


def datasets(parent: h5py.Group, prefix: str = "") -> dict[str, h5py.Dataset]:
    """Every data set below a group, by its path there. Raises UserError for one whose content lies in another file."""
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
            if node.dtype.kind == "V" or (node.dtype.hasobject and h5py.check_string_dtype(node.dtype) is None):
                raise UserError(f"{place}: its elements are {node.dtype}: numbers or texts were expected")
            found[path] = node
    return found


def read(dataset: h5py.Dataset, key: str, episode: int | str | None, rows: slice | tuple[()] = ()) -> NDArray[Any]:
    """A data set's content. Raises UserError naming file, key and episode where it cannot be read."""
    try:
        value = dataset.asstr()[rows] if h5py.check_string_dtype(dataset.dtype) else dataset[rows]
    except (OSError, RuntimeError, UnicodeDecodeError) as error:
        where = "" if episode is None else f" (episode {episode})"
        raise UserError(f"{dataset.file.filename}: {key}: cannot be read: {one_line(error)}{where}") from error
    return np.asarray(value)


def length(dataset: h5py.Dataset) -> int:
    """Rows of a data set; 0 for a single number."""
    return dataset.shape[0] if dataset.shape else 0


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
        return {"texts": array.tolist()}
    described: dict[str, Any] = {"dtype": array.dtype.str, "shape": list(array.shape)}
    if array.size <= INLINE and array.dtype.kind in "iub":
        return {**described, "values": array.ravel().tolist()}
    return {**described, "base64": base64.b64encode(array.tobytes()).decode()}


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
            found |= {f"{name}/{path}": to_json(read(each, path, None)) for path, each in datasets(node).items()}
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
