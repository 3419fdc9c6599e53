"""Tables and sentences for the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

COLUMNS = 80
"""Maximum width of printed text, where possible."""


def text_table(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Lines of aligned columns, the first ``left`` of them left-aligned and the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([*map(str.ljust, row[:left], widths), *map(str.rjust, row[left:], widths[left:])]).rstrip()
        for row in rows
    ]


def wrapped(text: str, *, hanging: int = 2) -> list[str]:
    """Lines of at most `COLUMNS` characters, indented after the first; only long words such as paths are not broken."""
    return textwrap.wrap(text, COLUMNS, subsequent_indent=" " * hanging, break_long_words=False, break_on_hyphens=False)
