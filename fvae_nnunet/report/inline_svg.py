"""Convert matplotlib plots to SVG inside an HTML page, for several plots per page and for light and dark mode."""

from __future__ import annotations

import re
from io import BytesIO, StringIO
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from fvae_nnunet.report.blocks import Drawing

INK = "#1f2328"
"""Lines and text in this colour take the colour of the page's text. Do not use it for anything else."""

PNG_DPI = 160

_LOCAL_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_LONG_DECIMALS = re.compile(r"(\.\d\d)\d+")
_COORDINATES = ("d", "x", "y", "x1", "x2", "y1", "y2", "width", "height", "points")


def inline_svg(drawing: Drawing, prefix: str, description: str) -> str:
    """The drawing as an ``svg`` element.

    Text stays text, in the page's font, and `INK` becomes the text's colour. Identifiers that are referenced get the
    ``prefix``, and all others are removed, so that several drawings on a page do not clash. There are no namespaces,
    metadata or external addresses. Equal drawings give equal text.

    Args:
        drawing: drawing; artists with a tip get a ``title`` element, which browsers show as a tooltip.
        prefix: letters and digits, different for each drawing of a page.
        description: alternative text.
    """
    import matplotlib

    buffer = StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fvae_nnunet"}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        drawing.figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    root = ElementTree.fromstring(buffer.getvalue())
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
    wanted = {target for element in root.iter() for value in element.attrib.values() for target in _references(value)}
    for element in root.iter():
        name = element.attrib.pop("id", None)
        if name in wanted:
            element.set("id", prefix + name)
        for attribute, value in element.attrib.items():
            element.set(attribute, _rewritten(attribute, value, prefix))
        if name is not None and name in drawing.tips:
            tip = ElementTree.Element("title")
            tip.text = drawing.tips[name]
            element.insert(0, tip)
    root.attrib.pop("version", None)
    root.attrib |= {"role": "img", "aria-label": description}
    return ElementTree.tostring(root, encoding="unicode")


def png(drawing: Drawing) -> bytes:
    """The drawing as a PNG with a white background."""
    buffer = BytesIO()
    drawing.figure.savefig(buffer, format="png", dpi=PNG_DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _references(value: str) -> list[str]:
    return [value[1:]] if value.startswith("#") else _LOCAL_REFERENCE.findall(value)


def _rewritten(attribute: str, value: str, prefix: str) -> str:
    if attribute == "href":
        return f"#{prefix}{value[1:]}"
    value = _LOCAL_REFERENCE.sub(lambda found: f"url(#{prefix}{found[1]})", value)
    if attribute in _COORDINATES:
        return _LONG_DECIMALS.sub(r"\1", value)
    return value.replace(INK, "currentColor")
