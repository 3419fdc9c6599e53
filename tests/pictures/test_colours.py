"""Colours stay apart for readers with deuteranopia and protanopia, and outlines can be seen on any grey."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from skimage.color import deltaE_ciede2000, rgb2lab

from fvae_nnunet.pictures.colours import LABEL_COLOURS, PREDICTION_COLOUR, REFERENCE_COLOUR, colours_of
from fvae_nnunet.pictures.outlines import CASING_COLOUR
from fvae_nnunet.pictures.series import SERIES_COLOURS
from fvae_nnunet.training.batch_picture import CHANGED_COLOUR, SYNTHETIC_COLOUR

MACHADO = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}
"""Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB."""


def linear(colour: str) -> np.ndarray:
    from matplotlib.colors import to_rgb

    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(colour: str, deficiency: str | None) -> np.ndarray:
    seen = linear(colour)
    if deficiency is not None:
        seen = np.clip(np.array(MACHADO[deficiency]) @ seen, 0, 1)
    return rgb2lab(np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055))


def least_distance(colours: tuple[str, ...], deficiency: str | None) -> float:
    """CIEDE2000 of the two that are most alike."""
    seen = [lab(colour, deficiency) for colour in colours]
    return min(float(deltaE_ciede2000(first, second)) for first, second in combinations(seen, 2))


@pytest.mark.parametrize("deficiency", [None, *MACHADO])
def test_labels_series_roles_and_frames_are_told_apart(deficiency: str | None) -> None:
    assert least_distance(LABEL_COLOURS, deficiency) > 11
    assert least_distance(SERIES_COLOURS, deficiency) > 11
    assert least_distance((REFERENCE_COLOUR, PREDICTION_COLOUR), deficiency) > 35
    assert least_distance((CHANGED_COLOUR, SYNTHETIC_COLOUR), deficiency) > 35


def test_the_simulation_finds_colours_that_are_confused() -> None:
    assert (
        least_distance(("#35c8ff", "#d58cff"), None) > 20 > 3 > least_distance(("#35c8ff", "#d58cff"), "deuteranopia")
    )


def test_line_or_casing_has_contrast_on_every_grey() -> None:
    """By WCAG's ratio of luminances: what the line lacks on bright tissue, the casing has, and the other way round."""

    def luminance(colour: str) -> float:
        return float(linear(colour) @ [0.2126, 0.7152, 0.0722])

    def contrast(first: float, second: float) -> float:
        return (max(first, second) + 0.05) / (min(first, second) + 0.05)

    for colour in LABEL_COLOURS:
        for grey in np.linspace(0, 1, 21):
            ground = luminance(str(grey))
            assert max(contrast(luminance(colour), ground), contrast(luminance(CASING_COLOUR), ground)) > 2
        assert contrast(luminance(colour), luminance(CASING_COLOUR)) > 4


def test_names_have_colours_in_order_and_share_them_where_they_do_not_suffice() -> None:
    assert colours_of(["a", "b", "a", "c"], ("1", "2")) == {"a": "1", "b": "2", "c": "1"}
