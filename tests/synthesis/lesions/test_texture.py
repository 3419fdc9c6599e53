"""The texture of a lesion's core, measured and drawn."""

import numpy as np
import pytest

from fvae_nnunet.synthesis.lesions.measures import lesion_core
from fvae_nnunet.synthesis.lesions.texture import core_texture, drawn_texture

SPACING_MM = (3.0, 1.0, 1.0)


def a_core(radius_mm, shape=(20, 60, 60)):
    steps_mm = (np.indices(shape).T - (np.array(shape) - 1) / 2) * SPACING_MM
    return lesion_core((np.square(steps_mm).sum(axis=-1) <= radius_mm**2).T, SPACING_MM)


def test_only_the_core_counts_and_it_is_carried_on_outwards():
    core = a_core(16)
    hu = np.random.default_rng(0).normal(50, 10, core.shape)
    texture_hu = core_texture(hu, core, SPACING_MM)
    assert texture_hu.dtype == np.float32 and abs(texture_hu[core].mean()) < 1e-3
    assert np.array_equal(core_texture(np.where(core, hu, 3000), core, SPACING_MM), texture_hu)
    np.testing.assert_allclose(core_texture(hu + 500, core, SPACING_MM), texture_hu, atol=1e-3)
    # a mean of voxels of the core lies between them
    inside = hu[core] - hu[core].mean()
    assert inside.min() <= texture_hu.min() and texture_hu.max() <= inside.max()
    # and does not depend on how much of the volume is looked at
    cut = np.s_[1:-1, 9:-9, 9:-9]
    np.testing.assert_allclose(core_texture(hu[cut], core[cut], SPACING_MM)[core[cut]], texture_hu[core], atol=1e-3)


def test_a_drawn_texture_is_as_strong_as_asked_and_as_coarse_as_real_ones():
    core = a_core(28)
    far = {2: [], 8: []}
    for seed in range(8):
        texture_hu = drawn_texture(np.random.default_rng(seed), core, SPACING_MM, 12.0)
        assert texture_hu[core].std() == pytest.approx(12, rel=2e-3) and abs(texture_hu[core].mean()) < 0.02
        for mm, found in far.items():
            both = core[:, :, mm:] & core[:, :, :-mm]
            found.append((texture_hu[:, :, mm:] * texture_hu[:, :, :-mm])[both].mean() / 12**2)
    # the medians of 24 sarcomas are 0.92 and 0.57
    assert np.median(far[2]) == pytest.approx(0.92, abs=0.05) and np.median(far[8]) == pytest.approx(0.57, abs=0.15)
    again = drawn_texture(np.random.default_rng(7), core, SPACING_MM, 12.0)
    assert np.array_equal(again, texture_hu)


def test_a_core_without_room_has_no_texture():
    voxel = np.zeros((3, 9, 9), bool)
    voxel[1, 4, 4] = True
    assert not drawn_texture(np.random.default_rng(0), voxel, SPACING_MM, 20.0).any()
    pair = voxel.copy()
    pair[1, 4, 5] = True
    drawn = drawn_texture(np.random.default_rng(0), pair, SPACING_MM, 20.0)
    assert np.sort(drawn[pair]) == pytest.approx([-20, 20], abs=0.5) and np.abs(drawn).max() <= 80
