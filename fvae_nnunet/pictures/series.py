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


def series_colours(names: Sequence[str]) -> Colours:
    """A colour for each different name, in order; a report has one for all its plots."""
    return colours_of(names, SERIES_COLOURS)
