"""A report as Markdown, as GitHub reads it, with its images as files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import count
from urllib.parse import quote

from fvae_nnunet.report.blocks import (
    Block,
    Bullets,
    Details,
    Drawing,
    Facts,
    Figure,
    Heading,
    Paragraph,
    Report,
    Table,
)
from fvae_nnunet.report.inline_svg import png

_SPECIAL = re.compile(r"([\\`*\[\]|~$])|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_AT_THE_START = re.compile(r"^(\s*)([-+#>=]|\d+[.)])(?=\s|$)")


def render_markdown(report: Report, folder: str) -> tuple[str, dict[str, bytes]]:
    """The text, and its images by name.

    Args:
        report: plots become PNG files, pictures JPEG files.
        folder: where the images will be, from where the text will be.
    """
    writer = _Writer(folder)
    parts = [f"# {escaped(report.title)}", *([escaped(report.lead)] if report.lead else [])]
    for block in report.blocks:
        parts += writer.block(block)
    return "\n\n".join([*parts, escaped(report.made_by)]) + "\n", writer.images


def escaped(text: str) -> str:
    """A text that Markdown shows as it is, in one line."""
    text = " ".join(text.split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = _SPECIAL.sub(lambda found: "\\" + found[0], text)
    return _AT_THE_START.sub(lambda found: f"{found[1]}{found[2][:-1]}\\{found[2][-1]}", text)


class _Writer:
    """Numbers and keeps the images while it writes the blocks."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.numbers = count(1)
        self.images: dict[str, bytes] = {}

    def block(self, block: Block) -> Iterator[str]:
        """Paragraphs of Markdown."""
        match block:
            case Heading():
                yield f"{'#' * block.level} {escaped(block.text)}"
            case Paragraph():
                yield escaped(block.text)
            case Bullets():
                yield "\n".join(f"- {escaped(item)}" for item in block.items)
            case Facts():
                yield "\n".join(f"- **{escaped(term)}**: {escaped(text)}" for term, text in block.items)
            case Table():
                yield from _table(block)
            case Figure():
                yield from self.figure(block)
            case Details():
                yield f"<details>\n<summary>{escaped(block.summary)}</summary>"
                for inner in block.blocks:
                    yield from self.block(inner)
                yield "</details>"

    def figure(self, figure: Figure) -> Iterator[str]:
        is_drawing = isinstance(figure.image, Drawing)
        name = f"figure_{next(self.numbers):02d}.{'png' if is_drawing else 'jpg'}"
        self.images[name] = png(figure.image) if isinstance(figure.image, Drawing) else figure.image.jpeg
        yield f"![{escaped(figure.alternative)}]({quote(f'{self.folder}/{name}')})"
        yield escaped(figure.caption)


def _table(table: Table) -> Iterator[str]:
    if table.caption:
        yield f"**{escaped(table.caption)}**"
    names = [escaped(f"{column.group} {column.name}".strip()) for column in table.columns]
    rule = ["---:" if column.kind == "number" else ":---" for column in table.columns]
    rows = [[escaped(cell) for cell in row] for row in table.rows]
    yield "\n".join(f"| {' | '.join(cells)} |" for cells in (names, rule, *rows))
    if table.notes:
        yield "\n".join(f"- {escaped(note)}" for note in table.notes)
