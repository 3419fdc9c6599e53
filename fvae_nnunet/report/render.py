"""Render a report as an HTML page or as Markdown, with ``templates/page.html`` and ``templates/page.md``."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any, get_args
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from fvae_nnunet.report.blocks import Block, Drawing, Figure, Heading, Picture, Report
from fvae_nnunet.report.inline_svg import inline_svg, png

MOST_SVG_CHARACTERS = 1_500_000
"""Plots with a longer SVG, from several thousand dots, become a PNG."""

MANY_COLUMNS = 12
"""Tables with more columns are set narrower."""

LONG_TEXT = 40
"""Longer texts in a table may be wrapped."""

_SPECIAL = re.compile(r"([\\`*\[\]|~$])|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_AT_THE_START = re.compile(r"^(\s*)([-+#>=]|\d+[.)])(?=\s|$)")


def render_html(report: Report) -> str:
    """Render a page with all its images; it has no script and needs no other file or address."""
    numbers, places = count(1), count(1)
    anchors = {id(block): f"part-{next(places)}" for block in report.blocks if _name_in_contents(block)}

    def drawn(drawing: Drawing, alternative: str) -> Markup:
        svg = inline_svg(drawing, f"d{next(numbers)}", alternative)
        return Markup(svg) if len(svg) <= MOST_SVG_CHARACTERS else img(png(drawing), "png", alternative)

    def img(data: bytes, kind: str, alternative: str) -> Markup:
        return Markup('<img src="data:image/{};base64,{}" alt="{}">').format(
            kind, b64encode(data).decode(), alternative
        )

    page = _environment().get_template("page.html")
    return page.render(
        report=report,
        chapters=_contents(report, anchors),
        anchor=lambda block: anchors.get(id(block)),
        width_inches=lambda drawing: drawing.figure.get_figwidth(),
        drawn=drawn,
        img=img,
        MANY_COLUMNS=MANY_COLUMNS,
        LONG_TEXT=LONG_TEXT,
    )


@dataclass(frozen=True)
class _Entry:
    """A line of the contents, with its subordinate lines."""

    name: str
    anchor: str
    below: list[_Entry]


def _contents(report: Report, anchors: Mapping[int, str]) -> list[_Entry]:
    """The contents: chapters, their sections (labels, cases), and named figures."""
    chapters: list[_Entry] = []
    for block in report.blocks:
        name = _name_in_contents(block)
        if not name:
            continue
        entry = _Entry(name, anchors[id(block)], [])
        if isinstance(block, Heading) and (block.level == 2 or not chapters):
            chapters.append(entry)
        elif isinstance(block, Heading) or not chapters[-1].below:
            chapters[-1].below.append(entry)
        else:
            chapters[-1].below[-1].below.append(entry)
    return chapters


def _name_in_contents(block: Block) -> str:
    if isinstance(block, Heading) and block.level <= 3:
        return block.text
    return block.name if isinstance(block, Figure) else ""


def render_markdown(report: Report, folder: str) -> tuple[str, dict[str, bytes]]:
    """Render the text, and its images by name.

    Args:
        report: report; plots become PNG files, pictures JPEG files.
        folder: folder of the images, relative to the text.
    """
    images: dict[str, bytes] = {}

    def address(image: Drawing | Picture) -> Markup:
        name = f"figure_{len(images) + 1:02d}.{'png' if isinstance(image, Drawing) else 'jpg'}"
        images[name] = png(image) if isinstance(image, Drawing) else image.jpeg
        return Markup(quote(f"{folder}/{name}"))

    page = _environment(finalize=lambda value: value if isinstance(value, Markup) else Markup(escaped(str(value))))
    return page.get_template("page.md").render(report=report, address=address), images


def escaped(text: str) -> str:
    """Escape a text for Markdown, in one line."""
    text = " ".join(text.split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = _SPECIAL.sub(lambda found: "\\" + found[0], text)
    return _AT_THE_START.sub(lambda found: f"{found[1]}{found[2][:-1]}\\{found[2][-1]}", text)


def _environment(finalize: Callable[[Any], Any] | None = None) -> Environment:
    """The template environment, with tests such as ``block is table``."""
    environment = Environment(
        loader=PackageLoader("fvae_nnunet.report"),
        autoescape=select_autoescape(["html", "md"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=finalize,
    )
    for kind in (*get_args(Block), Drawing):
        environment.tests[kind.__name__.lower()] = lambda value, kind=kind: isinstance(value, kind)
    return environment
