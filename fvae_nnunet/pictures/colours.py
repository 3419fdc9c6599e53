"""Colours that readers with deuteranopia and protanopia can distinguish.

The hues are those of Okabe and Ito (Color Universal Design, 2008; https://jfly.uni-koeln.de/color). The tests simulate
both deficiencies by the method of Machado, Oliveira and Fernandes (IEEE TVCG 15:1291, 2009).
"""

from __future__ import annotations

from collections.abc import Iterable

ORANGE, SKY_BLUE, GREEN, YELLOW = "#e69f00", "#56b4e9", "#009e73", "#f0e442"
BLUE, VERMILION, PURPLE = "#0072b2", "#d55e00", "#cc79a7"
LIGHT_GREY, WHITE = "#bbbbbb", "#ffffff"

REFERENCE_COLOUR, PREDICTION_COLOUR = SKY_BLUE, ORANGE
"""Colours of outlines if a prediction is drawn over a reference."""

LABEL_COLOURS = (ORANGE, SKY_BLUE, YELLOW, PURPLE, GREEN, VERMILION, WHITE, BLUE)
"""Colours of outlines on CT without prediction, one for each label in the order of dataset.json."""


def colours_of(names: Iterable[str], palette: tuple[str, ...]) -> dict[str, str]:
    """A colour of the palette for each different name, in order, repeated if there are too few colours."""
    return {name: palette[place % len(palette)] for place, name in enumerate(dict.fromkeys(names))}
