"""What is in a store, as plain figures: what ``dopr info STORE`` prints."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dopr_robot.datasets import Store, check, statistics
from dopr_robot.errors import UserError
from dopr_robot.evaluation.reports.store import KeyRow, key_rows, write_store_report
from dopr_robot.policies.scaling import hardly_moved

LARGE_BYTES = 256 * 1024**2
SAMPLE = 8
"""Episodes that the range of a large key is taken from."""
BARS = " ▁▂▃▄▅▆▇█"
BINS = 24


@dataclass(frozen=True)
class StoreDescription:
    """A store looked at; what costs time is found when it is asked for."""

    store: Store

    @classmethod
    def of(cls, path: str) -> "StoreDescription":
        """Of the store at a path. Raises UserError where there is none, DamagedError for a damaged one."""
        return cls(Store.open(path))

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

    def write_page(self, out: Path) -> None:
        """A page with plots and pictures. Raises UserError for a store without an episode."""
        if not self.store.num_episodes:
            raise UserError(f"{self.store.path} holds no episode yet")
        write_store_report(out, self.store, self.keys, self.warnings or [])


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
