"""What the files of a LeRobot data set say, as checked values: whatever of theirs is wrong is one line from here, never a traceback.

Files are named by ``meta/info.json`` and by rows of parquet, which somebody else wrote: such a name cannot lead out of the set.
Links can: the user, or the hub's cache (every file a link into ``blobs/``), made them.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dopr_robot.datasets.formats.format import content, inside, one_line, some
from dopr_robot.errors import MissingExtraError, UserError

T = TypeVar("T")

NAME = "lerobot"
INDEX = ("timestamp", "frame_index", "episode_index", "index", "task_index")
OWN = "meta/demonstrations.json"
EXPECTED = "meta/info.json of LeRobot v2.1 or v3, with data/ and, for videos, videos/"
V21 = {
    "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
}
V3 = {
    "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}
FIELD = re.compile(r"\{(\w+)(?::(0?\d?)d)?\}")
LARGEST = 2**63
"""Numbers in ``meta/`` are below it."""
TASKS = 2**20
"""A task's index is below it."""
DECODED, RATIO = 2**30, 256
"""Bytes that any parquet file may take in memory, and how often its size on disk; LeRobot's own are 100 MB and hardly shrink."""
KINDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "an object",
}


def parquet() -> Any:
    """pyarrow's parquet. Raises MissingExtraError."""
    try:
        import pyarrow.parquet as found
    except ImportError:
        raise MissingExtraError("LeRobot's parquet", "lerobot") from None
    return found


@contextmanager
def reading(place: str, verb: str = "read", episode: int | None = None) -> Iterator[None]:
    """Turns whatever a decoder raises over somebody else's bytes into a UserError of one line.

    Everything, since pyarrow, PyAV and Pillow promise no kind: SyntaxError and EOFError are among what they were seen to raise.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        where = "" if episode is None else f" (episode {episode})"
        raise UserError(f"{place}: cannot be {verb} ({one_line(error)}){where}") from error


def entry(place: str, found: Mapping[str, Any], name: str, kind: type[T], default: T | None = None) -> T:
    """``found[name]``, or ``default`` where it is absent or null. Raises UserError where it is no ``kind``.

    Numbers are finite, not negative and below :data:`LARGEST`; a whole one may be written as a float; texts are Unicode.
    """
    value: Any = found.get(name)
    if value is None and default is not None:
        return default
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    right = isinstance(value, kind) or (kind is float and isinstance(value, int))
    if kind in (int, float):
        right = right and not isinstance(value, bool) and 0 <= value < LARGEST
    if kind is str and right:
        right = value.isascii() or value.encode(errors="replace").decode() == value  # a lone surrogate is no text
    if not right:
        raise UserError(f"{place}: {name} is {repr(value)[:60]}: {KINDS[kind]} is expected")
    return value


def read_json(root: Path, name: str) -> dict[str, Any]:
    """A file that is one object."""
    return _parsed(f"{root}: {name}", _content(root, name))


def read_lines(root: Path, name: str) -> list[dict[str, Any]]:
    """A file that has one object a line. A line ends with a line feed alone: texts hold U+2028 and its kind."""
    lines = _content(root, name).split(b"\n")
    return [_parsed(f"{root}: {name}: line {n}", line) for n, line in enumerate(lines, 1) if line.strip()]


def _content(root: Path, name: str) -> bytes:
    with reading(f"{root}: {name}"):
        try:
            return (root / name).read_bytes()
        except FileNotFoundError:
            raise UserError(f"{root}: {name} is missing: found {content(root)}; expected {EXPECTED}") from None


def _parsed(place: str, line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is no JSON ({one_line(error)})") from None
    if not isinstance(found, dict):
        raise UserError(f"{place} is a {type(found).__name__}: an object is expected")
    return found


class Table:
    """A parquet file, in memory, whose columns come as arrays.

    Args:
        root, file: the data set and the file in it.
        columns: which ones have to be there; None: all there are.
    """

    def __init__(self, root: Path, file: Path, columns: tuple[str, ...] | None = None) -> None:
        self.place = f"{root}: {file.relative_to(root)}"
        with reading(self.place, "read as parquet"):
            if not file.is_file():
                raise UserError(f"{self.place}: is missing")
            with parquet().ParquetFile(str(file)) as opened:
                _check_size(self.place, opened, file.stat().st_size)
                self.columns: list[str] = opened.schema_arrow.names
                missing = sorted(set(columns or ()) - set(self.columns))
                if missing:
                    raise UserError(
                        f"{self.place}: found the columns {some(self.columns)}; "
                        f"expected {', '.join(missing)} among them"
                    )
                self.table = opened.read(columns=None if columns is None else list(columns))

    def values(self, name: str, start: int = 0, length: int | None = None) -> NDArray[Any]:
        """A column's numbers, flags or texts, ``[T, ...]``: a list of a fixed size is an axis."""
        import pyarrow as pa
        import pyarrow.compute as pc

        place, types = f"{self.place}: {name}", pa.types
        with reading(place):
            column = self.table.column(name).slice(start, length)
            array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
            shape = [len(array)]
            while True:
                if isinstance(array, pa.ExtensionArray):
                    array = array.storage
                if array.null_count:
                    raise UserError(f"{place}: has empty entries")
                if not (types.is_list(array.type) or types.is_large_list(array.type) or _is_fixed(array.type)):
                    break
                sizes = pc.unique(pc.list_value_length(array)).to_pylist()
                if len(sizes) > 1:
                    raise UserError(f"{place}: has lists of {some([str(n) for n in sorted(sizes)])} entries")
                shape += sizes
                array = array.flatten()
            if types.is_dictionary(array.type):
                array = array.dictionary_decode()
            if types.is_string(array.type) or types.is_large_string(array.type):
                return np.array(array.to_pylist(), object).reshape(shape)
            if not (types.is_integer(array.type) or types.is_floating(array.type) or types.is_boolean(array.type)):
                raise UserError(f"{place}: is of {array.type}: numbers, flags or texts are expected")
            return array.to_numpy(zero_copy_only=False).reshape(shape)

    def numbers(self, name: str, start: int = 0, length: int | None = None, *, kinds: str = "iu") -> NDArray[Any]:
        """A column of one number a step, ``[T]``, a whole one unless ``kinds`` (of numpy) say otherwise."""
        found = self.values(name, start, length)
        if found.size != len(found) or found.dtype.kind not in kinds:
            wanted = "one number" if "f" in kinds else "one whole number"
            raise UserError(
                f"{self.place}: {name}: is {found.dtype}{list(found.shape[1:])} a step: {wanted} is expected"
            )
        return found.reshape(-1)

    def rows(self, names: list[str]) -> list[dict[str, Any]]:
        """Some columns as Python objects, row by row."""
        with reading(self.place, "read as parquet"):
            return self.table.select(names).to_pylist()


def _is_fixed(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_fixed_size_list(kind)


def _check_size(place: str, opened: Any, on_disk: int) -> None:
    """Compares what a file's footer declares with its size, before anything is decoded.

    By rows and types, since pyarrow 26 ends the process when it is asked for a damaged footer's columns.
    """
    metadata = opened.metadata
    size = sum(metadata.row_group(n).total_byte_size for n in range(metadata.num_row_groups))
    size += metadata.num_rows * sum(_width(field.type) for field in opened.schema_arrow)
    if size > max(DECODED, RATIO * on_disk):
        raise UserError(f"{place}: its {on_disk} bytes would take {size / 2**30:.1f} GiB in memory")


def _width(kind: Any) -> int:
    """Bytes of a row in memory, at least."""
    if _is_fixed(kind):
        return kind.list_size * _width(kind.value_type)
    try:
        return max(1, kind.bit_width // 8)
    except ValueError:  # of no fixed width
        return 8


@dataclass(frozen=True)
class Feature:
    """What a feature of ``info.json`` is.

    Attributes:
        dtype: numpy's name of a number's type, or ``string``, ``image``, ``video``.
        shape: of one step; of a picture its height, width and channels, in any order.
        depth: whether a picture is of distances.
    """

    dtype: str
    shape: tuple[int, ...]
    depth: bool

    @property
    def pixels(self) -> int:
        """Of a picture, at most."""
        return int(np.prod(sorted(self.shape)[-2:], dtype=object))


@dataclass(frozen=True)
class Row:
    """An episode: its number, its steps, the file of its numbers, and by feature the video with the time (s) where it begins there."""

    number: int
    length: int
    data: Path
    videos: Mapping[str, tuple[Path, float]]


class Layout:
    """What ``meta/`` says.

    Attributes:
        info: ``info.json`` as it is, to be carried.
        fps: steps a second.
        features: by name, without those of :data:`INDEX`.
        tasks: texts by index.
        episodes: in the order of their numbers.

    Raises UserError for another version, and for what is missing or wrong.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.info = root, read_json(root, "meta/info.json")
        place = f"{root}: meta/info.json"
        version = str(self.info.get("codebase_version"))[:16]
        if not version.startswith(("v2.1", "v3.")):
            raise UserError(f"{root}: found codebase_version {version!r} in meta/info.json; expected v2.1 or v3.0")
        if not {"features", "fps"} <= set(self.info):
            raise UserError(f"{place}: found {some(sorted(self.info))}; expected features and fps among them")
        self.is_v3 = version.startswith("v3.")
        self.fps = entry(place, self.info, "fps", float)
        if not self.fps:
            raise UserError(f"{place}: fps is 0: a positive number is expected")
        about = entry(place, self.info, "features", dict)
        self.features = {name: _feature(place, name, about) for name in about if name not in INDEX}
        self.chunks = max(1, entry(place, self.info, "chunks_size", int, 1000))
        names = {**(V3 if self.is_v3 else V21)}
        self.templates = {name: entry(place, self.info, name, str, default) for name, default in names.items()}
        self.tasks = dict(self._tasks())
        self.episodes = sorted(map(self._row, self._rows()), key=lambda row: row.number)
        if not self.episodes:
            raise UserError(f"{root}: found no episode in meta/episodes; expected {EXPECTED}")
        numbers = [row.number for row in self.episodes]
        twice = next((one for one, other in itertools.pairwise(numbers) if one == other), None)
        if twice is not None:
            raise UserError(f"{root}: meta/episodes: has two entries of episode {twice}")

    def _tasks(self) -> Iterator[tuple[int, str]]:
        if self.is_v3:
            file = self.root / "meta" / "tasks.parquet"
            found = Table(self.root, file) if file.is_file() else None
            # pandas' index, which LeRobot leaves without a name when it adds a task.
            texts = "task" if found and "task" in found.columns else "__index_level_0__"
            rows = (
                [] if found is None else found.rows([name for name in ("task_index", texts) if name in found.columns])
            )
        else:
            rows, texts = read_lines(self.root, "meta/tasks.jsonl"), "task"
        place = f"{self.root}: meta/tasks"
        for row in rows:
            index = entry(place, row, "task_index", int)
            if index >= TASKS:
                raise UserError(f"{place}: task_index is {index}: a number below {TASKS} is expected")
            yield index, entry(place, row, texts, str, "")

    def _rows(self) -> Iterator[dict[str, Any]]:
        if not self.is_v3:
            yield from read_lines(self.root, "meta/episodes.jsonl")
            return
        for file in sorted((self.root / "meta" / "episodes").glob("*/*.parquet")):
            table = Table(self.root, file)
            yield from table.rows([name for name in table.columns if not name.startswith("stats/")])

    def _row(self, found: dict[str, Any]) -> Row:
        place = f"{self.root}: meta/episodes"
        number, length = (entry(place, found, name, int) for name in ("episode_index", "length"))
        episode = {"episode_index": number, "episode_chunk": number // self.chunks}
        videos = {}
        for name in (name for name, feature in self.features.items() if feature.dtype == "video"):
            start = entry(place, found, f"videos/{name}/from_timestamp", float, None if self.is_v3 else 0.0)
            videos[name] = self._file("video_path", found, f"videos/{name}", {**episode, "video_key": name}), start
        return Row(number, length, self._file("data_path", found, "data", episode), videos)

    def _file(self, which: str, found: Mapping[str, Any], group: str, values: Mapping[str, int | str]) -> Path:
        """A file that ``info.json`` names by a template, whose fields a row of ``meta/episodes`` fills."""

        def filled(field: re.Match[str]) -> str:
            name, width = field[1], field[2]
            row = f"{self.root}: meta/episodes"
            value = values[name] if name in values else entry(row, found, f"{group}/{name}", int)
            return str(value) if width is None or isinstance(value, str) else f"{value:{width}d}"

        template = self.templates[which]
        if set(FIELD.sub("", template)) & set("{}") or not template.isprintable():
            raise UserError(f"{self.root}: meta/info.json: {which} cannot be understood: {template[:60]!r}")
        return inside(self.root, FIELD.sub(filled, template))


def _feature(place: str, name: str, features: Mapping[str, Any]) -> Feature:
    if not name.isprintable():
        raise UserError(f"{place}: {name[:60]!r} cannot be the name of a feature")
    about, place = entry(place, features, name, dict), f"{place}: {name[:60]}"
    shape = tuple(entry(place, {"shape": each}, "shape", int) for each in entry(place, about, "shape", list))
    details = [found for found in (about.get("info"), about.get("video_info")) if isinstance(found, dict)]
    depth = any(found.get(each) for found in details for each in ("is_depth_map", "video.is_depth_map"))
    return Feature(entry(place, about, "dtype", str), shape, depth)
