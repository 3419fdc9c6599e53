"""How blocks become HTML and Markdown: escaping, tables, drawings, sizes."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from report_for_tests import HOSTILE, Page, markdown_tables

from fvae_nnunet.report.blocks import (
    Bullets,
    Column,
    Details,
    Drawing,
    Facts,
    Figure,
    Heading,
    Paragraph,
    Picture,
    Report,
    Table,
)
from fvae_nnunet.report.render import escaped, render_html, render_markdown

TABLE = Table(
    [Column("measure", "text"), Column("a|b", group="*x*"), Column("y", group="*x*"), Column("file", "code")],
    [["DSC", "1", "2", "a_b"], ["", "3", "4", HOSTILE], ["_NSD_", "5", "6", "`c`|$d$"]],
    "A <caption>",
    ["a <note>"],
)


def report(*blocks) -> Report:
    return Report(HOSTILE, "a & b", blocks, "made by <us>")


def test_every_text_is_escaped():
    blocks = (
        Heading(HOSTILE), Heading(HOSTILE, 3), Paragraph(HOSTILE), Bullets([HOSTILE]), Facts([(HOSTILE, HOSTILE)]),
        TABLE, Details(HOSTILE, [Paragraph(HOSTILE)]), Figure(Picture(b"\xff\xd8"), HOSTILE, HOSTILE),
    )  # fmt: skip
    text = render_html(report(*blocks))
    page = Page(text)
    assert "script" not in page.tags and not page.open
    # title, headline, two headings, paragraph, item, term and text, cell, summary and what it hides, caption
    shown = [found for texts in page.texts.values() for found in texts if found == HOSTILE]
    assert len(shown) == 12
    assert text.count("&lt;script&gt;") == 13, "and the image's description"
    text, _ = render_markdown(report(*blocks), "files")
    assert "<script" not in text and text.count("&lt;script&gt;") == 12, "the title stands there once"


def test_rows_without_a_first_cell_share_the_one_above_and_groups_span_their_columns():
    page = Page(render_html(report(TABLE)))
    assert page.tables == [
        [
            ["", "*x*", ""], ["measure", "a|b", "y", "file"], ["DSC", "1", "2", "a_b"], ["3", "4", HOSTILE],
            ["_NSD_", "5", "6", "`c`|$d$"],
        ]
    ]  # fmt: skip
    text = render_html(report(TABLE))
    assert 'rowspan="2">DSC<' in text and 'colspan="2">*x*<' in text


def test_markdown_shows_texts_as_they_are():
    assert escaped(HOSTILE) == '&lt;script&gt;x()&lt;/script&gt;&amp;"'
    assert escaped("case_001 _x_ *y* `z` [a](b) a|b $1 ~2") == (r"case_001 \_x\_ \*y\* \`z\` \[a\](b) a\|b \$1 \~2")
    assert [escaped(text) for text in ("# a", "1. b", "- c", "2024 d", "e\n\n# f")] == [
        r"\# a", r"1\. b", r"\- c", "2024 d", "e # f"
    ]  # fmt: skip
    text, images = render_markdown(report(Heading("h"), TABLE, Details("<s>", [Paragraph("p")])), "files")
    assert images == {}
    assert markdown_tables(text) == [
        [["DSC", "1", "2", "a_b"], ["", "3", "4", HOSTILE], ["_NSD_", "5", "6", "`c`|$d$"]]
    ]
    assert "| :--- | ---: | ---: | :--- |" in text and "**A &lt;caption&gt;**" in text and "- a &lt;note&gt;" in text
    assert "<details>\n<summary>&lt;s&gt;</summary>\n\np\n\n</details>" in text


def test_images_of_markdown_lie_in_the_folder_under_names_of_our_own():
    text, images = render_markdown(report(Figure(Picture(b"jpeg"), "c", "a]b")), "my report_files")
    assert images == {"figure_01.jpg": b"jpeg"}
    assert "![a\\]b](my%20report_files/figure_01.jpg)" in text


# Drawings


def drawing(dots: int = 3) -> Drawing:
    from fvae_nnunet.report.plots import Values, paired_dots

    series = {name: {f"case_{n}": (n + shift) / dots for n in range(dots)} for name, shift in (("$a", 0), ("$b", 0.5))}
    return paired_dots(
        [Values("DSC", series, means={"$a": 0.5}, intervals={"$a": (0.4, 0.6)})], {"$a": "#111111", "$b": "#222222"}
    )


def test_several_drawings_of_a_page_do_not_share_identifiers():
    figure = Figure(drawing(), "c", "dots of <a>")
    text = render_html(report(figure, figure))
    page = Page(text)
    assert page.texts["svg"] and len(page.ids) == len(set(page.ids))
    used = {address[1:] for address in page.addresses if address.startswith("#d")}
    assert used and used | page.references <= set(page.ids)
    assert all(name.startswith(("d1", "d2")) for name in page.ids)
    assert 'aria-label="dots of &lt;a&gt;"' in text


def test_letters_of_a_drawing_are_letters_in_the_colour_of_the_page():
    page = Page(render_html(report(Figure(drawing(), "c", "a"))))
    assert {"DSC", "$a", "$b"} <= set(page.texts["text"])
    from fvae_nnunet.report.inline_svg import INK, inline_svg

    svg = inline_svg(drawing(), "x", "a")
    assert "currentColor" in svg and INK not in svg
    assert svg == inline_svg(drawing(), "x", "a")


def test_plots_scroll_where_they_have_no_room_and_closed_details_are_printed():
    text = render_html(report(Figure(drawing(), "c", "a"), Details("more", [Paragraph("inside")])))
    assert 'class="plot" style="--width: 3.60in"' in text
    assert "min-width: min(var(--width), 44rem)" in text and ".plot { overflow-x: auto; }" in text
    printing = text[text.index("@media print") :]
    assert "details::details-content { content-visibility: visible" in printing
    assert "display: none" not in printing.replace("nav { display: none; }", "")


def test_contents_hold_chapters_sections_and_named_figures():
    picture = Figure(Picture(b"\xff\xd8"), "c", "a", "case_1")
    text = render_html(report(Heading("One"), Heading("Two"), Heading("label", 3), Heading("deep", 4), picture))
    page = Page(text)
    assert page.texts["a"] == ["One", "Two", "label", "case_1"]
    assert page.addresses[:4] == ["#part-1", "#part-2", "#part-3", "#part-4"]
    assert page.ids == ["part-1", "part-2", "part-3", "part-4"]


def test_a_dot_stands_where_its_value_is():
    """Of three cases at 0, 1/3 and 2/3 the dots are equally far apart, the first the lowest."""
    from xml.etree import ElementTree

    from fvae_nnunet.report.inline_svg import inline_svg

    root = ElementTree.fromstring(inline_svg(drawing(), "x", "a"))
    dots = [float(use.get("y")) for use in root.iter("use") if "#111111" in use.get("style", "")]
    assert len(dots) == 3 and dots[0] > dots[1] > dots[2]
    assert dots[0] - dots[1] == pytest.approx(dots[1] - dots[2], abs=0.02)


def test_names_that_have_no_room_stand_once_in_a_legend():
    from fvae_nnunet.report.inline_svg import inline_svg
    from fvae_nnunet.report.plots import Values, paired_dots, panels_in_a_row

    names = [f"a rather long name {number}" for number in range(3)]
    panel = Values("DSC", {name: {"case": 0.5} for name in names})
    svg = inline_svg(paired_dots([panel, panel], dict.fromkeys(names, "#111111")), "x", "a")
    assert [svg.count(f">{name}</text>") for name in names] == [1, 1, 1]
    assert [panels_in_a_row(count) for count in (1, 5, 6, 7, 11)] == [1, 5, 3, 4, 4]


def test_a_view_that_equals_its_image_has_a_table_and_no_plot():
    from fvae_nnunet.report.case_images import View
    from fvae_nnunet.report.quality_section import quality_blocks

    view = View("same", Path("same"), None, {"case_1": {"psnr_db": float("inf")}}, {}, 0)
    blocks = list(quality_blocks([], [view], {"same": "#111111"}))
    assert not any(isinstance(block, Figure) for block in blocks)
    (details,) = (block for block in blocks if isinstance(block, Details))
    (table,) = details.blocks
    assert isinstance(table, Table) and table.rows == [["case_1", "∞"]]


def test_a_drawing_of_very_many_dots_becomes_a_png(monkeypatch):
    monkeypatch.setattr("fvae_nnunet.report.render.MOST_SVG_CHARACTERS", 5000)
    page = Page(render_html(report(Figure(drawing(), "c", "a"))))
    assert "svg" not in page.tags and [address[:22] for address in page.addresses] == ["data:image/png;base64,"]


@pytest.mark.slow
def test_sixty_pictures_of_noise_fit_into_a_page():
    """15 MB hold 60 pictures of the size of a case's, even of noise, which compresses worst, as base64."""
    image = pytest.importorskip("PIL.Image", reason="comes with matplotlib")
    from fvae_nnunet.report.case_pictures import MOST_BYTES, MOST_BYTES_OF_ALL, jpeg_within

    noise = np.random.default_rng(0).integers(0, 256, (900, 2500, 3), dtype=np.uint8)
    buffer = BytesIO()
    image.fromarray(noise).save(buffer, format="PNG", compress_level=0)
    small = jpeg_within(buffer, MOST_BYTES_OF_ALL // 60)
    assert len(small) <= MOST_BYTES_OF_ALL // 60 and 60 * len(small) * 4 / 3 < 13_000_000
    large = jpeg_within(buffer, MOST_BYTES)
    assert len(small) < len(large) <= MOST_BYTES
    with image.open(BytesIO(large)) as opened:
        assert opened.format == "JPEG" and opened.size[0] / opened.size[1] == pytest.approx(2500 / 900, rel=0.01)
