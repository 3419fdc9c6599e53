"""A report as one HTML page that needs nothing but itself."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from itertools import count, groupby

from fvae_nnunet.report.blocks import (
    Block,
    Bullets,
    Column,
    Details,
    Drawing,
    Facts,
    Figure,
    Heading,
    Paragraph,
    Report,
    Table,
)
from fvae_nnunet.report.inline_svg import inline_svg, png
from fvae_nnunet.report.style import CSS

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""The page's Content-Security-Policy: styles and images inside the page and nothing else, no script, no network."""

MOST_SVG_CHARACTERS = 1_500_000
"""A plot that is longer as SVG, of several thousand dots, becomes a PNG."""

MANY_COLUMNS = 12
"""Of a table whose columns stand closer together."""

LONG_TEXT = 40
"""A text of more characters in a table may be broken into lines."""


def render_html(report: Report) -> str:
    """The page. All texts are escaped; there is no script, and no address of anything outside the page."""
    writer = _Writer()
    body = "\n".join(map(writer.block, report.blocks))
    contents = "\n".join(f'<li><a href="#{anchor}">{escape(text)}</a></li>' for anchor, text in writer.chapters)
    lead = f'<p class="lead">{escape(report.lead)}</p>' if report.lead else ""
    navigation = f"<nav><ol>\n{contents}\n</ol></nav>" if len(writer.chapters) > 1 else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{escape(report.title)}</title>
<style>{CSS}</style>
</head>
<body>
<main>
<header>
<h1>{escape(report.title)}</h1>
{lead}
{navigation}
</header>
{body}
<footer>{escape(report.made_by)}</footer>
</main>
</body>
</html>
"""


class _Writer:
    """Numbers drawings and chapters while it writes the blocks."""

    def __init__(self) -> None:
        self.drawings = count(1)
        self.chapters: list[tuple[str, str]] = []

    def block(self, block: Block) -> str:
        match block:
            case Heading():
                return self.heading(block)
            case Paragraph():
                return f"<p>{escape(block.text)}</p>"
            case Bullets():
                return "<ul>\n" + "\n".join(f"<li>{escape(item)}</li>" for item in block.items) + "\n</ul>"
            case Facts():
                return _facts(block)
            case Table():
                return _table(block)
            case Figure():
                return self.figure(block)
            case Details():
                inner = "\n".join(map(self.block, block.blocks))
                return f"<details>\n<summary>{escape(block.summary)}</summary>\n{inner}\n</details>"

    def heading(self, heading: Heading) -> str:
        if heading.level > 2:
            return f"<h{heading.level}>{escape(heading.text)}</h{heading.level}>"
        anchor = f"chapter-{len(self.chapters) + 1}"
        self.chapters.append((anchor, heading.text))
        return f'<h2 id="{anchor}">{escape(heading.text)}</h2>'

    def figure(self, figure: Figure) -> str:
        caption = f"<figcaption>{escape(figure.caption)}</figcaption>"
        if isinstance(figure.image, Drawing):
            svg = inline_svg(figure.image, f"d{next(self.drawings)}", figure.alternative)
            if len(svg) > MOST_SVG_CHARACTERS:
                svg = _img(png(figure.image), "image/png", figure.alternative)
            return f"<figure>\n{svg}\n{caption}\n</figure>"
        image = _img(figure.image.jpeg, "image/jpeg", figure.alternative)
        # a picture that has the focus is shown in full size
        return (
            f'<figure>\n<div class="picture" tabindex="0" title="click to enlarge">{image}</div>\n{caption}\n</figure>'
        )


def _img(data: bytes, media_type: str, alternative: str) -> str:
    return f'<img src="data:{media_type};base64,{b64encode(data).decode()}" alt="{escape(alternative)}">'


def _facts(facts: Facts) -> str:
    items = "\n".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in facts.items)
    return f"<dl>\n{items}\n</dl>"


def _table(table: Table) -> str:
    # not a caption element: that is no wider than the table
    caption = f'<p class="caption">{escape(table.caption)}</p>\n' if table.caption else ""
    label = f' aria-label="{escape(table.caption)}"' if table.caption else ""
    kind = ' class="wide"' if len(table.columns) > MANY_COLUMNS else ""
    notes = "".join(f"<p>{escape(note)}</p>" for note in table.notes)
    return (
        f'{caption}<div class="table"><table{kind}{label}>\n<thead>\n{_head(table.columns)}\n</thead>\n'
        f"<tbody>\n{_body(table)}\n</tbody>\n</table></div>" + (f'\n<div class="notes">{notes}</div>' if notes else "")
    )


def _head(columns: Sequence[Column]) -> str:
    names = "".join(f'<th scope="col" class="{column.kind}">{escape(column.name)}</th>' for column in columns)
    if not any(column.group for column in columns):
        return f"<tr>{names}</tr>"
    groups = ""
    for group, members in groupby(columns, key=lambda column: column.group):
        span = len(list(members))
        attributes = f'scope="colgroup" class="group" colspan="{span}"'
        groups += f"<th {attributes}>{escape(group)}</th>" if group else f'<td colspan="{span}"></td>'
    return f"<tr>{groups}</tr>\n<tr>{names}</tr>"


def _body(table: Table) -> str:
    """Rows whose first cell is empty share that of the row above."""
    starts = [number for number, row in enumerate(table.rows) if number == 0 or row[0]]
    lines = []
    for start, stop in zip(starts, [*starts[1:], len(table.rows)], strict=True):
        for number in range(start, stop):
            first, *others = table.rows[number]
            cells = ""
            if number == start:
                span = f' rowspan="{stop - start}"' if stop - start > 1 else ""
                kind = table.columns[0].kind
                cells = f'<th scope="row" class="{kind}"{span}>{escape(first)}</th>'
            for column, cell in zip(table.columns[1:], others, strict=True):
                long = " long" if len(cell) > LONG_TEXT else ""
                cells += f'<td class="{column.kind}{long}">{escape(cell)}</td>'
            begins_group = number == start and len(starts) < len(table.rows)
            lines.append(f'<tr class="first">{cells}</tr>' if begins_group else f"<tr>{cells}</tr>")
    return "\n".join(lines)
