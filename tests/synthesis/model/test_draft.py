"""The draft of a lesion: what is drawn, and what stays."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from fvae_nnunet.synthesis.lesions.appearance import Appearance
from fvae_nnunet.synthesis.lesions.measures import lesion_core
from fvae_nnunet.synthesis.model.draft import REDRAWN_MM, drafted
from fvae_nnunet.synthesis.model.layout import Layout

SPACING_MM = (3.0, 1.0, 1.0)
SHAPE = (14, 60, 64)
UNKNOWN = Appearance(-999.0, 0.0)


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
    layout = layout.with_lesion(box, lesion, 2, Appearance(30.0, 0.0))
    before = volume_hu.copy()
    draft_hu = drafted(volume_hu, layout, lesion, unknown=UNKNOWN, rng=np.random.default_rng(1))
    assert np.array_equal(volume_hu, before) and draft_hu.dtype == np.float32
    depth_mm = ndimage.distance_transform_edt(lesion, sampling=SPACING_MM)
    distance_mm = ndimage.distance_transform_edt(~lesion, sampling=SPACING_MM)
    np.testing.assert_allclose(draft_hu[depth_mm >= 4], 30, atol=0.1)
    assert np.array_equal(draft_hu[distance_mm >= REDRAWN_MM], volume_hu[distance_mm >= REDRAWN_MM])
    rim = (depth_mm > 0) & (depth_mm <= 1)
    assert 35 < draft_hu[rim].mean() < 65, "between 30 and 90"
    # what the volume holds in the lesion plays no part
    other = np.where(lesion, 1000, volume_hu).astype(np.int16)
    again = drafted(other, layout, lesion, unknown=UNKNOWN, rng=np.random.default_rng(1))
    assert np.array_equal(again, draft_hu)


def test_a_lesion_has_the_texture_that_is_asked_for():
    volume_hu, class_map = organ_in_fat()
    lesion = ball((7, 30, 44), 12)
    core = lesion_core(lesion, SPACING_MM)
    box = (slice(0, 14), slice(0, 60), slice(0, 64))
    plain = Layout.of(class_map, SPACING_MM, organs=1)
    drafts = []
    for seed, sd_hu in [(0, 0.0), (0, 10.0), (0, 20.0), (1, 10.0)]:
        layout = plain.with_lesion(box, lesion, 2, Appearance(30.0, sd_hu))
        drafts.append(drafted(volume_hu, layout, lesion, unknown=UNKNOWN, rng=np.random.default_rng(seed)))
        # the edge's blur takes a little at the core's border
        assert drafts[-1][core].std() == pytest.approx(sd_hu, rel=0.03, abs=0.01)
        assert drafts[-1][core].mean() == pytest.approx(30, abs=0.2)
    np.testing.assert_allclose(drafts[2] - drafts[0], 2 * (drafts[1] - drafts[0]), atol=1e-3)
    assert abs(np.corrcoef(drafts[1][core], drafts[3][core])[0, 1]) < 0.7


def test_a_real_lesion_is_drawn_with_its_own_smoothed_texture():
    volume_hu, class_map = organ_in_fat()
    lesion = ball((7, 30, 42), 20)
    waves = np.broadcast_to(25 * np.sin(2 * np.pi * np.arange(SHAPE[2]) / 16), SHAPE)
    noise = np.random.default_rng(2).normal(0, 10, SHAPE)
    volume_hu = np.where(lesion, 40 + waves + noise, volume_hu).astype(np.int16)
    class_map = np.where(lesion, 2, class_map).astype(np.uint8)
    layout = Layout.of(class_map, SPACING_MM, organs=1, volume_hu=volume_hu)
    draft_hu = drafted(volume_hu, layout, lesion, unknown=UNKNOWN, rng=None)
    core = lesion_core(lesion, SPACING_MM)
    # a Gaussian of 2 mm leaves exp(-(2 pi 2 / 16)^2 / 2) = 0.73 of waves of 16 mm, and about 1 of 10 HU of noise
    left = np.polyfit(waves[core], draft_hu[core], 1)[0]
    assert left == pytest.approx(0.73, abs=0.05)
    assert (draft_hu - left * waves)[core].std() < 4
    assert layout.appearance(1, UNKNOWN).texture_sd_hu == pytest.approx(draft_hu[core].std(), rel=0.03)


def test_each_class_is_carried_on_from_itself():
    """A lesion over the border of the organ: the organ beside it stays organ, the fat stays fat."""
    volume_hu, class_map = organ_in_fat()
    lesion = ball((7, 30, 24), 8)
    layout = Layout.of(np.where(lesion, 2, class_map).astype(np.uint8), SPACING_MM, organs=1, volume_hu=volume_hu)
    draft_hu = drafted(volume_hu, layout, lesion, unknown=UNKNOWN, rng=None)
    distance_mm = ndimage.distance_transform_edt(~lesion, sampling=SPACING_MM)
    beside = (distance_mm >= 2) & (distance_mm < REDRAWN_MM)
    assert draft_hu[beside & (class_map == 1)].min() > 60 and draft_hu[beside & (class_map == 0)].max() < -70
    # without the noise of the scan
    assert draft_hu[beside & (class_map == 1)].std() < 8


def test_a_lesion_that_vanishes_becomes_organ():
    volume_hu, class_map = organ_in_fat()
    lesion = ball((7, 30, 46), 10)
    volume_hu[lesion] = 20
    draft_hu = drafted(volume_hu, Layout.of(class_map, SPACING_MM, organs=1), lesion, unknown=UNKNOWN, rng=None)
    assert draft_hu[lesion] == pytest.approx(np.full(lesion.sum(), 90.0), abs=6)


def test_unknown_looks_and_several_lesions():
    volume_hu, class_map = organ_in_fat()
    one, other = ball((4, 16, 44), 7), ball((10, 44, 46), 7)
    layout = Layout.of(np.where(one | other, 2, class_map).astype(np.uint8), SPACING_MM, organs=1)
    draft_hu = drafted(volume_hu, layout, one, unknown=Appearance(55.0, 0.0), rng=np.random.default_rng(0))
    assert draft_hu[ball((4, 16, 44), 2)] == pytest.approx(55, abs=0.1)
    assert np.array_equal(draft_hu[other], volume_hu[other]), "it is not drawn anew"
    nothing = drafted(volume_hu, layout, np.zeros(SHAPE, bool), unknown=UNKNOWN, rng=None)
    assert np.array_equal(nothing, volume_hu)
    organ = Layout.of(class_map, SPACING_MM, organs=1)
    everything = drafted(volume_hu, organ, np.ones(SHAPE, bool), unknown=UNKNOWN, rng=None)
    assert (everything == 0).all(), "nothing is known"
