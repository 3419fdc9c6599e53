"""Plain denoisers in the place of a VAE, against the libraries' own calls and the properties that are promised."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from datasets_for_tests import Dataset
from identity_vae import IdentityVAE
from noise_for_tests import anatomy, white
from preprocessing_for_tests import assert_view_is_nnunets_own
from scipy import ndimage
from skimage import restoration

from fvae_nnunet.cli import preprocess, reconstruct, setup
from fvae_nnunet.command_lines import options_of
from fvae_nnunet.ct.noise import homogeneous_region, measure_noise
from fvae_nnunet.errors import UserError
from fvae_nnunet.jobs.manifest import Manifest
from fvae_nnunet.reconstruction.settings import ReconstructionSettings
from fvae_nnunet.reconstruction.volume import reconstruct_to_int16, reconstruct_volume
from fvae_nnunet.vae import FrozenVAE, is_available_offline, load_vae
from fvae_nnunet.vae.denoisers import CONTROLS

DENOISERS = [name for name in CONTROLS if name != "control:identity"]
STRENGTHS = {
    "control:gaussian": 0.8,
    "control:median": 1.25,
    "control:bilateral": 0.02,
    "control:curvature-flow": 0.5,
    "control:tv": 0.01,
    "control:nlm": 0.015,
}


def noisy_hu() -> np.ndarray:
    return np.rint(anatomy() + white(20)).astype(np.int16)


def model_plane() -> np.ndarray:
    """A noisy slice (y, x) in [-1, 1], float32, y and x unequal."""
    return (np.clip(noisy_hu()[0, :96], -1000, 1000) / 1000).astype(np.float32)


def filtered(name: str, strength: float, plane: np.ndarray) -> np.ndarray:
    control = load_vae(name, strength=strength)
    volume = torch.from_numpy(plane)[None, None, None]
    return control.decode(control.encode(volume))[0, 0, 0].numpy()


def by_simpleitk(function, plane, *parameters):
    return sitk.GetArrayFromImage(function(sitk.GetImageFromArray(plane), *parameters)).astype(np.float32)


def test_gaussian_is_scipys_with_its_sd_in_pixels() -> None:
    expected = ndimage.gaussian_filter(model_plane(), 0.8, mode="nearest")
    assert np.array_equal(filtered("control:gaussian", 0.8, model_plane()), expected)


def test_median_of_whole_radii_is_scipys_and_between_them_a_mixture() -> None:
    plane = model_plane()
    three, five = (ndimage.median_filter(plane, size, mode="nearest") for size in (3, 5))
    assert np.array_equal(filtered("control:median", 1, plane), three)
    assert np.array_equal(filtered("control:median", 2, plane), five)
    np.testing.assert_allclose(filtered("control:median", 1.25, plane), 0.75 * three + 0.25 * five, atol=1e-6)
    np.testing.assert_allclose(filtered("control:median", 0.5, plane), 0.5 * plane + 0.5 * three, atol=1e-6)


def test_bilateral_is_simpleitks_with_a_spatial_sd_of_2_pixels() -> None:
    expected = by_simpleitk(sitk.Bilateral, model_plane(), 2.0, 0.03, 1000)
    assert np.array_equal(filtered("control:bilateral", 0.03, model_plane()), expected)


@pytest.mark.parametrize(("time", "step", "count"), [(0.5, 0.0625, 8), (0.1, 0.05, 2), (0.01, 0.01, 1)])
def test_curvature_flow_is_simpleitks_in_equal_steps_of_at_most_a_sixteenth(time, step, count) -> None:
    expected = by_simpleitk(sitk.CurvatureFlow, model_plane(), step, count)
    assert np.array_equal(filtered("control:curvature-flow", time, model_plane()), expected)


def test_tv_and_nlm_are_scikit_images() -> None:
    plane = model_plane().astype(np.float64)
    tv = restoration.denoise_tv_chambolle(plane, weight=0.02, eps=1e-5, max_num_iter=200)
    nlm = restoration.denoise_nl_means(plane, patch_size=5, patch_distance=6, h=0.02)
    np.testing.assert_allclose(filtered("control:tv", 0.02, model_plane()), tv, atol=1e-6)
    np.testing.assert_allclose(filtered("control:nlm", 0.02, model_plane()), nlm, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in DENOISERS if CONTROLS[name].of_grey_values])
def test_strengths_of_grey_values_are_in_halves_of_the_hu_window(name: str) -> None:
    """In a window of 400 HU, 0.1 is 20 HU: the libraries with 20 on the HU themselves."""
    hu = np.clip(noisy_hu()[:1], -160, 240)
    control = load_vae(name, strength=0.1)
    settings = ReconstructionSettings.for_vae(control.spec, hu_window=(-160, 240))
    plane = hu[0].astype(np.float64)
    expected = {
        "control:bilateral": lambda: by_simpleitk(sitk.Bilateral, plane, 2.0, 20.0, 1000),
        "control:tv": lambda: restoration.denoise_tv_chambolle(plane, weight=20, eps=1e-5, max_num_iter=200),
        "control:nlm": lambda: restoration.denoise_nl_means(plane, patch_size=5, patch_distance=6, h=20),
    }[name]()
    np.testing.assert_allclose(reconstruct_volume(control, hu, settings)[0], expected, atol=0.1)
    assert CONTROLS[name].explained(0.1, (-160, 240)).endswith(": 20 HU")


@pytest.mark.parametrize("name", DENOISERS)
def test_strength_0_is_the_identity_to_the_bit(name: str) -> None:
    hu = anatomy() + white(20)
    identity, control = load_vae("control:identity"), load_vae(name, strength=0)
    assert np.array_equal(reconstruct_volume(control, hu), reconstruct_volume(identity, hu))
    volume = torch.from_numpy(model_plane())[None, None, None]
    assert torch.equal(control.decode(control.encode(volume)), volume)


def test_the_identity_leaves_every_hu_of_the_window_and_clips_the_rest() -> None:
    hu = np.arange(-1100, 1100, dtype=np.int16).reshape(1, 44, 50)
    assert np.array_equal(reconstruct_to_int16(load_vae("control:identity"), hu), np.clip(hu, -1000, 1000))


@pytest.mark.slow
@pytest.mark.parametrize("name", DENOISERS)
def test_noise_falls_with_strength(name: str) -> None:
    """Down to a fifth; below, the stairs of total variation and smeared anatomy count as coarse noise."""
    raw_hu = noisy_hu()
    region = homogeneous_region(raw_hu)
    left_hu = [
        measure_noise(reconstruct_to_int16(load_vae(name, strength=share * STRENGTHS[name]), raw_hu), region).total_hu
        for share in (0, 0.5, 0.75, 1, 1.25, 1.5, 2, 3, 4)
    ]
    assert left_hu[0] == pytest.approx(20, rel=0.1)
    assert left_hu[-1] < 5.5
    assert all(later < earlier for earlier, later in zip(left_hu, left_hu[1:]) if earlier > 4.5)


@pytest.mark.slow
def test_the_noise_left_by_mixed_medians_dips_by_less_than_a_hundredth() -> None:
    """The 3x3 median is not the best mixture of slice and median, but nearly."""
    raw_hu = noisy_hu()
    region = homogeneous_region(raw_hu)
    ratios = [
        measure_noise(reconstruct_to_int16(load_vae("control:median", strength=radius), raw_hu), region).total_hu / 20
        for radius in np.arange(0.8, 2.3, 0.05)
    ]
    assert max(np.diff(ratios)) < 0.01


@pytest.fixture(params=DENOISERS)
def control(request: pytest.FixtureRequest) -> FrozenVAE:
    return load_vae(request.param, strength=STRENGTHS[request.param])


def test_each_slice_is_filtered_alone_in_its_plane(control: FrozenVAE) -> None:
    volume = torch.from_numpy(np.stack([model_plane(), -model_plane(), model_plane().T[:, ::-1].T]))[None, None]
    whole = control.decode(control.encode(volume))
    for position in range(3):
        alone = control.decode(control.encode(volume[:, :, position : position + 1]))
        assert torch.equal(whole[:, :, position : position + 1], alone)
    batch = volume.transpose(0, 2)
    assert torch.equal(control.decode(control.encode(batch)), whole.transpose(0, 2))
    assert control.spec.independent_slices


def test_keeps_the_contract_of_a_vae(control: FrozenVAE) -> None:
    volume = torch.from_numpy(model_plane())[None, None, None].requires_grad_()
    copy = volume.detach().clone()
    latent = control.encode(volume, torch.Generator().manual_seed(0))
    decoded = control.decode(latent)
    assert latent.shape == decoded.shape == volume.shape
    assert latent.dtype == decoded.dtype == control.dtype == torch.float32
    assert not decoded.requires_grad
    assert torch.equal(volume, copy)
    assert torch.equal(latent, copy)
    assert torch.equal(control.decode(latent), decoded)
    assert not torch.equal(decoded, copy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(control.decode(control.encode(volume)), decoded)
    for shape in ((1, 5, 16, 16), (1, 3, 5, 16, 16)):
        with pytest.raises(ValueError, match=r"expected \(B, 1, D, H, W\)"):
            control.encode(torch.zeros(shape))
        with pytest.raises(ValueError, match=r"expected \(B, 1, D, H, W\)"):
            control.decode(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 7), (1, 3, 2)])
def test_tiny_slices_are_taken(control: FrozenVAE, shape: tuple[int, ...]) -> None:
    hu = np.random.default_rng(0).integers(-900, 900, shape).astype(np.int16)
    assert reconstruct_to_int16(control, hu).shape == shape


def test_the_record_tells_filter_and_strength_apart() -> None:
    def record(name: str, strength: float | None) -> dict:
        control = load_vae(name, strength=strength)
        return ReconstructionSettings.for_vae(control.spec).recorded_with(control)

    one = record("control:gaussian", 1)
    assert (one["vae"], one["strength"], one["precision"]) == ("control:gaussian", 1.0, "float32")
    assert one == record("control:gaussian", 1.0)
    digests = {record(name, strength)["weights_sha256"] for name in STRENGTHS for strength in (0, 1)}
    assert len(digests) == 2 * len(STRENGTHS)
    # a recorded view is made again with what its record says
    assert record("control:identity", record("control:identity", None)["strength"]) == record("control:identity", None)
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)
    vae = IdentityVAE()
    assert "strength" not in ReconstructionSettings.for_vae(vae.spec).recorded_with(vae)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("control:gaussian", {}, r"needs a strength: `strength=S` \(standard deviation in pixels\), or `match"),
        ("control:gaussian", {"strength": -0.1}, "between 0 and 10, got -0.1"),
        ("control:gaussian", {"strength": float("nan")}, "got nan"),
        ("control:tv", {"strength": float("inf")}, "between 0 and 1, got inf"),
        ("control:identity", {"strength": 0.1}, "has no strength; leave `strength` out"),
        ("control:nlm", {}, "`strength=auto` for the noise of each image, or `match"),
        ("control:gaussian", {"strength": "auto"}, "is available only for control:tv, control:nlm"),
        ("control:tv", {"strength": "much"}, "between 0 and 1, got much"),
        ("control:sharpen", {"strength": 1}, "unknown control 'control:sharpen'; there are control:identity, "),
        ("control:median", {"strength": 1, "weights": "w.pth"}, "no weights and no code of its own; leave `weights`"),
        ("control:median", {"strength": 1, "code": "c", "trust_weights": True}, "leave `vae_code`, `trust_weights`"),
        ("control:median", {"strength": 1, "dtype": torch.bfloat16}, "in float32; leave `precision` out"),
        ("tiny", {"strength": 1}, "`strength` is for plain denoisers"),
        ("gaussian", {}, "Did you mean control:gaussian"),
    ],
)
def test_what_cannot_be_meant_is_refused(name: str, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_vae(name, **options)


def test_without_scikit_image_only_its_filters_are_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert all(is_available_offline(name) for name in CONTROLS)
    assert setup.main(["--vaes"]) == 0
    blocks = capsys.readouterr().out.replace("\n  ", " ").splitlines()
    for name, denoiser in CONTROLS.items():
        (text,) = (block for block in blocks if block.startswith(f"{name}: "))
        assert denoiser.unit in " ".join(text.split())
    with pytest.raises(UserError, match="unknown control"):
        is_available_offline("control:sharpen")


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    from fvae_nnunet.nnunet import registration

    monkeypatch.setattr(registration, "is_found_by_nnunet", lambda trainer="nnUNetTrainerFVAE": True)


@pytest.mark.slow
def test_the_identitys_view_is_nnunets_own_data(clone: Dataset, registered: None) -> None:
    options = ["--vae", "control:identity", "--hu-window", "-3000", "3000", "-np", "0"]
    assert preprocess.main([clone.id, *options]) == 0
    names = ("2d", "3d_fullres")
    folders = {name: clone.preprocessed / f"nnUNetPlans_{name}__fvae_control-identity" for name in names}
    assert_view_is_nnunets_own(folders, clone)


@pytest.mark.slow
def test_a_view_remembers_its_strength(clone: Dataset, registered: None, capsys: pytest.CaptureFixture[str]) -> None:
    command = [clone.id, "-c", "3d_fullres", "-np", "0", "--vae", "control:gaussian"]
    assert preprocess.main([*command, "--strength", "0.7"]) == 0
    manifest = Manifest(clone.preprocessed / "nnUNetPlans_3d_fullres__fvae_control-gaussian")
    content = manifest.read()
    assert content["settings"]["strength"] == 0.7
    assert "scipy" in content["made_with"]["weights"]
    capsys.readouterr()
    again = options_of(content["made_with"]["parameters"])
    assert preprocess.main([clone.id, "-c", "3d_fullres", "-np", "0", *again]) == 0
    assert "5 already complete" in capsys.readouterr().out
    assert preprocess.main([*command, "--strength", "0.8"]) == 1
    assert "strength: 0.7, now 0.8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["control:gaussian"], "needs a strength"),
        (["control:gaussian", "--strength", "1", "--match", "x"], "are mutually exclusive"),
        (["control:gaussian", "--strength", "1", "--scheme", "stream"], "leave out --scheme stream"),
        (["control:gaussian", "--strength", "1", "--scheme", "paper"], "leave out --scheme paper"),
        (["control:gaussian", "--strength", "1", "--sample-posterior", "1"], "leave out --sample-posterior"),
        (["control:gaussian", "--strength", "1", "--precision", "float16"], "leave --precision out"),
        (["tiny", "--strength", "1"], "tiny is a VAE"),
        (["tiny", "--match", "x"], "tiny is a VAE"),
    ],
)
def test_options_that_do_not_go_together_are_one_message(tmp_path, capsys, options, message) -> None:
    (tmp_path / "in").mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(noisy_hu()[:1, :16, :16]), str(tmp_path / "in" / "a.nii.gz"))
    fixed = ["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "-np", "0", "--vae"]
    assert reconstruct.main([*fixed, *options]) == 1
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "of_noise"), [("control:nlm", 1.2), ("control:tv", 1.0)])
def test_strength_auto_is_for_the_noise_of_each_volume(name: str, of_noise: float) -> None:
    rng = np.random.default_rng(0)
    control = load_vae(name, strength="auto")
    assert control.strength == "auto"
    assert ReconstructionSettings.for_vae(control.spec).recorded_with(control)["strength"] == "auto"
    for noise_hu in (8, 24):
        volume = np.rint(50 + noise_hu * rng.standard_normal((3, 96, 96))).astype(np.int16)
        found = control.for_volume(volume, (-1000.0, 1000.0))
        assert found.strength == pytest.approx(of_noise * noise_hu / 1000, rel=0.05)
        narrow = control.for_volume(volume, (-200.0, 300.0))
        assert narrow.strength == pytest.approx(of_noise * noise_hu / 250, rel=0.05)
        assert np.array_equal(reconstruct_to_int16(control, volume), reconstruct_to_int16(found, volume))
        coronal = reconstruct_to_int16(control, volume.transpose(1, 0, 2), axis_order=(1, 0, 2))
        assert np.array_equal(coronal.transpose(1, 0, 2), reconstruct_to_int16(found, volume))
    with pytest.raises(UserError, match="no soft tissue to measure the noise in"):
        reconstruct_to_int16(control, np.full((3, 32, 32), -800, dtype=np.int16))
    with pytest.raises(UserError, match="needs the whole image"):
        control.decode(torch.zeros(1, 1, 2, 8, 8))


def test_strength_auto_through_the_command(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    volume = np.rint(50 + 20 * np.random.default_rng(0).standard_normal((3, 64, 64))).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(volume), str(images / "case_0000.nii.gz"))
    options = ["--vae", "control:nlm", "--strength", "auto"]
    assert reconstruct.main(["-i", str(images), "-o", str(tmp_path / "view"), "-np", "0", *options]) == 0
    view = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "view" / "case_0000.nii.gz")))
    assert np.array_equal(view, reconstruct_to_int16(load_vae("control:nlm", strength="auto"), volume))
    assert view.std() < volume.std() / 2
    # what is written is read again, and the options in it make the same
    assert reconstruct.main(["-i", str(images), "-o", str(tmp_path / "view"), "-np", "0", *options]) == 0
