"""Several passes through a VAE combined: HU windows fused, slices resampled, turns averaged."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from fvae_nnunet.errors import UserError
from fvae_nnunet.reconstruction.combined_windows import TAPER_HU, TURNS, PlaneChange, combined, fused, resampled_plane
from fvae_nnunet.reconstruction.settings import ReconstructionSettings
from fvae_nnunet.reconstruction.volume import reconstruct_to_int16, reconstruct_volume
from fvae_nnunet.vae import load_vae
from fvae_nnunet.vae.denoisers import Control

WIDE, SOFT, LUNG = (-1000.0, 1000.0), (-200.0, 300.0), (-1000.0, -300.0)


def clipped(volume_hu, hu_window):
    return volume_hu.clamp(*hu_window)


def test_fused_windows_of_a_perfect_reconstruction_are_the_image():
    ramp = torch.linspace(-1300, 1300, 2601).view(1, 1, 1, -1)
    windows = [WIDE, LUNG, SOFT]
    result = fused([clipped(ramp, window) for window in windows], windows)
    assert torch.equal(result, clipped(ramp, WIDE))


def test_a_narrow_window_counts_inside_and_fades_out_at_its_ends():
    """Narrow reconstructions that are 10 HU too high, wide ones that are right: the error is the weight."""
    ramp = torch.linspace(-400, 500, 901).view(1, 1, 1, -1)
    narrow = (clipped(ramp, SOFT) + 10).clamp(*SOFT)
    error = (fused([ramp, narrow], [WIDE, SOFT]) - ramp).flatten().numpy()
    hu, value = ramp.flatten().numpy(), narrow.flatten().numpy()
    inside = (value >= SOFT[0] + TAPER_HU) & (value <= SOFT[1] - TAPER_HU)
    assert np.allclose(error[inside], 10, atol=1e-4)
    assert np.allclose(error[(hu < SOFT[0] - TAPER_HU) | (hu > SOFT[1])], 0, atol=1e-4)
    assert np.abs(np.diff(error)).max() < 2, "no ring: there is no step"


def test_a_window_does_not_fade_out_where_the_widest_one_ends_too():
    volume = torch.full((1, 1, 1, 3), -1000.0)
    assert torch.equal(fused([volume, volume + 7], [WIDE, LUNG]), volume + 7)


def test_a_later_window_goes_before_an_earlier_one():
    volume = torch.full((1, 1, 1, 3), 50.0)
    assert torch.equal(fused([volume, volume + 1, volume + 2], [WIDE, (-500, 500), SOFT]), volume + 2)


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("size", [None, (22, 14)])
def test_changes_are_undone(turn, size):
    rows = torch.arange(11.0).view(1, 1, 11, 1) + 100 * torch.arange(7.0)
    seen = PlaneChange(size, turn.flipped, turn.transposed).there(rows)
    assert tuple(seen.shape[2:]) == ((size or (11, 7))[::-1] if turn.transposed else size or (11, 7))
    back = PlaneChange(size, turn.flipped, turn.transposed).back(seen, (11, 7))
    # the mean of what cubic convolution makes of a ramp is the ramp, but for the outermost pixels
    inner = np.s_[..., 2:-2, 2:-2]
    assert torch.allclose(back[inner], rows[inner], atol=1e-3) if size else torch.equal(back, rows)


def test_the_turns_are_all_eight_and_begin_with_none():
    picture = torch.arange(12.0).view(1, 1, 3, 4)
    seen = {tuple(turn.there(picture).flatten().tolist()) + tuple(turn.there(picture).shape) for turn in TURNS}
    assert len(seen) == 8 and TURNS[0] == PlaneChange()


def test_enlarging_is_cubic_convolution_and_shrinking_the_mean_of_the_pixels():
    rng = np.random.default_rng(0)
    plane = ndimage.gaussian_filter(rng.standard_normal((16, 12)), 1.5)
    slices = torch.from_numpy(plane).float()[None, None]
    blocks = plane.reshape(8, 2, 6, 2).mean((1, 3))
    np.testing.assert_allclose(resampled_plane(slices, (8, 6))[0, 0].numpy(), blocks, atol=1e-6)
    # between two pixels: Keys' weights for a = -0.75 at a quarter and three quarters of the way
    distances = np.array([1.25, 0.25, 0.75, 1.75])
    a = -0.75
    near, far = distances[1:3], distances[[0, 3]]
    weights = np.empty(4)
    weights[1:3] = (a + 2) * near**3 - (a + 3) * near**2 + 1
    weights[[0, 3]] = a * far**3 - 5 * a * far**2 + 8 * a * far - 4 * a
    row = torch.from_numpy(plane[:1]).float()[None, None]
    found = resampled_plane(row, (1, 24))[0, 0, 0, 11].item()  # lies a quarter behind pixel 5
    assert found == pytest.approx(float(weights @ plane[0, 4:8]), abs=1e-6)
    constant = torch.full((1, 2, 7, 9), -321.0)
    for size in ((3, 5), (20, 11), (14, 4)):
        assert torch.allclose(resampled_plane(constant, size), torch.full((1, 2, *size), -321.0), atol=1e-3)


@pytest.mark.parametrize("size", [512 * 9 // 10, 700, 100, 341])
def test_shrinking_gives_each_pixel_its_place(size):
    """A ramp is off by at most an eighth of a pixel (pixels are steps), and the values of any row are integrals."""
    middles = (torch.arange(size, dtype=torch.float64) + 0.5) * 1000 / size - 0.5
    ramp = torch.arange(1000.0).expand(1, 1, 2, -1)
    found = resampled_plane(ramp, (2, size))[0, 0, 0].double()
    assert torch.allclose(found, middles, rtol=0, atol=0.125)
    assert torch.allclose(resampled_plane(ramp.mT, (size, 2))[0, 0, :, 0].double(), middles, rtol=0, atol=0.125)
    row = np.random.default_rng(0).normal(0, 100, 1000)
    integral = np.interp(np.arange(size + 1) * 1000 / size, np.arange(1001), np.concatenate([[0], np.cumsum(row)]))
    expected = np.diff(integral) * size / 1000
    found = resampled_plane(torch.from_numpy(row).float().expand(1, 1, 1, -1), (1, size))[0, 0, 0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("enlarge", [0.5, 0.7, 1.3])
def test_resampled_slices_keep_edges_in_place_and_hu_in_the_window(enlarge):
    volume_hu = np.full((1, 64, 64), -1000, np.int16)
    volume_hu[..., 32:] = 1000
    settings = ReconstructionSettings.for_vae(load_vae("control:identity").spec, enlarge=enlarge)
    view_hu = reconstruct_volume(load_vae("control:identity"), volume_hu, settings)[0, 32]
    assert view_hu.min() >= -1000 and view_hu.max() <= 1000
    crossing = np.interp(0, view_hu[28:36], np.arange(28, 36))
    assert crossing == pytest.approx(31.5, abs=0.05)


def test_passes_are_the_changes_times_the_windows_and_are_averaged():
    called = []

    def code(slices_hu, hu_window, number):
        called.append((number, hu_window, tuple(slices_hu.shape[2:])))
        return slices_hu.clamp(*hu_window) + number

    volume = torch.full((1, 2, 4, 6), 50.0)
    result = combined(volume, [TURNS[0], TURNS[4]], [WIDE, SOFT], code)
    assert called == [(0, WIDE, (4, 6)), (1, SOFT, (4, 6)), (2, WIDE, (6, 4)), (3, SOFT, (6, 4))]
    assert torch.equal(result, volume + (1 + 3) / 2)


def hu(shape=(5, 19, 24), seed=0):
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), (0.5, 2, 2))
    return (smooth * 2500).round().clip(-1200, 1300).astype(np.int16)


IDENTITY = Control("control:identity", 0.0)


@pytest.mark.parametrize("scheme", ["windows", "stream"])
def test_an_identity_stays_one_with_windows_and_turns(scheme):
    volume = hu()
    settings = ReconstructionSettings.for_vae(IDENTITY.spec, inner_windows=[LUNG, SOFT], average=8)
    assert np.array_equal(reconstruct_to_int16(IDENTITY, volume, settings), volume.clip(-1000, 1000))
    if scheme == "stream":
        wan = ReconstructionSettings.for_vae(IDENTITY.spec, scheme="stream", inner_windows=[SOFT])
        with pytest.raises(UserError, match="cannot process a volume in one pass"):
            reconstruct_volume(IDENTITY, volume, wan)


def test_the_mean_of_the_turns_is_that_of_reconstructions_of_turned_volumes():
    vae, volume = load_vae("tiny"), hu()
    found = reconstruct_volume(vae, volume, ReconstructionSettings.for_vae(vae.spec, average=4))
    turned = [np.flip(reconstruct_volume(vae, np.flip(volume, axes).copy()), axes) for axes in ((), (1, 2), (2,), (1,))]
    np.testing.assert_allclose(found, np.mean(turned, axis=0), atol=1e-2)


def test_pixels_of_a_size_are_enlarged_slices_whatever_the_axes():
    vae, volume = load_vae("tiny"), hu()
    twice = reconstruct_volume(vae, volume, ReconstructionSettings.for_vae(vae.spec, enlarge=2.0))
    by_size = ReconstructionSettings.for_vae(vae.spec, pixel_mm=0.4)
    assert np.array_equal(reconstruct_volume(vae, volume, by_size, spacing_mm=(3.0, 0.8, 0.8)), twice)
    coronal = volume.transpose(1, 0, 2)
    turned = reconstruct_volume(vae, coronal, by_size, axis_order=(1, 0, 2), spacing_mm=(0.8, 3.0, 0.8))
    assert np.array_equal(turned, twice.transpose(1, 0, 2))
    assert not np.array_equal(twice, reconstruct_volume(vae, volume))
    with pytest.raises(UserError, match="needs the spacing of the image"):
        reconstruct_volume(vae, volume, by_size)
    with pytest.raises(UserError, match=r"cannot be resampled to 0\.4 mm; choose 0\.5 to 8 mm"):
        reconstruct_volume(vae, volume, by_size, spacing_mm=(3, 2.0, 2.0))


def test_settings_that_cannot_be_are_refused():
    spec = IDENTITY.spec
    for options, said in (
        ({"inner_windows": [(-2000, 0)]}, "is not inside -1000 1000"),
        ({"inner_windows": [WIDE]}, "is not inside"),
        ({"inner_windows": [(5, 5)]}, "lower < upper"),
        ({"enlarge": 5}, r"0\.25 to 4, got 5"),
        ({"enlarge": float("nan")}, r"0\.25 to 4, got nan"),
        ({"pixel_mm": 0}, "above 0 mm"),
        ({"pixel_mm": 1, "enlarge": 2}, "excludes `enlarge`"),
        ({"average": 9}, "1 to 8 slice orientations"),
    ):
        with pytest.raises(UserError, match=said):
            ReconstructionSettings.for_vae(spec, **options)


def test_records_of_views_without_such_passes_are_as_before():
    plain = ReconstructionSettings.for_vae(IDENTITY.spec).recorded_with(IDENTITY)
    assert not plain.keys() & {"inner_windows", "enlarge", "pixel_mm", "average"}
    settings = ReconstructionSettings.for_vae(IDENTITY.spec, inner_windows=[SOFT], enlarge=1.5, average=2)
    record = settings.recorded_with(IDENTITY)
    assert (record["inner_windows"], record["enlarge"], record["average"]) == ((SOFT,), 1.5, 2)
