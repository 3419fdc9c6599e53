"""The blocks of a report. Texts are plain; the renderer escapes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib import figure


@dataclass(frozen=True)
class Heading:
    """A heading. Level 2 begins a chapter, 3 is a section; both are in the contents. Level 4 is a subsection."""

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
    """Short terms, each with a text."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Column:
    """A column of a table. Neighbours of the same ``group`` share a heading; ``code`` is for hashes and paths."""

    name: str
    kind: Literal["text", "number", "code"] = "number"
    group: str = ""


@dataclass(frozen=True)
class Table:
    """A table of texts. A row whose first cell is empty belongs to the row above."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    notes: Sequence[str] = ()

    @property
    def column_groups(self) -> list[tuple[str, int]]:
        """Names of the groups of neighbouring columns, with their numbers of columns."""
        return [(group, len(list(columns))) for group, columns in groupby(self.columns, lambda column: column.group)]

    @property
    def row_groups(self) -> list[Sequence[Sequence[str]]]:
        """The rows, grouped by their first cell."""
        starts = [number for number, row in enumerate(self.rows) if number == 0 or row[0]]
        return [self.rows[start:stop] for start, stop in zip(starts, [*starts[1:], len(self.rows)], strict=True)]


@dataclass(frozen=True)
class Drawing:
    """A matplotlib plot, which the renderer draws as SVG or PNG.

    ``tips`` maps the ``gid`` of an artist to its tooltip.
    """

    figure: figure.Figure
    tips: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Picture:
    """A finished JPEG."""

    jpeg: bytes


@dataclass(frozen=True)
class Figure:
    """An image with a caption and an alternative text. With a ``name`` it is in the contents."""

    image: Drawing | Picture
    caption: str
    alternative: str
    name: str = ""


@dataclass(frozen=True)
class Details:
    """Blocks that are collapsed until opened."""

    summary: str
    blocks: Sequence[Block]


Block = Heading | Paragraph | Bullets | Facts | Table | Figure | Details


@dataclass(frozen=True)
class Report:
    """A report: title, a sentence below it (may be empty), blocks, and a footer that names the program."""

    title: str
    lead: str
    blocks: Sequence[Block]
    made_by: str
