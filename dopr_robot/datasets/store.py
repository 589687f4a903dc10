"""The demonstration store: episodes in zarr, appended whole or not at all.

Layout (Diffusion Policy's, so its stores open unchanged)::

    data/<key>           [steps, ...]        every episode, one after another
    meta/episode_ends    int64 [episodes]    where each ends, exclusive; increasing
    meta/seed            int64 [episodes]    -1: none
    meta/success         int8  [episodes]    1, 0, -1: unknown
    meta/<name>          [episodes]          whatever else belongs to an episode

``episode_ends`` is written last and is the commit: rows beyond its last value are the trace of a kill, and the next
append overwrites them. Every file is written beside its place and renamed, so a reader sees the old one or the new one.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import zarr
import zarr.codecs
import zarr.storage
from filelock import FileLock, Timeout
from numpy.typing import ArrayLike, NDArray
from zarr.core.sync import sync

from dopr_robot.datasets import closing  # noqa: F401 - zarr, at the interpreter's exit
from dopr_robot.datasets.appending import append_episodes
from dopr_robot.datasets.attributes import GROUP_KEY, Attributes
from dopr_robot.datasets.bounded import check_array
from dopr_robot.datasets.episode import UNKNOWN, Episode
from dopr_robot.datasets.layout import KeyInfo, create_array
from dopr_robot.datasets.opening import Arrays, member, one_line, open_group
from dopr_robot.datasets.sharing import held_once
from dopr_robot.errors import DamagedError, UserError
from dopr_robot.files import naming, replacing

LOG = logging.getLogger(__name__)


class Store:
    """Demonstrations of one task.

    Make one with :meth:`create` or :meth:`open`. A store is a context manager; leaving it releases the writer's lock.

    >>> import tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "pick.zarr")
    >>> with Store.create(path, Attributes(control_hz=20, observations=("state",))) as store:
    ...     store.append({"state": np.zeros((5, 3)), "action": np.ones((5, 2))}, seed=7, success=True)
    >>> Store.open(path).episode(0)["action"].shape
    (5, 2)
    """

    def __init__(
        self, path: str, group: zarr.Group, attributes: Attributes, *, own: bool, whole_part: bool = False
    ) -> None:
        self.path = path
        self.attributes = attributes
        self.is_own = own
        self._arrays = Arrays(group, path)
        self._lock: FileLock | None = None
        self._whole_part = whole_part
        self._ends = self._read_ends()
        self._held: dict[str, NDArray[Any]] = {}

    # Opening

    @classmethod
    def create(cls, path: str | Path, attributes: Attributes | None = None) -> Store:
        """A new, empty store, open for appending.

        Raises UserError where something is at ``path`` already, or where it is not a local folder's name.
        """
        where = Path(path)
        if "://" in str(path) or where.suffix == ".zip":
            raise UserError(f"{path}: a store is written to a local folder; copy or zip it afterwards")
        if where.is_dir() and not any(where.iterdir()):
            where.rmdir()
        attributes = attributes or Attributes()
        with replacing(where, new=True) as beside:
            group = zarr.create_group(zarr.storage.LocalStore(beside))
            group.create_group("data")
            meta = group.create_group("meta")
            create_array(meta, "seed", (), np.dtype(np.int64), per_step=False, fill_value=UNKNOWN)
            create_array(meta, "success", (), np.dtype(np.int8), per_step=False, fill_value=UNKNOWN)
            create_array(meta, "episode_ends", (), np.dtype(np.int64), per_step=False)
            group.attrs[GROUP_KEY] = attributes.to_json()
        store = cls.open(where)
        store._acquire()
        return store

    @classmethod
    def open(cls, path: str | Path, *, whole_part: bool = False) -> Store:
        """An existing store: a folder, a ``.zip``, or any address that fsspec knows; zarr v3 or v2.

        The first :meth:`append` takes the writer's lock; until then nothing is written.

        Args:
            path: where it is.
            whole_part: open a store whose ``episode_ends`` do not increase up to where they do.

        Raises:
            UserError: nothing is there, or it is not a store; the message names the path and what is missing.
            DamagedError: ``episode_ends`` contradicts itself, or a file of zarr's own can not be read.
        """
        group = open_group(str(path))
        for name, kind in (("meta/episode_ends", zarr.Array), ("data", zarr.Group), ("meta", zarr.Group)):
            if not isinstance(member(group, str(path), name), kind):
                raise UserError(f"{path}: not a demonstration store: {name!r} is missing")
        described = GROUP_KEY in group.attrs
        try:
            attributes = Attributes.from_json(group.attrs[GROUP_KEY]) if described else Attributes()
        except UserError as error:
            raise UserError(f"{path}: attribute {GROUP_KEY!r}: {error}") from None
        own = described and group.metadata.zarr_format == 3  # v2: an export for Diffusion Policy
        LOG.debug("opened %s, zarr v%d", path, group.metadata.zarr_format)
        return cls(str(path), group, attributes, own=own, whole_part=whole_part)

    def close(self) -> None:
        """Release the writer's lock, if this store holds it."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def refresh(self) -> None:
        """See the episodes that a writer has added since this store was opened."""
        self._arrays = Arrays(open_group(self.path), self.path)
        self._ends = self._read_ends()

    # Reading

    @property
    def episode_ends(self) -> NDArray[np.int64]:
        """Exclusive end row of every episode, int64 [episodes]."""
        return self._ends

    @property
    def episode_starts(self) -> NDArray[np.int64]:
        """First row of every episode, int64 [episodes]."""
        return np.concatenate(([0], self._ends[:-1])).astype(np.int64) if len(self._ends) else self._ends

    @property
    def episode_lengths(self) -> NDArray[np.int64]:
        """Steps of every episode, int64 [episodes]."""
        return self._ends - self.episode_starts

    @property
    def num_episodes(self) -> int:
        return len(self._ends)

    @property
    def num_steps(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def keys(self) -> dict[str, KeyInfo]:
        """Every key under ``data/``, in alphabetic order."""
        return {name: KeyInfo(array.shape[1:], array.dtype) for name, array in self._arrays.under("data").items()}

    @property
    def observations(self) -> list[str]:
        """The keys that are observations: the declared ones, or all numbers but ``action`` where none are declared."""
        numbers = [key for key, info in self.keys.items() if key != "action" and info.dtype.kind in "fiub"]
        return list(self.attributes.observations) or numbers

    @property
    def meta(self) -> dict[str, NDArray[Any]]:
        """What belongs to an episode, by name, ``[episodes, ...]``; ``episode_ends`` is not among them."""
        n = self.num_episodes
        arrays = self._arrays.under("meta")
        return {
            name: self._read(array, name, slice(0, n))
            for name, array in arrays.items()
            if name != "episode_ends" and array.ndim and array.shape[0] >= n
        }

    @property
    def meta_rows(self) -> dict[str, int]:
        """Entries of every array under ``meta/`` but ``episode_ends``; fewer than the episodes is damage."""
        return {name: array.shape[0] for name, array in self._arrays.under("meta").items() if name != "episode_ends"}

    @property
    def seeds(self) -> NDArray[np.int64]:
        """The seed of every episode, int64 [episodes]; -1 where none is known."""
        return self._known("seed", np.int64)

    @property
    def success(self) -> NDArray[np.int8]:
        """Whether each episode succeeded, int8 [episodes]: 1, 0, or -1 where it is not known."""
        return self._known("success", np.int8)

    def episode(self, index: int, keys: Iterable[str] | None = None) -> dict[str, NDArray[Any]]:
        """The arrays of one episode, ``{key: [T, ...]}``; a negative index counts from the end."""
        if not -self.num_episodes <= index < self.num_episodes:
            raise UserError(f"{self.path}: there is no episode {index} (episodes: {self.num_episodes})")
        index %= self.num_episodes
        return self.read(keys, int(self._ends[index - 1]) if index else 0, int(self._ends[index]))

    def read(
        self, keys: Iterable[str] | None = None, start: int = 0, stop: int | None = None
    ) -> dict[str, NDArray[Any]]:
        """Rows ``start:stop`` of some keys (all, where None), ``{key: [stop - start, ...]}``.

        Raises DamagedError, naming the key and the episode, where a chunk cannot be read.
        """
        rows = slice(start, self.num_steps if stop is None else stop)
        return {key: self._read_key(key, rows) for key in (self.keys if keys is None else keys)}

    def hold(self, key: str) -> NDArray[Any]:
        """A key's rows in memory, read-only, read at the first call and kept as long as the store has as many.

        Processes that torchrun started together have them once a machine, see :func:`~dopr_robot.datasets.sharing.held_once`.
        """
        held = self._held.get(key)
        if held is None or len(held) != self.num_steps:
            info, name = self.keys[key], f"{Path(self.path).absolute()} {key} {self.num_steps}"
            shape = (self.num_steps, *info.shape)
            held = self._held[key] = held_once(name, shape, info.dtype, lambda: self.read([key])[key])
        return held

    def array(self, key: str) -> zarr.Array:
        """The zarr array of a key; its rows beyond :attr:`num_steps` are not part of the store."""
        array = self._arrays.get(f"data/{key}")
        if array is None:
            raise UserError(f"{self.path}: there is no key {key!r} (keys: {', '.join(self.keys)})")
        return array

    def missing_files(self, key: str) -> list[int]:
        """First rows of the files of a key that are not there, the first 1000; for stores written here, which leave none out."""
        array = self.array(key)
        rows = (array.shards or array.chunks)[0]
        rest = (0,) * (array.ndim - 1)
        names = ((row, array.metadata.encode_chunk_key((row // rows, *rest))) for row in range(0, self.num_steps, rows))
        return list(islice((row for row, name in names if not sync((array.store_path / name).exists())), 1000))

    # Writing

    def append(
        self,
        arrays: Mapping[str, ArrayLike],
        *,
        seed: int | None = None,
        success: bool | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        """Add one episode, whole or not at all.

        Args:
            arrays: ``{key: [T, ...]}``; the first episode fixes keys, shapes and dtypes.
            seed: the integer that was given to ``env.reset``.
            success: whether the task was done.
            meta: what else belongs to the episode: numbers, texts, or arrays of one shape.

        Raises:
            UserError: keys, lengths, shapes or dtypes do not fit, or another program is writing.
        """
        self.extend(
            [Episode({key: np.asarray(value) for key, value in arrays.items()}, seed, success, dict(meta or {}))]
        )

    def extend(self, episodes: Iterable[Episode]) -> None:
        """Add several episodes, all or none, in one write: of short ones that is many times faster than one after another.

        They are held in memory together. Raises UserError as :meth:`append`.
        """
        episodes = list(episodes)
        if not episodes:
            return
        if not self.is_own:
            raise UserError(f"{self.path}: made by another program and never modified: dopr convert it first")
        self._acquire()
        # Rows of zeros are written too: a missing file is then a loss, and `dopr info --check` sees it.
        with zarr.config.set({"array.write_empty_chunks": True}), naming(Path(self.path)):
            self._ends = append_episodes(self._arrays, self._ends, episodes)

    @contextlib.contextmanager
    def locked(self) -> Iterator[Self]:
        """Hold the writer's lock. Raises UserError where another program does."""
        self._acquire()
        try:
            yield self
        finally:
            self.close()

    def set_attributes(self, attributes: Attributes) -> None:
        """Replace the attributes, in one write."""
        self._acquire()
        self._arrays.group.attrs[GROUP_KEY] = attributes.to_json()
        self.attributes = attributes

    # Inside

    def _acquire(self) -> None:
        """Take the writer's lock, then look again: somebody may have written since this store was opened."""
        if self._lock is not None:
            return
        if not Path(self.path).is_dir():
            raise UserError(f"{self.path}: only a local folder can be written to: copy it here first")
        lock = FileLock(Path(self.path) / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise UserError(
                f"{self.path}: another program is writing to it: wait for it, or write another store"
            ) from None
        self._lock = lock
        self._arrays = Arrays(zarr.open_group(zarr.storage.LocalStore(self.path), mode="r+"), self.path)
        self._ends = self._read_ends()

    def _known(self, name: str, dtype: type[np.integer[Any]]) -> NDArray[Any]:
        array = self._arrays.get(f"meta/{name}")
        if array is None or not array.ndim or array.shape[0] < self.num_episodes:
            return np.full(self.num_episodes, UNKNOWN, dtype)
        if array.ndim != 1 or array.dtype.kind not in "iub":
            raise DamagedError(
                f"{self.path}: meta/{name}: is {array.dtype}{list(array.shape)}: one row of integers is expected"
            )
        return self._read(array, name, slice(0, self.num_episodes)).astype(dtype)

    def _read_ends(self) -> NDArray[np.int64]:
        array: Any = self._arrays.get("meta/episode_ends")
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise DamagedError(
                f"{self.path}: episode_ends: is {array.dtype}{list(array.shape)}: one row of integers is expected"
            )
        ends = self._read(array, "episode_ends", slice(None)).astype(np.int64)
        # Growing the array and filling it are two writes: a trailing 0 is an entry that was never filled.
        last = len(ends)
        while last and ends[last - 1] == 0:
            last -= 1
        ends = ends[:last]
        steps = np.diff(ends, prepend=0)
        if not (steps <= 0).any():
            return ends
        wrong = int(np.argmax(steps <= 0))
        if self._whole_part:
            return ends[:wrong]
        raise DamagedError(f"{self.path}: episode_ends: does not increase (episode {wrong})")

    def _read_key(self, key: str, rows: slice) -> NDArray[Any]:
        if (held := self._held.get(key)) is not None and len(held) == self.num_steps:
            return held[rows].copy()
        array = self.array(key)
        if array.shape[0] < rows.stop:
            raise DamagedError(
                f"{self.path}: {key}: has {array.shape[0]} rows and episode_ends {self.num_steps} "
                f"(episode {int(np.searchsorted(self._ends, array.shape[0], side='right'))})"
            )
        try:
            return self._read(array, key, rows)
        except DamagedError as error:
            for index in range(int(np.searchsorted(self._ends, rows.start, side="right")), self.num_episodes):
                try:
                    self._read(array, key, slice(int(self.episode_starts[index]), int(self._ends[index])))
                except DamagedError:
                    raise DamagedError(f"{error} (episode {index})") from error
            raise

    def _read(self, array: zarr.Array, name: str, rows: slice) -> NDArray[Any]:
        try:
            check_array(array, rows)
        except DamagedError as error:
            raise DamagedError(f"{self.path}: {name}: {error}") from None
        # A writer may replace the file between our reading of a shard's index and of its chunks; the checksum tells,
        # and the second reading finds the new file. What fails three times is damaged.
        for _ in range(2):
            with contextlib.suppress(Exception):
                return np.asarray(array[rows])
        try:
            return np.asarray(array[rows])
        except Exception as error:
            raise DamagedError(f"{self.path}: {name}: cannot be read ({one_line(error)})") from error
