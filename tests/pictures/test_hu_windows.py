"""Which window a lesion is drawn in."""

from __future__ import annotations

import numpy as np

from fvae_nnunet.pictures.hu_windows import LUNG_HU_WINDOW, SOFT_TISSUE_HU_WINDOW, hu_window_around, hu_window_of

SPACING_MM = (3.0, 1.0, 1.0)
LUNG_HU, TISSUE_HU, AIR_HU = -850, 50, -1000


def lesion_at(column: int) -> np.ndarray:
    mask = np.zeros((20, 80, 80), bool)
    mask[8:12, 36:44, column - 4 : column + 4] = True
    return mask


def halves(left_hu: int, right_hu: int) -> np.ndarray:
    """Two tissues that meet at column 40."""
    volume_hu = np.full((20, 80, 80), right_hu, np.int16)
    volume_hu[:, :, :40] = left_hu
    return volume_hu


def test_a_lesion_in_the_lung_or_at_the_pleura_is_drawn_in_the_lung_window() -> None:
    chest_hu = halves(LUNG_HU, TISSUE_HU)
    for column in (20, 36, 40):  # amid the lung, with a side at the chest wall, half in it
        lesion = lesion_at(column)
        assert hu_window_around(np.where(lesion, TISSUE_HU, chest_hu), lesion, SPACING_MM) == LUNG_HU_WINDOW


def test_a_lesion_in_soft_tissue_is_not_whatever_is_further_away_than_its_surroundings() -> None:
    for column in (60, 56):
        assert hu_window_around(halves(LUNG_HU, TISSUE_HU), lesion_at(column), SPACING_MM) == SOFT_TISSUE_HU_WINDOW


def test_air_around_a_limb_is_no_lung() -> None:
    limb_hu = halves(AIR_HU, TISSUE_HU)
    assert hu_window_around(limb_hu, lesion_at(44), SPACING_MM) == SOFT_TISSUE_HU_WINDOW, "at the skin"
    assert hu_window_of(limb_hu) == SOFT_TISSUE_HU_WINDOW


def test_without_a_lesion_the_whole_image_decides() -> None:
    nothing = np.zeros((20, 80, 80), bool)
    assert hu_window_around(halves(LUNG_HU, TISSUE_HU), nothing, SPACING_MM) == LUNG_HU_WINDOW
    assert hu_window_around(halves(TISSUE_HU, TISSUE_HU), nothing, SPACING_MM) == SOFT_TISSUE_HU_WINDOW
    assert hu_window_around(halves(TISSUE_HU, AIR_HU), ~nothing, SPACING_MM) == SOFT_TISSUE_HU_WINDOW
    assert hu_window_of(np.full((2, 2, 2), AIR_HU)) == SOFT_TISSUE_HU_WINDOW
