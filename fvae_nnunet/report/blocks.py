"""What a report consists of. Texts are plain: whoever renders a block escapes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib import figure


@dataclass(frozen=True)
class Heading:
    """Level 2 begins a chapter; 3 lies below, and both are in the contents; 4 lies below that."""

    text: str
    level: Literal[2, 3, 4] = 2


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Bullets:
    items: Sequence[str]


@dataclass(frozen=True)
class Facts:
    """Short terms, each with what there is to say about it."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Column:
    """A column of a table: neighbours of one ``group`` stand below its name; ``code`` is for hashes and paths."""

    name: str
    kind: Literal["text", "number", "code"] = "number"
    group: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of texts, one for each column. A row whose first cell is empty belongs to the one above."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    notes: Sequence[str] = ()

    @property
    def column_groups(self) -> list[tuple[str, int]]:
        """Names of groups of neighbouring columns, with the number of their columns."""
        return [(group, len(list(columns))) for group, columns in groupby(self.columns, lambda column: column.group)]

    @property
    def row_groups(self) -> list[Sequence[Sequence[str]]]:
        """The rows that share a first cell, together."""
        starts = [number for number, row in enumerate(self.rows) if number == 0 or row[0]]
        return [self.rows[start:stop] for start, stop in zip(starts, [*starts[1:], len(self.rows)], strict=True)]


@dataclass(frozen=True)
class Drawing:
    """A plot of matplotlib, drawn as SVG or PNG by who renders it.

    ``tips`` gives for the ``gid`` of an artist what is said where the pointer rests on it.
    """

    figure: figure.Figure
    tips: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Picture:
    """A finished JPEG."""

    jpeg: bytes


@dataclass(frozen=True)
class Figure:
    """An image with what stands below it, and what it shows in a few words for who cannot see it.

    One with a ``name`` is in the contents.
    """

    image: Drawing | Picture
    caption: str
    alternative: str
    name: str = ""


@dataclass(frozen=True)
class Details:
    """Blocks that are shown on demand."""

    summary: str
    blocks: Sequence[Block]


Block = Heading | Paragraph | Bullets | Facts | Table | Figure | Details


@dataclass(frozen=True)
class Report:
    """A title, a sentence below it (or none), the blocks, and who made it."""

    title: str
    lead: str
    blocks: Sequence[Block]
    made_by: str
