"""Colours of models and views as series of a plot."""

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
"""Colours for models or views, in order, repeated if there are too few; for white and black backgrounds."""

Colours = Mapping[str, str]
"""Name of a series -> colour."""


def series_colours(names: Sequence[str]) -> Colours:
    """A colour for each different name, in order; a report uses one mapping for all its plots."""
    return colours_of(names, SERIES_COLOURS)
