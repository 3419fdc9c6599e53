"""Models and views as the series of a plot: their names and colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

SERIES_COLOURS = ("#3d7edb", "#e0702c", "#2f9c74", "#b25bc9", "#c29a14", "#d8506b", "#5aa5b8", "#8a8f98")
"""One for each model or view, in order, repeated where they do not suffice; on white and on black."""

Colours = Mapping[str, str]
"""Name of a series -> its colour."""


def series_colours(names: Sequence[str]) -> Colours:
    """A colour for each different name, in order; a report has one for all its plots."""
    return {name: SERIES_COLOURS[place % len(SERIES_COLOURS)] for place, name in enumerate(dict.fromkeys(names))}
