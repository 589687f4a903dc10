"""Text that somebody else wrote, as a terminal may show it."""

import re
from typing import Any, TextIO

_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal acts on instead of showing it: control characters but tab and line feed, line ends of Unicode's, changes of the
writing direction, and what no encoding has."""


def escaped(text: str) -> str:
    """The text with every character that a terminal acts on in the form that Python writes it.

    >>> escaped("a key \\x1b[31mred")
    'a key \\\\x1b[31mred'
    """
    return _ACTING.sub(lambda found: found.group().encode("unicode_escape", "surrogatepass").decode(), text)


class Escaping:
    """A text stream that shows what is written to it escaped; everything else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(escaped(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
