"""Lines and tables, made once for the terminal and for notebooks."""

import html
import io
import shutil
import sys
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dopr_robot.terminal import escaped


@dataclass(frozen=True)
class Table:
    """A table: names to the left, numbers to the right.

    >>> print(Table(["method", "success"], [["adamw", "95 %"], ["dopr", "100 %"]]))
    method  success
    adamw      95 %
    dopr      100 %
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def _columns(self) -> Iterator[tuple[str, bool]]:
        """Each column's name, and whether it holds numbers."""
        for place, name in enumerate(self.head):
            yield name, all(str(row[place])[:1] in "+-~0123456789" for row in self.rows)

    def __str__(self) -> str:
        return self.text()

    def text(self, head: bool = True) -> str:
        """As text, with the columns' names or without; where the terminal is too narrow names are folded, and numbers stay whole."""
        from rich.cells import cell_len

        lines = [[escaped(str(cell)) for cell in line] for line in (*([self.head] if head else []), *self.rows)]
        widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
        # Without a terminal a line is as long as it has to be: programs read it.
        room = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000
        if sum(widths) + 2 * (len(widths) - 1) > room or any(
            sign in cell for line in lines for cell in line for sign in "\n\t"
        ):
            return self._folded(lines, head, room)

        def aligned(cell: str, width: int, number: bool) -> str:
            space = " " * (width - cell_len(cell))
            return space + cell if number else cell + space

        numbers = [number for _, number in self._columns()]
        return "\n".join("  ".join(map(aligned, line, widths, numbers)).rstrip() for line in lines)

    def _folded(self, lines: Sequence[Sequence[str]], head: bool, room: int) -> str:
        """Cells on several lines, as ``room`` columns of a terminal want it; rich, which does that, takes longer to import than to run."""
        from rich.console import Console
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(box=None, show_header=head, padding=(0, 2, 0, 0), header_style="", pad_edge=False)
        for name, number in self._columns():
            table.add_column(Text(name), justify="right" if number else "left", no_wrap=number, overflow="fold")
        for line in lines[head:]:
            table.add_row(*map(Text, line))
        text = io.StringIO()
        # A notebook's kernel would show the table itself, before the line that it belongs behind.
        Console(file=text, width=room, highlight=False, color_system=None, force_jupyter=False).print(table)
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

    def html(self) -> str:
        """As HTML."""
        columns = [(name, "right" if number else "left") for name, number in self._columns()]
        head = "".join(f'<th style="text-align: {side}">{_safe(name)}</th>' for name, side in columns)
        rows = (
            "".join(
                f'<td style="text-align: {side}">{_safe(cell)}</td>'
                for cell, (_, side) in zip(row, columns, strict=True)
            )
            for row in self.rows
        )
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


class Shown:
    """What ``print`` shows as the command does, and a notebook as HTML, with its pictures."""

    def _parts(self) -> Iterator[str | Table]:
        """Lines and tables, in their order."""
        raise NotImplementedError

    def plain(self) -> Any:
        """Plain values, for programs: what ``--json`` prints."""
        raise NotImplementedError

    def _pictures(self) -> Sequence[Path]:
        """PNG files that a notebook shows below; those that are not there are passed over."""
        return ()

    def __str__(self) -> str:
        return "\n".join(str(part) if isinstance(part, Table) else escaped(part) for part in self._parts())

    def _repr_html_(self) -> str:
        parts = [part.html() if isinstance(part, Table) else f"<div>{_safe(part)}</div>" for part in self._parts()]
        pictures = (b64encode(path.read_bytes()).decode() for path in self._pictures() if path.is_file())
        parts += [f'<img style="max-width: 100%" src="data:image/png;base64,{picture}">' for picture in pictures]
        return "".join(parts)


class InFolder(Shown):
    """What a measurement found, and where it lies; wherever a path is taken, it may be given.

    Attributes:
        folder: which.
        content: of its JSON file.
    """

    folder: Path
    content: dict[str, Any]

    def plain(self) -> dict[str, Any]:
        """``folder``, and the content."""
        return {"folder": str(self.folder), **self.content}

    def __fspath__(self) -> str:
        return str(self.folder)


def interval(bounds: Sequence[float], form: str = "{:.1%}") -> str:
    """``"91.2% to 98.0%"``."""
    return " to ".join(form.format(bound) for bound in bounds)


def _safe(text: Any) -> str:
    return html.escape(escaped(str(text)))
