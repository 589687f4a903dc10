"""A page about a demonstration store: what is in it, how long, how far, and what it looks like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dopr_robot.datasets import Store
from dopr_robot.evaluation.reports import plots
from dopr_robot.evaluation.reports.pages import data_uri, svg, write_page
from dopr_robot.evaluation.reports.video import fit
from dopr_robot.files import shown

TRACES = 40
"""Episodes drawn over one another."""
ENTRIES = 12
"""Entries of a vector that get a panel."""


@dataclass(frozen=True)
class KeyRow:
    """A line of the table of keys; ranges are texts, empty where there are none."""

    name: str
    shape: str
    dtype: str
    least: str
    largest: str
    use: str


def key_rows(store: Store, ranges: Mapping[str, Mapping[str, Any]]) -> list[KeyRow]:
    """Every key with what it is used for. ``ranges``: of :func:`dopr_robot.datasets.statistics`."""
    rows = []
    for name, key in store.keys.items():
        least, largest = (
            f"{getattr(ranges[name][side], side)():.4g}" if name in ranges else "" for side in ("min", "max")
        )
        use = "observation" if name in store.observations else "action" if name == "action" else ""
        rows.append(KeyRow(name, str(list(key.shape)), str(key.dtype), least, largest, use))
    return rows


def action_text(store: Store) -> str:
    """What an action means, in a line; what is not known is said to be unknown."""
    action = store.attributes.action
    kind = {None: "absolute or relative: unknown", True: "absolute", False: "relative"}[action.absolute]
    units = action.units if isinstance(action.units, str) else " ".join(dict.fromkeys(action.units))
    bounds = "bounded" if action.low else "no bounds declared"
    return ", ".join(part for part in (action.meaning or "meaning unknown", kind, units, bounds) if part)


def write_store_report(out: Path, store: Store, rows: Sequence[KeyRow], warnings: Sequence[str]) -> None:
    """Write the page to ``out``."""
    known = store.success[store.success >= 0]
    write_page(
        out,
        "store.html.j2",
        path=shown(store.path),
        about=store.attributes,
        episodes=store.num_episodes,
        steps=store.num_steps,
        success=float(known.mean()) if len(known) else None,
        known=len(known),
        action=action_text(store),
        rows=rows,
        warnings=warnings,
        lengths_svg=svg(lengths_figure(store)),
        vectors=[(key, svg(trace_figure(store, key))) for key in _vectors(store)],
        images=[(key, data_uri("image/jpeg", thumbnails(store, key))) for key in _images(store)],
    )


def _vectors(store: Store) -> list[str]:
    keys = [key for key in dict.fromkeys(["action", *store.observations]) if key in store.keys]
    return [key for key in keys if len(store.keys[key].shape) == 1 and store.keys[key].dtype.kind in "fiu"]


def _images(store: Store) -> list[str]:
    return [key for key, info in store.keys.items() if len(info.shape) == 3 and info.shape[-1] == 3]


def lengths_figure(store: Store) -> Figure:
    """Histogram of the episodes' lengths."""
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(7.2, 2.2), layout="constrained")
        axes = figure.add_subplot()
        lengths = store.episode_lengths
        width = -(-(int(np.ptp(lengths)) + 1) // 40)  # whole steps
        edges = np.arange(lengths.min(), lengths.max() + width + 1, width) - 0.5
        axes.hist(lengths, bins=edges.tolist(), color=plots.COLOURS[0])
        axes.set_xlim(lengths.min() - 1.5 * width, lengths.max() + 1.5 * width)
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True))
        axes.set_xlabel("steps")
        axes.set_ylabel("episodes")
        if store.attributes.control_hz:
            rate = store.attributes.control_hz
            top = axes.secondary_xaxis(
                "top", functions=(lambda x: np.asarray(x) / rate, lambda x: np.asarray(x) * rate)
            )
            top.set_xlabel("seconds")
    return figure


def trace_figure(store: Store, key: str) -> Figure:
    """A vector's entries over time, every episode a thin line; dashed: the bounds of an action."""
    chosen = np.unique(np.linspace(0, store.num_episodes - 1, min(TRACES, store.num_episodes)).astype(int))
    episodes = [store.episode(int(index), [key])[key] for index in chosen]
    entries = min(ENTRIES, store.keys[key].shape[0])
    action = store.attributes.action
    names = action.names if key == "action" and len(action.names) >= entries else [str(n) for n in range(entries)]
    columns = min(4, entries)
    with matplotlib.rc_context(plots.STYLE | {"font.size": 8}):
        lines = -(-entries // columns)
        figure = Figure(figsize=(7.2, 1.5 * lines + 0.3), layout="constrained")
        for entry, axes in enumerate(figure.subplots(lines, columns, sharex=True, squeeze=False).ravel()):
            axes.set_visible(entry < entries)
            if entry >= entries:
                continue
            for values in episodes:
                axes.plot(values[:, entry], color=plots.COLOURS[0], linewidth=0.6, alpha=0.35, rasterized=True)
            if key == "action" and action.low:
                for bound in (action.low[entry], action.high[entry]):
                    axes.axhline(bound, color=plots.COLOURS[1], linewidth=0.8, linestyle="--")
            axes.set_title(names[entry], loc="left", fontsize=8)
        figure.supxlabel("steps", fontsize=8)
    return figure


def thumbnails(store: Store, key: str, episodes: int = 5, frames: int = 6) -> bytes:
    """A JPEG: a few episodes, one a row, from start (left) to end."""
    rows = []
    for index in np.unique(np.linspace(0, store.num_episodes - 1, min(episodes, store.num_episodes)).astype(int)):
        start, length = int(store.episode_starts[index]), int(store.episode_lengths[index])
        places = start + np.linspace(0, length - 1, frames).round().astype(int)
        images = [store.read([key], int(place), int(place) + 1)[key][0] for place in places]
        rows.append(np.concatenate([fit(np.clip(image, 0, 255).astype(np.uint8), 96) for image in images], axis=1))
    return imageio.imwrite("<bytes>", np.concatenate(rows), extension=".jpg")
