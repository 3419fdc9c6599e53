"""Models and views as the series of a plot: their names and colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fvae_nnunet.pictures.colours import (
    BLUE,
    GREEN,
    LIGHT_GREY,
    ORANGE,
    PURPLE,
    SKY_BLUE,
    VERMILION,
    colours_of,
)

SERIES_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY_BLUE, VERMILION, LIGHT_GREY)
"""One for each model or view, in order, repeated where they do not suffice; on white and on black."""

Colours = Mapping[str, str]
"""Name of a series -> its colour."""

LONGEST_NAME = 22
"""Characters of a name in a plot; the tables have it in full."""


def series_colours(names: Sequence[str]) -> Colours:
    """A colour for each different name, in order; a report has one for all its plots."""
    return colours_of(names, SERIES_COLOURS)


def names_in_plot(names: Sequence[str]) -> dict[str, str]:
    """Names as plots show them: without control characters, not too long, and still different."""
    shown: dict[str, str] = {}
    for place, name in enumerate(names, start=1):
        short = printable(name)
        short = short if len(short) <= LONGEST_NAME else f"{short[: LONGEST_NAME - 1]}…"
        shown[name] = f"{short} ({place})" if short in shown.values() else short
    return shown


def printable(text: str) -> str:
    """The text with a mark in the place of each character that cannot be shown."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
