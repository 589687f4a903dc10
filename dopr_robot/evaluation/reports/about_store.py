"""What is in a store, as plain figures: what ``dopr info STORE`` prints."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dopr_robot.datasets import Store, check, statistics
from dopr_robot.envs import recorded_task
from dopr_robot.envs.task import in_words
from dopr_robot.errors import UserError
from dopr_robot.evaluation.reports.store import KeyRow, action_text, key_rows, write_store_report
from dopr_robot.policies.scaling import hardly_moved
from dopr_robot.tables import Shown, Table

LARGE_BYTES = 256 * 1024**2
SAMPLE = 8
"""Episodes that the range of a large key is taken from."""
BARS = " ▁▂▃▄▅▆▇█"
BINS = 24


@dataclass(frozen=True)
class StoreDescription(Shown):
    """A store looked at; what costs time is found when it is asked for.

    Attributes:
        path: which.
    """

    path: str

    @cached_property
    def store(self) -> Store:
        """The store. Raises UserError where there is none, DamagedError for a damaged one."""
        return Store.open(self.path)

    @cached_property
    def ranges(self) -> dict[str, Mapping[str, Any]]:
        """Statistics of the numeric keys; of a sample of episodes where a key is large."""
        store = self.store
        numeric = [name for name, key in store.keys.items() if key.dtype.kind in "fiub"] if store.num_steps else []
        large = [key for key in numeric if self.is_large(key)]
        sample: Any = np.unique(np.linspace(0, store.num_episodes - 1, SAMPLE).astype(int)) if large else []
        return {
            **statistics(store, [key for key in numeric if key not in large]),
            **statistics(store, large, sample),
        }

    @property
    def keys(self) -> list[KeyRow]:
        """A row a key: shape, dtype, range, use."""
        return key_rows(self.store, self.ranges)

    @property
    def still(self) -> str:
        """Entries of observed vectors and of the action that hardly move, by key."""
        store, ranges = self.store, self.ranges
        found = {
            key: hardly_moved(ranges[key])
            for key in ("action", *store.observations)
            if key in ranges
            and len(store.keys[key].shape) == 1
            and all(np.isfinite(value).all() for value in ranges[key].values())
        }
        return ", ".join(f"{key}{entries}" for key, entries in found.items() if entries)

    @cached_property
    def warnings(self) -> list[str] | None:
        """What is odd or damaged; None where a store is so large that only --check reads it."""
        if sum(self.bytes(key) for key in self.store.keys) > 4 * LARGE_BYTES:
            return None
        report = check(self.store.path)
        return [str(finding) for finding in (*report.damage, *report.warnings)]

    def bytes(self, key: str) -> int:
        """Of all its rows."""
        info = self.store.keys[key]
        return self.store.num_steps * int(np.prod(info.shape)) * info.dtype.itemsize

    def is_large(self, key: str) -> bool:
        """Whether its range is of a sample."""
        return self.bytes(key) > LARGE_BYTES

    def plain(self) -> dict[str, Any]:
        """See :func:`store_summary`."""
        return store_summary(self.path)

    def _parts(self) -> Iterator[str | Table]:
        store, about = self.store, self.store.attributes
        task = in_words(about.task, about.options)
        rate = f" at {about.control_hz:g} Hz" if about.control_hz else ""
        yield f"{self.path}: {store.num_episodes} episodes, {store.num_steps:,} steps{rate}, {task or 'task unknown'}"
        rows = []
        for row in self.keys:
            sampled = "~" if row.least and self.is_large(row.name) else ""
            rows.append([row.name, row.shape, row.dtype, sampled + row.least, sampled + row.largest, row.use])
        yield Table(["key", "shape", "dtype", "least", "largest", ""], rows)
        if store.num_episodes:
            lengths = store.episode_lengths
            yield f"lengths  {lengths.min()} to {lengths.max()}, mean {lengths.mean():.1f}  |{histogram(lengths)}|"
            yield from self._beyond(lengths)
            known = store.success[store.success >= 0]
            yield f"success  {known.mean():.1%} of {len(known)} episodes that say" if len(known) else "success  unknown"
        yield f"action   {action_text(store)}"
        if self.still:
            yield f"still    {self.still} hardly move, so policies do not stretch them to the full range"
        if about.source:
            yield f"source   {about.source}" + (f", {about.licence}" if about.licence else "")
        yield from (f"done     {line}" for line in about.provenance)
        warnings = self.warnings if store.num_episodes else []
        if warnings is None:
            yield "warnings were not looked for in so large a store: --check reads everything"
        yield from (f"warning: {line}" for line in warnings or [])

    def _beyond(self, lengths: NDArray[np.int64]) -> Iterator[str]:
        """A line where the task ends before most of its demonstrators did: what imitates them is as slow as they were."""
        spec = recorded_task(self.store.attributes.task or "")
        if spec is not None and np.median(lengths) > spec.max_steps:
            more = f": dopr eval --horizons {spec.max_steps},{lengths.max()}" if spec.extensible else ""
            longer = (lengths > spec.max_steps).sum()
            yield f"limit    {longer} of {len(lengths)} episodes go beyond {spec.max_steps} steps, after which {spec.id} ends{more}"

    def write_page(self, out: str | os.PathLike[str]) -> None:
        """A page with plots and pictures. Raises UserError for a store without an episode."""
        if not self.store.num_episodes:
            raise UserError(f"{self.store.path} holds no episode yet")
        write_store_report(Path(out), self.store, self.keys, self.warnings or [])


def store_summary(path: str) -> dict[str, Any]:
    """``{kind, episodes, steps, keys: {name: {shape, dtype}}, warnings}``; a damaged store is described as far as it is whole."""
    found = check(path)
    store = Store.open(path, whole_part=True)
    return {
        "kind": "store",
        "episodes": store.num_episodes,
        "steps": store.num_steps,
        "keys": {name: {"shape": list(key.shape), "dtype": str(key.dtype)} for name, key in store.keys.items()},
        "warnings": [str(finding) for finding in (*found.damage, *found.warnings)],
    }


def histogram(values: NDArray[Any]) -> str:
    """Counts of ``values`` in 24 equal bins, as a line of bars; an occupied bin is never blank."""
    counts, _ = np.histogram(values, BINS)
    levels = np.ceil(counts / counts.max() * (len(BARS) - 1)).astype(int)
    return "".join(BARS[level] for level in levels)
