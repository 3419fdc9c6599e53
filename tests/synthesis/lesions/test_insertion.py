"""Blending against arithmetic, voxel by voxel; the slices that a model sees, its windows and its grid."""

import numpy as np
import pytest
import torch
from painted_cases import PaintingModel
from scipy import ndimage

from fvae_nnunet.errors import UserError
from fvae_nnunet.synthesis.lesions.insertion import blend_lesion, margin_weight, noise_of_residual
from fvae_nnunet.synthesis.model.grid import ModelGrid, resampled
from fvae_nnunet.synthesis.model.inpainting import inpaint, slices_seen
from fvae_nnunet.synthesis.model.layout import Layout

SPACING_MM = (5.0, 0.7, 0.7)


def volumes(shape=(9, 60, 60)):
    rng = np.random.default_rng(0)
    raw = rng.integers(-1024, 3000, shape).astype(np.int16)
    generated, reconstructed = rng.normal(50, 80, (2, *shape)).astype(np.float32)
    lesion = np.zeros(shape, bool)
    lesion[3:6, 25:35, 28:33] = True
    return raw, generated, reconstructed, lesion


def distances_mm(lesion):
    """By comparing every voxel with every voxel of the lesion."""
    everywhere = np.argwhere(np.ones_like(lesion)) * np.array(SPACING_MM)
    distance = np.full(len(everywhere), np.inf)
    for voxel in np.argwhere(lesion) * np.array(SPACING_MM):
        distance = np.minimum(distance, np.sqrt(((everywhere - voxel) ** 2).sum(axis=1)))
    return distance.reshape(lesion.shape)


@pytest.mark.parametrize("texture", ["scanner", "vae"])
def test_blending_is_the_formula_and_nothing_else_changes(texture):
    raw, generated, reconstructed, lesion = volumes()
    before = raw.copy()
    margin_mm = 6.0
    blended = blend_lesion(raw, generated, reconstructed, lesion, SPACING_MM, margin_mm, texture=texture)
    assert blended.dtype == np.int16
    assert np.array_equal(raw, before)
    distance = distances_mm(lesion)
    outside = distance >= margin_mm
    assert np.array_equal(blended[outside], raw[outside])
    weight = np.where(outside, 0, (1 + np.cos(np.pi * distance / margin_mm)) / 2)
    assert np.all(weight[lesion] == 1)
    without = reconstructed if texture == "scanner" else raw
    # the residual is nearly uniform, and none of it far off its spread
    expected = raw + weight * (generated.astype(float) - without)
    # rounding to integers, and the weight in float32
    assert np.abs(blended - expected).max() < 0.5 + 0.001
    assert np.abs(blended[lesion] - expected[lesion]).max() <= 0.5 + 1e-4


def test_equal_decodings_change_nothing():
    raw, generated, _, lesion = volumes()
    assert np.array_equal(blend_lesion(raw, generated, generated, lesion, SPACING_MM, 6.0), raw)


def test_the_scans_noise_stays_in_the_lesion():
    rng = np.random.default_rng(1)
    raw = np.rint(100 + rng.normal(0, 20, (8, 40, 40))).astype(np.int16)
    smooth = np.full(raw.shape, 100, np.float32)
    lesion = np.zeros(raw.shape, bool)
    lesion[2:6, 10:30, 10:30] = True
    generated = np.where(lesion, smooth - 60, smooth)
    kept = blend_lesion(raw, generated, smooth, lesion, (1, 1, 1), 3.0)
    usual = lesion & (np.abs(raw - 100) < 2.2 * 20)
    assert usual.sum() > 0.95 * lesion.sum() and np.array_equal(kept[usual], raw[usual] - 60)
    assert kept[lesion].std() == pytest.approx(20, rel=0.05)
    assert np.all(blend_lesion(raw, generated, smooth, lesion, (1, 1, 1), 3.0, texture="vae")[lesion] == 40)


def test_edges_of_what_a_lesion_covers_do_not_show_through():
    """The VAE blurs a bone; the lesion over it has the noise, and no bone's outline."""
    rng = np.random.default_rng(2)
    bone = np.zeros((8, 40, 40), bool)
    bone[:, 15:22, 18:26] = True
    anatomy = np.where(bone, 900.0, 50.0)
    noise = rng.normal(0, 12, bone.shape)
    raw = np.rint(anatomy + noise).astype(np.int16)
    blurred = ndimage.gaussian_filter(anatomy, (0, 1.2, 1.2)).astype(np.float32)
    lesion = np.zeros(bone.shape, bool)
    lesion[2:6, 8:32, 8:32] = True
    generated = np.where(lesion, np.float32(30), blurred)
    inserted = blend_lesion(raw, generated, blurred, lesion, (3, 1, 1), 3.0)
    ghosts = 30 + anatomy - blurred  # what was there before
    assert np.abs(ghosts[lesion] - 30).max() > 300
    inside = inserted[lesion].astype(float) - 30
    assert np.abs(inside).max() <= 4 * 12 * 1.4 and inside.std() == pytest.approx(12, rel=0.25)
    far = lesion & ~ndimage.binary_dilation(bone, iterations=6)
    kept = np.abs(inserted - (30 + noise))[far]
    assert (kept <= 0.51).mean() > 0.95, "noise is left as it is"


def test_noise_of_a_residual():
    residual = np.array([0.0, 1.0, -1.0, 1.0, -1.0, 2.0, 300.0])
    noise = noise_of_residual(residual, np.ones(7, bool), np.ones(7, bool))
    # the median is 1, the spread 1.4826 * 2; 300 is far off
    assert noise == pytest.approx([0, 1, -1, 1, -1, 2, 1])
    unchanged = noise_of_residual(residual, np.array([True] * 6 + [False]), np.ones(7, bool))
    assert unchanged == pytest.approx(residual), "the same edge is there again"
    flat = np.array([5.0, 5.0, 9.0])
    assert np.array_equal(noise_of_residual(flat, np.ones(3, bool), np.ones(3, bool)), flat)


def test_without_a_margin_only_the_lesion_changes():
    raw, generated, reconstructed, lesion = volumes()
    blended = blend_lesion(raw, generated, reconstructed, lesion, SPACING_MM, 0.0)
    assert np.array_equal(blended[~lesion], raw[~lesion])
    assert (blended[lesion] != raw[lesion]).mean() > 0.9
    assert np.array_equal(margin_weight(lesion, SPACING_MM, 0.0), lesion.astype(np.float32))


def test_values_beyond_int16_are_refused():
    raw, generated, reconstructed, lesion = volumes()
    with pytest.raises(UserError, match="do not fit int16"):
        blend_lesion(raw, generated + 40000, reconstructed, lesion, SPACING_MM, 5.0)
    with pytest.raises(UserError, match="scanner or vae"):
        blend_lesion(raw, generated, reconstructed, lesion, SPACING_MM, 5.0, texture="none")


def test_a_model_sees_a_window_with_the_region_in_its_middle():
    assert slices_seen(slice(20, 24), 40, 8) == slice(18, 26)
    assert slices_seen(slice(0, 2), 40, 8) == slice(0, 8) and slices_seen(slice(39, 40), 40, 8) == slice(32, 40)
    # more where the region has more, less where the volume has less
    assert slices_seen(slice(3, 30), 40, 8) == slice(3, 30) and slices_seen(slice(1, 3), 5, 8) == slice(0, 5)


def test_a_grid_has_the_volumes_extent_and_what_comes_back_lies_where_it_was():
    grid = ModelGrid((24, 40, 36), (3.0, 0.5, 0.5), (1.5, 1.0, 1.0))
    assert grid.shape == (48, 20, 18)
    # places of voxel centres in mm, on either grid: a ramp is the same ramp
    on_grid = ((np.arange(48) + 0.5) * 1.5)[:, None, None] + np.zeros((1, 20, 18))
    on_grid = on_grid + ((np.arange(18) + 0.5) * 1.0)[None, None] * 100
    box = (slice(5, 9), slice(10, 20), slice(8, 20))
    seen = (slice(6, 22), slice(0, 20), slice(0, 18))
    assert all(s.start <= need.start and need.stop <= s.stop for s, need in zip(seen, grid.region(box)))
    back = grid.back(on_grid[seen].astype(np.float32), seen, box)
    expected = ((np.arange(5, 9) + 0.5) * 3)[:, None, None] + ((np.arange(8, 20) + 0.5) * 0.5)[None, None] * 100
    np.testing.assert_allclose(back, np.broadcast_to(expected, back.shape), atol=1e-2)


def test_without_a_spacing_of_its_own_a_model_takes_volumes_as_they_are():
    grid = ModelGrid((8, 10, 12), (3.0, 0.5, 0.5), None)
    volume = np.random.default_rng(0).integers(-1000, 1000, (8, 10, 12)).astype(np.int16)
    box, seen = (slice(3, 5), slice(2, 4), slice(0, 12)), (slice(1, 7), slice(0, 10), slice(0, 12))
    assert grid.volume(volume) is volume and grid.region(box) == box
    assert np.array_equal(grid.back(volume[seen].astype(np.float32), seen, box), volume[box])


def test_resampling_keeps_places_in_mm():
    # a ramp is the same ramp on any grid: values are positions of voxel centres in mm
    def ramp(n, step_mm):
        return np.broadcast_to((np.arange(n) + 0.5) * step_mm, (4, 4, n)).astype(np.float32)

    up = resampled(ramp(20, 2.0), (4, 4, 50), order=1)
    # within half a voxel of the border nothing is known beyond it
    assert up[..., 2:-2] == pytest.approx(ramp(50, 0.8)[..., 2:-2], abs=1e-4)
    down = resampled(ramp(60, 1.0), (4, 4, 20), order=1)
    assert down[..., 2:-2] == pytest.approx(ramp(20, 3.0)[..., 2:-2], abs=1e-4)
    same = ramp(7, 1.0)
    assert resampled(same, (4, 4, 7), order=1) is same


def test_masks_are_resampled_to_the_nearest_voxel():
    mask = np.zeros((1, 1, 6), np.uint8)
    mask[..., 2:4] = 2
    assert resampled(mask, (1, 1, 12), order=0).ravel().tolist() == [0, 0, 0, 0, 2, 2, 2, 2, 0, 0, 0, 0]
    assert resampled(mask, (1, 1, 3), order=0).dtype == np.uint8


def test_long_lesions_are_inpainted_window_by_window():
    model = PaintingModel(window_slices=8, hu=40, bias_hu=7.0, noise_hu=1.0)
    volume = np.random.default_rng(0).normal(100, 5, (21, 12, 12)).astype(np.int16)
    class_map = np.ones(volume.shape, np.uint8)
    class_map[1:20, 4:8, 4:8] = 2
    region = np.zeros(volume.shape, bool)
    region[0:21, 3:9, 3:9] = True
    layout = Layout.of(class_map, (1.0, 1.0, 1.0), organs=1)
    generated, reconstructed = inpaint(model, volume, layout, region, None, generator=torch.Generator().manual_seed(0))
    assert [len(call.volume_hu) for call in model.calls] == [8] * 5
    # every slice is generated once, and the next window sees what was generated before
    assert sum(call.region.any(axis=(1, 2)).sum() for call in model.calls) == 21
    lesion = class_map == 2
    assert np.abs(generated[lesion] - 40).max() < 6
    assert np.all((generated - reconstructed)[~lesion] == 0)
    second = model.calls[1]
    assert not second.region[:4].any()
    difference = second.volume_hu[:4] - volume[4:8]
    assert difference[lesion[4:8]] == pytest.approx((generated - reconstructed)[4:8][lesion[4:8]], abs=1e-3)
    assert np.all(difference[~lesion[4:8]] == 0)
