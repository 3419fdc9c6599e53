"""Tables and sentences for the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

COLUMNS = 80
"""Of a terminal; what is printed is no wider where that can be."""


def text_table(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Lines of equal columns, the first so many of them flush left and the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([*map(str.ljust, row[:left], widths), *map(str.rjust, row[left:], widths[left:])]).rstrip()
        for row in rows
    ]


def wrapped(text: str, *, hanging: int = 2) -> list[str]:
    """A text in lines of at most `COLUMNS`, all but the first indented; only a word that is longer, as a path, is."""
    return textwrap.wrap(text, COLUMNS, subsequent_indent=" " * hanging, break_long_words=False, break_on_hyphens=False)
