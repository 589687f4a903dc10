"""Is a store whole, and is anything in it odd? And the way back from damage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dopr_robot.datasets.episode import UNKNOWN, Episode
from dopr_robot.datasets.recording import read_store, write_store
from dopr_robot.datasets.statistics import blocks
from dopr_robot.datasets.store import Store
from dopr_robot.errors import DamagedError, DoprError, UserError
from dopr_robot.files import replacing

SATURATED_SHARE = 0.25
"""Share of an action's steps at its bounds above which it is called saturated."""
REPLAY_TOLERANCE = 1e-3
"""Largest difference to a replay, in the observation's units, that is not worth a warning."""


@dataclass(frozen=True)
class Replayed:
    """What came of an episode's actions when they were run again from its recorded start.

    Attributes:
        drift: of every observation that the store and the task share, its largest difference from the recorded one, in its own units.
        success: whether the task says that it succeeded.
    """

    drift: Mapping[str, float]
    success: bool


Replay = Callable[[Episode], Replayed | None]
"""Runs an episode's actions again; None: its start is not recorded. Raises DoprError where it can not."""


@dataclass
class Replays:
    """What a check's replays came to.

    Attributes:
        episodes: that were replayed.
        compared: observations that were compared with the recorded ones.
        recorded, succeeded: episodes that say of themselves that they are successes, and those that were in replay.
        unknown: episodes that say nothing of success.
        why_not: why nothing was replayed, or no more.
    """

    episodes: int = 0
    compared: tuple[str, ...] = ()
    recorded: int = 0
    succeeded: int = 0
    unknown: int = 0
    why_not: str = ""

    def __str__(self) -> str:
        """One line: what was replayed and compared."""
        if not self.episodes:
            return f"not replayed: {self.why_not}"
        told = f"{self.recorded} recorded" if self.unknown < self.episodes else "none recorded"
        what = f"{self.episodes} replayed: {', '.join(self.compared) or 'no observation'} compared, "
        more = f"; {self.why_not}" if self.why_not else ""
        return f"{what}{self.succeeded} of {self.episodes} succeed in replay and {told}{more}"


@dataclass(frozen=True)
class Finding:
    """One line of a report: where, what, and in which episode."""

    key: str
    what: str
    episode: int | None = None

    def __str__(self) -> str:
        return f"{self.key}: {self.what}" + ("" if self.episode is None else f" (episode {self.episode})")


@dataclass
class Report:
    """What :func:`check` found. Damage contradicts itself or cannot be trained on; a warning is odd and may be meant.

    ``print`` shows what ``dopr info --check`` does: a line a finding.
    """

    path: str = ""
    damage: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)
    replays: Replays = field(default_factory=Replays)

    def plain(self) -> dict[str, Any]:
        """Plain values, for programs."""
        return {
            "path": self.path,
            "good": not self.damage,
            "damage": [str(finding) for finding in self.damage],
            "warnings": [str(finding) for finding in self.warnings],
            "replays": str(self.replays),
        }

    def __str__(self) -> str:
        lines = [*map(str, self.damage), *(f"warning: {finding}" for finding in self.warnings)]
        if not self.damage:
            warnings = f", {len(self.warnings)} warnings" if self.warnings else ""
            lines.append(f"{self.path}: good{warnings} ({self.replays})")
        return "\n".join(lines)


def check(path: str | Path, *, replay: Replay | None = None, replay_episodes: int = 10) -> Report:
    """Read everything in a store and report what is wrong.

    Damage: ``episode_ends`` that do not increase, arrays shorter than they say, files missing or unreadable (the checksums of
    chunks are verified by reading them), NaN and inf, declared keys that are absent. Warnings: constant or saturated actions,
    constant observations, seeds seen twice, replays that drift or do not succeed as recorded.

    Args:
        path: the store.
        replay: where the simulator is at hand, what replays an episode.
        replay_episodes: how many episodes are replayed, spread evenly.

    Raises UserError where it is not a store at all.
    """
    report = Report(str(path))
    try:
        store = _opened(path, report)
        _check_store(store, report, replay, replay_episodes)
    except DamagedError as error:  # so bad that nothing more can be read
        if (finding := _finding(error, path)) not in report.damage:
            report.damage.append(finding)
    return report


def _opened(path: str | Path, report: Report) -> Store:
    try:
        return Store.open(path)
    except DamagedError as error:
        report.damage.append(_finding(error, path))
        return Store.open(path, whole_part=True)


def _check_store(store: Store, report: Report, replay: Replay | None, replay_episodes: int) -> None:
    keys = store.keys
    for name in store.attributes.observations:
        if name not in keys:
            report.damage.append(Finding(name, "declared as an observation and absent"))
    if "action" not in keys and store.num_episodes:
        report.warnings.append(Finding("action", f"there is no such key (keys: {', '.join(keys)})"))
    report.damage += _check_meta(store)
    for key in keys:
        ranges = _Ranges()
        report.damage += (found := list(_check_key(store, key, ranges)))
        if all(finding.what in _NOT_FINITE for finding in found):
            report.warnings += _oddities(store, key, ranges)
    report.warnings += _repeated(store.seeds)
    if replay is not None and not report.damage:
        report.warnings += _check_replay(store, replay, replay_episodes, report.replays)


def repair(path: str | Path) -> list[str]:
    """Take a store back to the longest run of whole episodes from its start.

    The store is rewritten beside its place and exchanged, so a kill leaves either the old one or the new one.

    Returns:
        what was done, one line each; empty where nothing was wrong.

    Raises:
        UserError: not a store, not a local folder, made by another program, or another program is writing to it.
        DamagedError: not even the first episode is whole.
    """
    path = Path(path)
    store = Store.open(path, whole_part=True)
    if not path.is_dir() or not store.is_own:
        raise UserError(f"{path}: only a local store written by dopr is repaired: dopr convert it first")
    report = check(path)
    structural = [finding for finding in report.damage if finding.what not in _NOT_FINITE]
    if not structural:
        return []
    with store.locked():
        whole = next((e for e in range(store.num_episodes) if not _is_whole(store, e)), store.num_episodes)
        if whole == 0:
            raise DamagedError(f"{path}: no whole episode is left; first damage: {structural[0]}")
        with replacing(path) as mended:
            write_store(read_store(store, range(whole)), mended)
    return [*map(str, structural), f"kept {whole} whole episodes"]


_NOT_FINITE = ("NaN", "inf")


class _Ranges:
    """Minimum and maximum over all episodes, and the share of steps at given bounds."""

    def __init__(self) -> None:
        self.low: NDArray | None = None
        self.high: NDArray | None = None

    def add(self, values: NDArray) -> None:
        low, high = values.min(0), values.max(0)
        self.low = low if self.low is None else np.minimum(self.low, low)
        self.high = high if self.high is None else np.maximum(self.high, high)


def _check_key(store: Store, key: str, ranges: _Ranges) -> Iterator[Finding]:
    array = store.array(key)
    if store.is_own:
        for row in store.missing_files(key):
            yield Finding(key, "a file is missing", int(np.searchsorted(store.episode_ends, row, side="right")))
    for start, stop in blocks(store, key, np.ones(store.num_episodes, bool)):
        try:
            yield from _check_rows(store, key, start, stop, ranges)
        except DamagedError:
            # Which episodes it is: one at a time.
            first, last = np.searchsorted(store.episode_ends, (start, stop - 1), side="right")
            for index in range(int(first), int(last) + 1):
                begin, end = max(start, int(store.episode_starts[index])), min(stop, int(store.episode_ends[index]))
                try:
                    yield from _check_rows(store, key, begin, end, ranges)
                except DamagedError as error:
                    yield _finding(error, store.path)
                    if array.shape[0] < store.num_steps:
                        return


def _check_rows(store: Store, key: str, start: int, stop: int, ranges: _Ranges) -> Iterator[Finding]:
    values = store.read([key], start, stop)[key]
    if values.dtype.kind not in "fiub":
        return
    ranges.add(values)
    if values.dtype.kind == "f" and not (finite := np.isfinite(values)).all():
        bad = np.flatnonzero(~finite.reshape(len(values), -1).all(axis=1))
        missing = np.isnan(values.reshape(len(values), -1)[bad]).any(axis=1)
        episodes = np.searchsorted(store.episode_ends, start + bad, side="right")
        for index in np.unique(episodes):
            yield Finding(key, "NaN" if missing[episodes == index].any() else "inf", int(index))


def _check_meta(store: Store) -> Iterator[Finding]:
    if not store.is_own:
        return
    try:
        present = store.meta
    except DamagedError as error:
        yield _finding(error, store.path)
        return
    for name, rows in store.meta_rows.items():
        if rows < store.num_episodes:
            yield Finding(f"meta/{name}", f"has {rows} entries for {store.num_episodes} episodes", rows)
    for name in ("seed", "success"):
        if name not in present and name not in store.meta_rows:
            yield Finding(f"meta/{name}", "is missing")


def _oddities(store: Store, key: str, ranges: _Ranges) -> Iterator[Finding]:
    if ranges.low is None or ranges.high is None or store.num_steps < 2:
        return
    constant = np.atleast_1d(ranges.low == ranges.high)
    which = "every step alike" if constant.all() else f"entries {np.flatnonzero(constant).tolist()[:8]} never change"
    if constant.any() and (constant.all() or constant.ndim == 1):
        yield Finding(key, f"constant: {which}")
    action = store.attributes.action
    if key == "action" and action.low and constant.shape == (len(action.low),):
        values = store.read([key])[key]
        share = ((values <= action.low) | (values >= action.high)).mean(0)
        for entry in np.flatnonzero((share > SATURATED_SHARE) & ~constant):
            yield Finding(key, f"saturated: entry {entry} is at its bounds in {share[entry]:.0%} of the steps")
        beyond = np.maximum(np.array(action.low) - values, values - np.array(action.high)).max(1)
        if (beyond > 1e-6).any():
            what = f"{(beyond > 1e-6).mean():.1%} of the steps are beyond the bounds that the attributes declare"
            yield Finding(key, f"{what}, by up to {beyond.max():.3g}: they are cut when they are executed")


def _check_replay(store: Store, replay: Replay, count: int, replays: Replays) -> Iterator[Finding]:
    chosen = np.unique(np.linspace(0, store.num_episodes - 1, min(count, store.num_episodes)).astype(int))
    compared: dict[str, None] = {}
    for index, episode in zip(chosen, read_store(store, chosen).episodes, strict=True):
        try:
            found = replay(episode)
        except DoprError as error:
            replays.why_not = f"{error} (episode {index})"
            break
        if found is None:
            continue
        replays.episodes += 1
        replays.succeeded += found.success
        replays.recorded += bool(episode.success)
        replays.unknown += episode.success is None
        compared |= dict.fromkeys(found.drift)
        for key, drift in found.drift.items():
            if not drift <= REPLAY_TOLERANCE:
                yield Finding(key, f"a replay drifts by {drift:.3g}", int(index))
        if episode.success is not None and episode.success != found.success:
            words = {True: "succeeds", False: "fails"}
            yield Finding(
                "success", f"a replay {words[found.success]}, recorded is that it {words[episode.success]}", int(index)
            )
    replays.compared = tuple(compared)
    if replays.episodes and not compared:
        has = ", ".join(key for key in store.keys if key != "action")
        yield Finding("replay", f"no observation was compared: the task gives none of the store's keys ({has})")
    if not replays.episodes and not replays.why_not:
        replays.why_not = "no episode has a seed or a recorded start"


def _is_whole(store: Store, index: int) -> bool:
    """Whether every file under an episode is there and readable."""
    start, stop = int(store.episode_starts[index]), int(store.episode_ends[index])
    for key in store.keys:
        array = store.array(key)
        rows = (array.shards or array.chunks)[0]
        if any(start < row + rows and row < stop for row in store.missing_files(key)):
            return False
    try:
        store.episode(index)
    except DamagedError:
        return False
    return all(rows > index for rows in store.meta_rows.values())


def _repeated(seeds: NDArray) -> Iterator[Finding]:
    """Each seed that several episodes have, with the first two of them."""
    order = np.argsort(seeds, kind="stable")
    again = np.flatnonzero((np.diff(seeds[order]) == 0) & (seeds[order[1:]] != UNKNOWN))
    for place in again[np.diff(seeds[order[again]], prepend=UNKNOWN) != 0]:
        first, second = order[place : place + 2]
        yield Finding("seed", f"{seeds[first]} is also episode {first}'s", int(second))


def _finding(error: DamagedError, path: str | Path) -> Finding:
    """The message of a damaged store is ``path: key: what (episode e)``."""
    key, _, what = str(error).removeprefix(f"{path}: ").partition(": ")
    return Finding(key, what)
