"""The noise in the records of views, and the strength of a control that removes as much."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from datasets_for_tests import Dataset
from identity_vae import IdentityVAE
from noise_for_tests import anatomy, white
from views_for_tests import make_view

from fvae_nnunet.cli import preprocess, reconstruct
from fvae_nnunet.command_lines import command_line, options_of
from fvae_nnunet.ct.files import read_volume
from fvae_nnunet.ct.noise import Noise, evenly_spread, homogeneous_region, measure_noise, noise_figures
from fvae_nnunet.errors import UserError
from fvae_nnunet.files.checked_json import read_json
from fvae_nnunet.jobs.manifest import MANIFEST_FOLDER, Manifest, write_json
from fvae_nnunet.preprocessing.dataset import open_preprocessed_dataset
from fvae_nnunet.preprocessing.make_views import read_axial_ct
from fvae_nnunet.reconstruction.noise_matching import Left, NoiseSample, match_strength, noise_of_view
from fvae_nnunet.reconstruction.settings import ReconstructionSettings
from fvae_nnunet.reconstruction.volume import fidelity
from fvae_nnunet.vae.denoisers import CONTROLS, Control

DENOISERS = [name for name in CONTROLS if name != "control:identity"]
HU_WINDOW = (-1000.0, 1000.0)
SETTINGS = ReconstructionSettings(HU_WINDOW, window_slices=8, overlap_slices=0)
NOISE_HU = {"a": 15, "b": 20, "c": 30, "d": 20}


def noisy_hu(case: str) -> np.ndarray:
    return np.rint(anatomy() + white(NOISE_HU[case], seed=ord(case))).astype(np.int16)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for case in NOISE_HU:
        sitk.WriteImage(sitk.GetImageFromArray(noisy_hu(case)), str(folder / f"{case}.nii.gz"))
    return folder


def make(images: Path, output: Path, *options: str) -> int:
    return reconstruct.main(["-i", str(images), "-o", str(output), "-np", "0", "--vae", *options])


def measured_ratio(images: Path, output: Path) -> float:
    """Median over the cases, by the measure itself on the files."""
    ratios = []
    for path in images.iterdir():
        raw_hu, view_hu = (read_volume(folder / path.name)[0] for folder in (images, output))
        region = homogeneous_region(raw_hu)
        ratios.append(measure_noise(view_hu, region).total_hu / measure_noise(raw_hu, region).total_hu)
    return float(np.median(ratios))


def strength_of(output: Path) -> float:
    return read_json(output / MANIFEST_FOLDER / "manifest.json")["settings"]["strength"]


def records(output: Path) -> dict[str, Path]:
    return {path.stem: path for path in (output / MANIFEST_FOLDER / "cases").iterdir()}


def test_evenly_spread_are_the_middles_of_equal_parts() -> None:
    assert evenly_spread(100, 8) == [6, 18, 31, 43, 56, 68, 81, 93]
    assert evenly_spread(9, 3) == [1, 4, 7]
    assert evenly_spread(3, 8) == [0, 1, 2]
    assert evenly_spread(5, 1) == [2]
    assert evenly_spread(0, 8) == []


def test_noise_is_recorded_of_both_volumes_on_at_most_32_axial_slices() -> None:
    """Slices that are not among the middles of 32 equal parts may hold anything."""
    raw_hu = np.concatenate([anatomy()] * 20) + white(20, shape=(80, 128, 128))
    view_hu = np.concatenate([anatomy()] * 20) + white(5, shape=(80, 128, 128), seed=1)
    places = [int(80 * (part + 0.5) / 32) for part in range(32)]
    others = np.setdiff1d(np.arange(80), places)
    raw_hu[others] += white(200, shape=(len(others), 128, 128))
    found = fidelity(raw_hu, view_hu, HU_WINDOW)
    clipped_hu = np.clip(raw_hu[places].astype(np.float32), *HU_WINDOW)
    region = homogeneous_region(clipped_hu)
    assert found.noise_raw_hu == measure_noise(clipped_hu, region).total_hu == pytest.approx(20, rel=0.1)
    assert found.noise_view_hu == measure_noise(view_hu[places], region).total_hu == pytest.approx(5, rel=0.2)
    assert np.hypot(found.noise_fine_view_hu, found.noise_coarse_view_hu) == pytest.approx(found.noise_view_hu)
    for order in ((1, 0, 2), (2, 1, 0)):
        turned = [volume.transpose(np.argsort(order)) for volume in (raw_hu, view_hu)]
        again = fidelity(*turned, HU_WINDOW, axis_order=order)
        assert (again.noise_raw_hu, again.noise_view_hu) == (found.noise_raw_hu, found.noise_view_hu)


def test_the_record_of_an_image_holds_its_noise_however_it_is_stored(images: Path, tmp_path: Path) -> None:
    turned = sitk.DICOMOrient(sitk.ReadImage(str(images / "a.nii.gz")), "LIP")
    sitk.WriteImage(turned, str(images / "turned.nii.gz"))
    air = sitk.GetImageFromArray(np.full((2, 16, 16), -1000, np.int16))
    sitk.WriteImage(air, str(images / "air.nii.gz"))
    assert make(images, tmp_path / "view", "control:gaussian", "--strength", "1") == 0
    found = {case: json.loads(path.read_text()) for case, path in records(tmp_path / "view").items()}
    raw_hu, view_hu = (read_volume(folder / "a.nii.gz")[0] for folder in (images, tmp_path / "view"))
    region = homogeneous_region(raw_hu)
    assert found["a"]["noise_raw_hu"] == pytest.approx(measure_noise(raw_hu, region).total_hu, rel=1e-5)
    assert found["a"]["noise_view_hu"] == pytest.approx(measure_noise(view_hu, region).total_hu, rel=1e-5)
    assert found["a"]["noise_fine_view_hu"] == pytest.approx(measure_noise(view_hu, region).fine_hu, rel=1e-5)
    for figure in noise_figures(None, None):
        # the slices run the other way
        assert found["turned"][figure] == pytest.approx(found["a"][figure], rel=1e-5)
        assert found["air"][figure] is None
    assert '"noise_raw_hu": null' in records(tmp_path / "view")["air"].read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", DENOISERS)
def test_each_control_reaches_the_ratio_of_the_view(
    name: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make(images, tmp_path / "view", "control:gaussian", "--strength", "0.6") == 0
    target = measured_ratio(images, tmp_path / "view")
    assert 0.3 < target < 0.6
    capsys.readouterr()
    assert make(images, tmp_path / "matched", name, "--match", str(tmp_path / "view")) == 0
    out = capsys.readouterr().out
    assert measured_ratio(images, tmp_path / "matched") == pytest.approx(target, abs=0.0021)
    said = f"{name} matched to {tmp_path / 'view'}: the view leaves {target:.3f} of the noise (median of 4 cases; from"
    assert said in out
    parts = re.findall(r"(0\.\d+) of the noise \(.*?\), (\d\.\d+) of the fine and (\d\.\d+) of the coarse", out)
    (view_total, view_fine, view_coarse), (total, fine, coarse) = [[float(part) for part in found] for found in parts]
    assert total == pytest.approx(view_total, abs=0.0021)
    assert view_fine < view_total < view_coarse
    # more of the one part is less of the other
    assert (fine - view_fine) * (coarse - view_coarse) <= 1e-4
    assert f"--strength {strength_of(tmp_path / 'matched'):g} (" in out
    if name == "control:gaussian":
        assert strength_of(tmp_path / "matched") == pytest.approx(0.6, abs=0.005)


@pytest.mark.slow
def test_a_match_repeats_itself_and_its_record_says_the_strength(images: Path, tmp_path: Path) -> None:
    assert make(images, tmp_path / "view", "control:gaussian", "--strength", "0.6") == 0
    for output in ("first", "again"):
        assert make(images, tmp_path / output, "control:median", "--match", str(tmp_path / "view")) == 0
    manifests = [read_json(tmp_path / output / MANIFEST_FOLDER / "manifest.json") for output in ("first", "again")]
    assert manifests[0] == manifests[1]
    parameters = manifests[0]["made_with"]["parameters"]
    assert parameters["strength"] == manifests[0]["settings"]["strength"] and "match" not in parameters
    vae = parameters.pop("vae")
    assert make(images, tmp_path / "first", vae, *options_of(parameters)) == 0


def test_a_view_that_removes_no_noise_is_matched_by_the_identity(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make(images, tmp_path / "view", "control:identity") == 0
    assert make(images, tmp_path / "matched", "control:median", "--match", str(tmp_path / "view")) == 0
    out = capsys.readouterr().out
    assert "the view removes no noise by this measure; the matched control is the identity (--strength 0)" in out
    assert strength_of(tmp_path / "matched") == 0
    for path in images.iterdir():
        assert np.array_equal(*(read_volume(tmp_path / view / path.name)[0] for view in ("view", "matched")))


def sample_of(cases: dict[str, list[np.ndarray]]) -> NoiseSample:
    noise_hu = {
        case: float(np.mean([measure_noise(volume, homogeneous_region(volume)).total_hu for volume in channels]))
        for case, channels in cases.items()
    }
    return NoiseSample(noise_hu, cases.__getitem__, SETTINGS)


@pytest.mark.slow
def test_what_no_strength_reaches_is_said_with_what_is_left() -> None:
    message = r"nlm cannot remove .* 0\.001 of it, .* `strength=2` \(h in halves .*\) still 0\.[1-9]\d\d"
    with pytest.raises(UserError, match=message):
        match_strength("control:nlm", 0.001, sample_of({"a": [noisy_hu("a")]}))


def test_several_channels_count_as_their_mean() -> None:
    two = sample_of({"case": [noisy_hu("a"), noisy_hu("c")]})
    match = match_strength("control:gaussian", 0.5, two)
    ratios = []
    for case in ("a", "c"):
        alone = sample_of({case: [noisy_hu(case)]})
        (left,) = alone.left(Control("control:gaussian", match.strength))
        ratios.append((NOISE_HU[case], left.total))
    expected = sum(noise * ratio for noise, ratio in ratios) / sum(noise for noise, _ in ratios)
    assert match.median.total == pytest.approx(expected, abs=0.01)
    assert match.median.total == pytest.approx(0.5, abs=0.002)


def test_what_is_left_is_the_median_of_the_cases_that_had_it() -> None:
    raw, without_coarse = Noise(10, 8, 6), Noise(10, 10, 0)
    assert Left.of(raw, Noise(5, 4, 3)) == Left(0.5, 0.5, 0.5)
    cases = [Left.of(raw, Noise(5, 2, 3)), Left.of(raw, Noise(7, 4, 6)), Left.of(without_coarse, Noise(2, 2, 0))]
    assert Left.median(cases) == Left(0.5, 0.25, 0.75)


def view_with(folder: Path, ratios: list[float | None]) -> Manifest:
    manifest = Manifest(folder)
    for index, ratio in enumerate(ratios):
        noise = noise_figures(None, None)
        if ratio is not None:
            raw_hu = 10.0 + index
            raw, view = (Noise(hu, 0.8 * hu, 0.6 * hu) for hu in (raw_hu, raw_hu * ratio))
            noise = noise_figures(raw, view)
        manifest.write_case(f"case_{index:02d}", inputs={}, outputs=[], results=noise)
    return manifest


def test_the_sample_is_spread_over_the_ratios_so_that_its_median_is_that_of_all(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ratios = [*rng.permutation(np.linspace(0.2, 0.8, 100)), None]
    cases = [f"case_{index:02d}" for index in range(len(ratios))]
    found = noise_of_view(view_with(tmp_path, ratios), reversed(cases), make=partial(command_line, "make"))
    assert len(found.left) == 100
    assert found.median.total == found.median.fine == found.median.coarse == pytest.approx(0.5)
    sampled = [ratios[int(case[5:])] for case in found.sample]
    np.testing.assert_allclose(sampled, np.linspace(0.2, 0.8, 100)[[6, 18, 31, 43, 56, 68, 81, 93]])
    assert np.median(sampled) == pytest.approx(found.median.total, abs=0.004)
    assert found.sample[cases[ratios.index(sampled[0])]] == 10 + ratios.index(sampled[0])


def test_a_view_without_soft_tissue_or_cases_is_refused(tmp_path: Path) -> None:
    manifest = view_with(tmp_path, [None])
    with pytest.raises(UserError, match=r"no case of .* has noise in soft tissue"):
        noise_of_view(manifest, ["case_00"], make=partial(command_line, "make"))
    with pytest.raises(UserError, match=r"case_01 is missing\. Complete it with: make"):
        noise_of_view(manifest, ["case_00", "case_01"], make=partial(command_line, "make"))


def forget_noise(output: Path) -> None:
    for path in records(output).values():
        write_json(path, {key: value for key, value in read_json(path).items() if not key.startswith("noise")})


def forget_coarse_noise(output: Path) -> None:
    """As versions did that saw fine noise only."""
    for path in records(output).values():
        known = read_json(path)
        write_json(path, {key: known[key] for key in known if not key.startswith(("noise_fine", "noise_coarse"))})


def lose_a_case(output: Path) -> None:
    (output / "b.nii.gz").unlink()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (forget_noise, [], "older version, which recorded no noise, or fine noise only (a); make it again with: "),
        (forget_coarse_noise, [], "fine noise only (a); make it again with: fvae-reconstruct -i"),
        (lose_a_case, [], "1 of 4 reconstructions are missing, incomplete or older than the raw images (first: b)"),
        (shutil.rmtree, [], "was not written by fvae-reconstruct. Make it with: fvae-reconstruct -i"),
        (None, ["--hu-window", "-160", "240"], "another HU window; add --hu-window -1000 1000"),
        (None, ["--precision", "bfloat16"], "leave --precision out"),
        (None, ["--vae", "control:identity"], "has no strength to choose; leave out --match"),
        (None, ["--vae", "control:sharpen"], "unknown control"),
        (None, ["-o", "VIEW"], "is also the output folder"),
    ],
)
def test_what_cannot_be_matched_is_one_message(
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], None] | None,
    options: list[str],
    message: str,
) -> None:
    view = tmp_path / "view"
    assert make(images, view, "control:gaussian", "--strength", "1") == 0
    if spoil is not None:
        spoil(view)
    options = [option.replace("VIEW", str(view)) for option in options]
    assert make(images, tmp_path / "out", "control:median", "--match", str(view), *options) == 1
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_a_raw_image_that_changed_is_noticed(images: Path) -> None:
    noise_hu = measure_noise(noisy_hu("a"), homogeneous_region(noisy_hu("a"))).total_hu
    with pytest.raises(UserError, match="the raw image of a has changed"):
        NoiseSample({"a": noise_hu * 1.01}, lambda case: [noisy_hu(case)], SETTINGS)
    with pytest.raises(UserError, match="the raw image of a has changed"):
        NoiseSample({"a": noise_hu}, lambda case: [np.full((2, 8, 8), -1000)], SETTINGS)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    from fvae_nnunet.nnunet import registration

    monkeypatch.setattr(registration, "is_found_by_nnunet", lambda trainer="nnUNetTrainerFVAE": True)


class SmoothingVAE(IdentityVAE):
    """Averages every pixel with its right neighbour, which leaves sqrt(1/2) of white noise."""

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        return (latent + latent.roll(1, dims=-1)) / 2


@pytest.mark.slow
def test_parts_of_a_dataset_are_matched_alike_and_the_view_goes_on(
    clone: Dataset, registered: None, capsys: pytest.CaptureFixture[str]
) -> None:
    make_view(clone, SmoothingVAE(), view="smooth", hu_window=HU_WINDOW)
    command = [clone.id, "-c", "3d_fullres", "-np", "0", "--vae", "control:median", "--match", "smooth"]
    for part in ("0", "1"):
        assert preprocess.main([*command, "-num_parts", "2", "-part_id", part]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "matched to smooth" in line]
    assert len(lines) == 2
    assert lines[0] == lines[1]
    assert preprocess.main(command) == 0
    assert "5 already complete" in capsys.readouterr().out

    dataset = open_preprocessed_dataset(clone.id)
    medians = []
    for folder in ("2d__fvae_smooth", "3d_fullres__fvae_smooth", "3d_fullres__fvae_control-median"):
        manifest = Manifest(clone.preprocessed / f"nnUNetPlans_{folder}")
        record = [manifest.read_case(case) for case in dataset.cases]
        medians.append(np.median([case["noise_view_hu"] / case["noise_raw_hu"] for case in record]))
    assert medians[0] == medians[1] < 0.95
    assert medians[2] == pytest.approx(medians[0], abs=0.002)

    capsys.readouterr()
    for name, message in (("none", "does not hold a view"), ("control-median", "is also the view to make")):
        assert preprocess.main([*command[:-1], name]) == 1
        assert message in capsys.readouterr().err
    (clone.preprocessed / "nnUNetPlans_3d_fullres__fvae_smooth" / f"{dataset.cases[0]}.b2nd").unlink()
    assert preprocess.main([*command, "--overwrite"]) == 1
    assert "1 of 5 cases are missing or incomplete" in capsys.readouterr().err


@pytest.mark.slow
def test_the_raw_channels_are_read_axial(clone: Dataset) -> None:
    case = open_preprocessed_dataset(clone.id).cases[0]
    (path,) = (clone.raw / "imagesTr").glob(f"{case}_*")
    image = sitk.ReadImage(str(path))
    expected = sitk.GetArrayFromImage(image)
    sitk.WriteImage(sitk.DICOMOrient(image, "LIP"), str(path))
    (found,) = read_axial_ct(open_preprocessed_dataset(clone.id), case)
    assert found.shape == expected.shape == (24, 48, 48)
    assert np.array_equal(found[::-1], expected)


@pytest.mark.slow
def test_devices_get_the_strength_that_one_process_finds(clone: Dataset, registered: None) -> None:
    make_view(clone, SmoothingVAE(), view="smooth", hu_window=HU_WINDOW, configurations=["3d_fullres"])
    command = [clone.id, "-c", "3d_fullres", "-np", "0", "--vae", "control:gaussian", "--match", "smooth", "--view"]
    assert preprocess.main([*command, "one"]) == 0
    assert preprocess.main([*command, "two", "--devices", "cpu", "cpu"]) == 0
    one, two = (clone.preprocessed / f"nnUNetPlans_3d_fullres__fvae_{view}" for view in ("one", "two"))
    assert Manifest(one).read()["settings"] == Manifest(two).read()["settings"]
    for path in one.glob("*.b2nd"):
        assert path.read_bytes() == (two / path.name).read_bytes()
