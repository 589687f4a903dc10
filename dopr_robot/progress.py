"""Progress of long work: a bar on a terminal's stderr or below a notebook's cell, elsewhere a line now and then on stderr.

Nothing of it is shown where the package's logger lets no warnings through, as after ``logging.getLogger("dopr_robot").setLevel("ERROR")``,
which is what ``dopr --quiet`` does.
"""

import html
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dopr_robot.terminal import escaped

LINE_EVERY_S = 15.0
PAGE_EVERY_S = 0.2


class Meter:
    """Counts work done; made by :func:`progress`."""

    def __init__(
        self, label: str, total: int, unit: str, done: int, bar: Progress | None = None, cell: "_Cell | None" = None
    ) -> None:
        label = escaped(label)
        self.label, self.total, self.unit, self.done = label, total, unit, done
        self._first = done
        self._bar, self._cell, self._shown = bar, cell, _shown()
        self._task = bar.add_task(label, total=total, completed=done, unit=unit, rate="", note="") if bar else None
        self._start = self._last_line = time.monotonic()
        self._note = ""

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """``count`` more are done; ``note`` stands behind the numbers until the next one."""
        self.done += count
        self._note = self._note if note is None else escaped(note)
        now = time.monotonic()
        rate = f"{(self.done - self._first) / max(now - self._start, 1e-9):.1f} {self.unit}/s"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.done, rate=rate, note=self._note)
        elif self._shown and (
            now - self._last_line > (PAGE_EVERY_S if self._cell else LINE_EVERY_S) or self.done >= self.total
        ):
            self._last_line = now
            per_unit = (now - self._start) / max(self.done - self._first, 1)
            left = max(self.total - self.done, 0) * per_unit
            line = f"{self.label}: {self.done}/{self.total} {self.unit} ({rate}, {left:.0f} s left) {self._note}"
            if self._cell:
                self._cell.show(line.rstrip(), self.done, self.total)
            else:
                print(line.rstrip(), file=sys.stderr, flush=True)  # noqa: T201


class _Cell:
    """A bar below a notebook's cell: one output that is written anew, which needs no widgets and is saved with the notebook."""

    def __init__(self) -> None:
        self._output: Any = None

    def show(self, line: str, done: int, total: int) -> None:
        from IPython.display import HTML, display

        bar = f'<progress max="{total}" value="{done}" style="width: 12em"></progress>'
        content = HTML(f"<div><code>{bar} {html.escape(line)}</code></div>")
        if self._output is None:
            self._output = display(content, display_id=True)
        else:
            self._output.update(content)


@contextmanager
def progress(label: str, total: int, unit: str, done: int = 0) -> Iterator[Meter]:
    """A meter for ``total`` units of work, ``done`` of which were done before.

    >>> with progress("train", 100, "steps") as meter:                         # doctest: +SKIP
    ...     for step in range(100):
    ...         meter.advance(note=f"loss {loss:.3f}")
    """
    console = Console(stderr=True)
    if not console.is_terminal or not _shown():
        yield Meter(label, total, unit, done, cell=_Cell() if console.is_jupyter else None)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]} {task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console) as bar:
        yield Meter(label, total, unit, done, bar=bar)


def _shown() -> bool:
    return logging.getLogger("dopr_robot").isEnabledFor(logging.WARNING)


def tell(line: str) -> None:
    """A line about the work that begins, on stderr, where its progress is shown."""
    if _shown():
        print(escaped(line), file=sys.stderr, flush=True)  # noqa: T201
