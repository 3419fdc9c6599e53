"""The draft of a lesion: what is drawn, and what stays."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from fvae_nnunet.synthesis.appearance import Appearance
from fvae_nnunet.synthesis.draft import REDRAWN_MM, drafted
from fvae_nnunet.synthesis.layout import Layout

SPACING_MM = (3.0, 1.0, 1.0)
SHAPE = (14, 60, 64)


def organ_in_fat():
    """A volume of an organ of 90 HU beside fat of -100 with noise of 10 HU, and its class map."""
    class_map = np.zeros(SHAPE, np.uint8)
    class_map[:, :, 24:] = 1
    hu = np.where(class_map == 1, 90, -100) + np.random.default_rng(0).normal(0, 10, SHAPE)
    return np.rint(hu).astype(np.int16), class_map


def ball(centre, radius_mm):
    steps = (np.indices(SHAPE).T - centre) * SPACING_MM
    return (np.square(steps).sum(axis=-1) <= radius_mm**2).T


def test_a_lesion_is_one_value_with_a_soft_edge_and_the_rest_stays():
    volume_hu, class_map = organ_in_fat()
    lesion = ball((7, 30, 44), 9)
    layout = Layout.of(class_map, SPACING_MM, organs=1)
    box = (slice(0, 14), slice(0, 60), slice(0, 64))
    layout = layout.with_lesion(box, lesion, 2, Appearance(30.0, 12.0))
    before = volume_hu.copy()
    draft_hu = drafted(volume_hu, layout, lesion, unknown_hu=-999.0)
    assert np.array_equal(volume_hu, before) and draft_hu.dtype == np.float32
    depth_mm = ndimage.distance_transform_edt(lesion, sampling=SPACING_MM)
    distance_mm = ndimage.distance_transform_edt(~lesion, sampling=SPACING_MM)
    np.testing.assert_allclose(draft_hu[depth_mm >= 4], 30, atol=0.1)
    assert np.array_equal(draft_hu[distance_mm >= REDRAWN_MM], volume_hu[distance_mm >= REDRAWN_MM])
    rim = (depth_mm > 0) & (depth_mm <= 1)
    assert 35 < draft_hu[rim].mean() < 65, "between 30 and 90"
    # what the volume holds in the lesion plays no part
    other = np.where(lesion, 1000, volume_hu).astype(np.int16)
    assert np.array_equal(drafted(other, layout, lesion, unknown_hu=-999.0), draft_hu)


def test_each_class_is_carried_on_from_itself():
    """A lesion over the border of the organ: the organ beside it stays organ, the fat stays fat."""
    volume_hu, class_map = organ_in_fat()
    lesion = ball((7, 30, 24), 8)
    layout = Layout.of(np.where(lesion, 2, class_map).astype(np.uint8), SPACING_MM, organs=1, volume_hu=volume_hu)
    draft_hu = drafted(volume_hu, layout, lesion, unknown_hu=0.0)
    distance_mm = ndimage.distance_transform_edt(~lesion, sampling=SPACING_MM)
    beside = (distance_mm >= 2) & (distance_mm < REDRAWN_MM)
    assert draft_hu[beside & (class_map == 1)].min() > 60 and draft_hu[beside & (class_map == 0)].max() < -70
    # without the noise of the scan
    assert draft_hu[beside & (class_map == 1)].std() < 8


def test_a_lesion_that_vanishes_becomes_organ():
    volume_hu, class_map = organ_in_fat()
    lesion = ball((7, 30, 46), 10)
    volume_hu[lesion] = 20
    draft_hu = drafted(volume_hu, Layout.of(class_map, SPACING_MM, organs=1), lesion, unknown_hu=0.0)
    assert draft_hu[lesion] == pytest.approx(np.full(lesion.sum(), 90.0), abs=6)


def test_unknown_looks_and_several_lesions():
    volume_hu, class_map = organ_in_fat()
    one, other = ball((4, 16, 44), 7), ball((10, 44, 46), 7)
    layout = Layout.of(np.where(one | other, 2, class_map).astype(np.uint8), SPACING_MM, organs=1)
    draft_hu = drafted(volume_hu, layout, one, unknown_hu=55.0)
    assert draft_hu[ball((4, 16, 44), 2)] == pytest.approx(55, abs=0.1)
    assert np.array_equal(draft_hu[other], volume_hu[other]), "it is not drawn anew"
    nothing = drafted(volume_hu, layout, np.zeros(SHAPE, bool), unknown_hu=55.0)
    assert np.array_equal(nothing, volume_hu)
    everything = drafted(volume_hu, Layout.of(class_map, SPACING_MM, organs=1), np.ones(SHAPE, bool), unknown_hu=0.0)
    assert (everything == 0).all(), "nothing is known"
