import numpy as np
import pytest
import torch
from identity_vae import IdentityVAE
from painted_cases import write_image
from views_for_tests import WIDE_HU_WINDOW, BrighterVAE

from fvae_nnunet.cli.reconstruct import main as reconstruct_command
from fvae_nnunet.ct.volume import CT, read_ct
from fvae_nnunet.errors import UserError
from fvae_nnunet.reconstruction.settings import ReconstructionSettings
from fvae_nnunet.reconstruction.volume import fidelity, reconstruct, reconstruct_to_int16, reconstruct_volume
from fvae_nnunet.reconstruction.windows import slice_windows
from fvae_nnunet.vae import load_vae

HU_WINDOW = (-1000.0, 1000.0)


def ct(shape, seed=0):
    return np.random.default_rng(seed).integers(-1000, 1001, size=shape).astype(np.int16)


def windows(vae, **options):
    return ReconstructionSettings.for_vae(vae.spec, **options)


class CausalSmoother(IdentityVAE):
    """Each slice becomes the mean of itself and all earlier slices of its window, and is blurred along x."""

    def __init__(self, window_slices=65):
        super().__init__(slice_stride=4, slice_offset=1, window_slices=window_slices)
        self.seen = []

    def decode(self, latent):
        self.seen.append(tuple(latent.shape))
        count = torch.arange(1, latent.shape[2] + 1).reshape(1, 1, -1, 1, 1)
        running = latent.cumsum(dim=2) / count
        return (running + running.roll(1, dims=4)) / 2


def reconstruct_by_the_papers_script(volume_hu, model):
    """What the released scripts do, on (z, y, x): windows of 65, a short one padded with its last slice to 65."""
    x = np.clip(volume_hu, -1000, 1000) / 1000.0
    pieces = []
    for start in range(0, len(x), 65):
        window = x[start : start + 65]
        padded = np.concatenate([window, np.repeat(window[-1:], 65 - len(window), axis=0)])
        decoded = model(torch.from_numpy(padded).double()[None, None])[0, 0].numpy()
        pieces.append(np.clip(decoded[: len(window)], -1, 1) * 1000)
    return np.concatenate(pieces)


@pytest.mark.parametrize("slices", [1, 2, 5, 64, 65, 66, 131])
def test_windows_of_65_without_overlap_are_the_papers_scheme(slices):
    volume = ct((slices, 16, 24))
    ours = reconstruct_volume(CausalSmoother(), volume, windows(CausalSmoother(), window_slices=65, overlap_slices=0))
    papers = reconstruct_by_the_papers_script(volume, CausalSmoother().decode)
    np.testing.assert_allclose(ours, papers, atol=1e-3)


@pytest.mark.parametrize("slices", [1, 2, 5, 64, 65, 66, 131])
def test_overlapping_windows_equal_a_straightforward_reference(slices):
    volume = ct((slices, 8, 8), seed=1)
    ours = reconstruct_volume(CausalSmoother(), volume, windows(CausalSmoother(), window_slices=65, overlap_slices=16))
    total, weight_sum = np.zeros(volume.shape), np.zeros((slices, 1, 1))
    places = slice_windows(slices, 65, 16)
    for number, (start, stop) in enumerate(places):
        x = torch.from_numpy(volume[start:stop] / 1000.0)[None, None]
        piece = CausalSmoother().decode(x)[0, 0].clamp(-1, 1).numpy() * 1000
        weight = np.ones(stop - start)
        ramp = np.sin(np.arange(1, 17) / 17 * np.pi / 2) ** 2
        if number > 0:
            weight[:16] = ramp
        if number < len(places) - 1:
            weight[-16:] = 1 - ramp
        total[start:stop] += weight[:, None, None] * piece
        weight_sum[start:stop] += weight[:, None, None]
    np.testing.assert_allclose(ours, total / weight_sum, atol=1e-2)


def test_the_last_window_is_trimmed_to_what_the_vae_admits():
    vae = CausalSmoother()
    reconstruct_volume(vae, ct((112, 8, 8)), windows(vae, overlap_slices=0))
    assert [shape[2] for shape in vae.seen] == [65, 49]


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 5), (2, 7, 9), (5, 8, 8), (13, 17, 31), (66, 9, 8), (3, 40, 2)])
@pytest.mark.parametrize(
    "vae",
    [
        IdentityVAE(),
        IdentityVAE(inplane_stride=16, slice_stride=4, slice_offset=1, window_slices=9),
        IdentityVAE(inplane_stride=8, slice_stride=4, slice_offset=0, window_slices=8),
    ],
    ids=["image", "1+4k", "4k"],
)
def test_an_identity_vae_returns_its_input_also_below_its_strides(shape, vae):
    volume = ct(shape)
    assert np.array_equal(reconstruct_to_int16(vae, volume), volume)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (2, 0, 1)])
def test_slices_run_along_the_body_axis_and_the_result_has_the_inputs_axes(order):
    axial = ct((20, 8, 16))
    volume = np.ascontiguousarray(axial.transpose(np.argsort(order)))
    expected = reconstruct_volume(CausalSmoother(9), axial)
    result = reconstruct_volume(CausalSmoother(9), volume, axis_order=order)
    assert result.shape == volume.shape
    assert np.array_equal(result.transpose(order), expected)


def test_metal_and_air_beyond_the_window_come_back_as_its_ends():
    volume = np.array([[[-3024, -1024, -1000, 0, 1000, 3071, 20000, 1]]], dtype=np.int16)
    assert reconstruct_to_int16(IdentityVAE(), volume).ravel().tolist() == [-1000, -1000, -1000, 0, 1000, 1000, 1000, 1]


def test_zeros_around_the_image_stay_so_that_nnunet_crops_a_view_like_the_image():
    volume = np.full((6, 16, 16), -900, np.int16)
    volume[3:, 5:9, 5:9] = 0  # zeros inside the image are no padding
    volume[:2], volume[:, -3:], volume[:, :, 0] = 0, 0, 0
    padding = np.zeros(volume.shape, bool)
    padding[:2], padding[:, -3:], padding[:, :, 0] = True, True, True
    for order in ((0, 1, 2), (2, 0, 1)):
        turned, expected = volume.transpose(order), padding.transpose(order)
        vae = BrighterVAE()
        settings = ReconstructionSettings.for_vae(vae.spec, hu_window=WIDE_HU_WINDOW)
        view = reconstruct_to_int16(vae, turned, settings, axis_order=tuple(np.argsort(order)))
        assert np.array_equal(view, np.where(expected, 0, turned + 60))


def test_the_input_is_not_changed_and_any_real_dtype_is_taken():
    volume = ct((3, 8, 8))
    for dtype in (np.int16, np.int32, np.float32, np.float64, ">i2"):
        copy = volume.astype(dtype)
        assert np.array_equal(reconstruct_to_int16(IdentityVAE(), copy), volume)
        assert np.array_equal(copy, volume)


def test_progress_counts_every_slice():
    seen = []
    reconstruct_volume(CausalSmoother(9), ct((20, 8, 8)), on_slices=lambda done, total: seen.append((done, total)))
    assert seen == [(5, 20), (10, 20), (15, 20), (20, 20)]


@pytest.mark.parametrize("shape", [(8, 8), (0, 8, 8), (1, 2, 8, 8)])
def test_what_is_no_volume_is_refused(shape):
    with pytest.raises(UserError, match="three axes"):
        reconstruct_volume(IdentityVAE(), np.zeros(shape, dtype=np.int16))


def test_values_that_are_not_finite_are_refused_on_both_sides():
    volume = np.zeros((1, 8, 8), dtype=np.float32)
    volume[0, 0, 0] = np.nan
    with pytest.raises(UserError, match="not finite"):
        reconstruct_volume(IdentityVAE(), volume)

    class Overflowing(IdentityVAE):
        def decode(self, latent):
            return latent / 0

    with pytest.raises(UserError, match="`precision=float32`"):
        reconstruct_volume(Overflowing(), np.ones((1, 8, 8), dtype=np.int16))


def test_defaults_follow_the_vae():
    image = ReconstructionSettings.for_vae(IdentityVAE(window_slices=8).spec)
    video = ReconstructionSettings.for_vae(IdentityVAE(slice_stride=4, slice_offset=1, window_slices=65).spec)
    assert (image.window_slices, image.overlap_slices) == (8, 0)
    assert (video.window_slices, video.overlap_slices) == (65, 16)
    assert image.hu_window == HU_WINDOW


def test_fidelity_against_scikit_image_and_by_hand():
    metrics = pytest.importorskip("skimage.metrics")
    rng = np.random.default_rng(0)
    raw = rng.integers(-1000, 1000, size=(5, 8, 8)).astype(np.int16)
    view = (raw + rng.normal(scale=20, size=raw.shape)).astype(np.int16)
    found = fidelity(raw, view, HU_WINDOW)
    assert found.psnr_db == pytest.approx(metrics.peak_signal_noise_ratio(raw, view, data_range=2000), abs=1e-6)
    assert found.mean_absolute_error_hu == pytest.approx(np.abs(raw.astype(float) - view).mean())
    clipped = fidelity(np.full((1, 1, 2), 3000, np.int16), np.array([[[1000, 980]]], np.int16), HU_WINDOW)
    assert clipped.mean_absolute_error_hu == 10
    assert clipped.psnr_db == pytest.approx(10 * np.log10(2000**2 / 200))
    assert fidelity(raw, raw, HU_WINDOW).psnr_db == float("inf")


@pytest.mark.slow
def test_a_ct_of_any_orientation_is_seen_in_axial_slices(tmp_path):
    vae = load_vae("tiny")
    axial = CT.from_array(_phantom_slices(), (3.0, 1.0, 1.0))
    view = reconstruct(axial, vae)
    assert view.hu.dtype == np.int16 and view.geometry == axial.geometry
    np.testing.assert_array_equal(view.hu, reconstruct_to_int16(vae, axial.hu))
    coronal = CT.from_array(axial.hu.transpose(1, 0, 2), (1.0, 3.0, 1.0), direction=(1, 0, 0, 0, 0, 1, 0, 1, 0))
    np.testing.assert_array_equal(reconstruct(coronal, vae).hu.transpose(1, 0, 2), view.hu)
    write_image(tmp_path / "in" / "case.nii.gz", coronal.hu, spacing_mm=coronal.spacing_mm, direction=coronal.direction)
    folders = ["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out")]
    assert reconstruct_command([*folders, "-device", "cpu", "--vae", "tiny"]) == 0
    np.testing.assert_array_equal(read_ct(tmp_path / "out" / "case.nii.gz").hu, reconstruct(coronal, vae).hu)


def test_an_array_alone_is_no_ct():
    with pytest.raises(UserError, match=r"ct must be a CT \(read_ct, CT.from_array\), got ndarray"):
        reconstruct(np.zeros((4, 16, 16)), load_vae("tiny"))


def _phantom_slices():
    z, y, x = np.meshgrid(np.linspace(0, 3, 5), np.linspace(-1, 1, 24), np.linspace(-1, 1, 32), indexing="ij")
    body = y**2 + x**2 < 0.8
    return np.where(body, 60 * np.sin(4 * x + z) + 40, -1000).astype(np.int16)
