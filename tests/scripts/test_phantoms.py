"""Phantoms: what their HU and labels are, and the dataset that is written from them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import phantoms
import pytest
import SimpleITK as sitk
from phantoms import LABELS, make_phantom, write_phantom_dataset
from scipy import ndimage

from fvae_nnunet.errors import UserError

SMALL = (24, 48, 48)


@pytest.mark.parametrize("kind", LABELS)
def test_the_seed_decides_every_voxel(kind: str) -> None:
    hu, label = make_phantom(kind, seed=3, shape=SMALL)
    again_hu, again_label = make_phantom(kind, seed=3, shape=SMALL)
    other_hu, other_label = make_phantom(kind, seed=4, shape=SMALL)
    np.testing.assert_array_equal(hu, again_hu)
    np.testing.assert_array_equal(label, again_label)
    assert np.mean(hu != other_hu) > 0.5
    assert np.any(label != other_label)


@pytest.mark.slow
@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize(
    ("shape", "spacing_mm"),
    [(SMALL, (3.0, 2.0, 2.0)), ((12, 32, 40), (5.0, 1.5, 1.5)), ((40, 64, 56), (1.0, 1.5, 2.0))],
)
def test_every_label_occurs_in_every_phantom(
    kind: str, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]
) -> None:
    for seed in range(25):
        hu, label = make_phantom(kind, seed=seed, shape=shape, spacing_mm=spacing_mm)
        assert hu.shape == label.shape == shape
        assert hu.dtype == np.int16
        assert label.dtype == np.uint8
        assert hu.min() >= -1024
        counts = np.bincount(label.ravel())
        assert len(counts) == len(LABELS[kind]), f"seed {seed}"
        assert counts.min() >= 4, f"seed {seed}: {counts}"


def test_hu_of_the_tissues() -> None:
    for seed in range(4):
        hu, label = make_phantom("pancreas", seed=seed)
        # two voxels away from every border the blur does not reach
        organ = hu[ndimage.binary_erosion(label == 1, iterations=2)]
        assert 75 < organ.mean() < 105
        assert 12 < organ.std() < 30
        assert hu[:, :4, :4].mean() == pytest.approx(-1000, abs=5)
        assert (hu > 300).sum() > 1000, "bone"
        assert ((hu > -950) & (hu < -750)).sum() > 2000, "lung"


@pytest.mark.slow
def test_tumour_of_the_pancreas_is_30_to_45_hu_darker() -> None:
    differences = []
    for seed in range(10):
        hu, label = make_phantom("pancreas", seed=seed)
        tumour = ndimage.binary_erosion(label == 2, iterations=2)
        if tumour.sum() > 50:
            differences.append(hu[ndimage.binary_erosion(label == 1, iterations=2)].mean() - hu[tumour].mean())
    assert len(differences) >= 5
    assert min(differences) > 30 - 6  # mean of noise of 20 HU, correlated, over 50 voxels and more
    assert max(differences) < 45 + 6


@pytest.mark.slow
def test_nodules_are_soft_tissue_in_lung() -> None:
    for seed in range(4):
        hu, label = make_phantom("lung", seed=seed)
        nodule = label == 1
        assert -60 < hu[ndimage.binary_erosion(nodule)].mean() < 70
        around = ndimage.binary_dilation(nodule, iterations=4) & ~ndimage.binary_dilation(nodule, iterations=2)
        assert hu[around].min() < -700


def test_body_keeps_its_size_in_mm_when_voxels_shrink() -> None:
    widths_mm = []
    for width, step_mm in ((96, 2.0), (192, 1.0)):
        hu, _ = make_phantom("pancreas", seed=1, shape=(16, 96, width), spacing_mm=(3.0, 2.0, step_mm))
        columns = np.flatnonzero((hu > -500).any((0, 1)))
        widths_mm.append((columns[-1] - columns[0] + 1) * step_mm)
    assert widths_mm[0] == pytest.approx(widths_mm[1], abs=6)


def test_noise_has_unit_variance_and_a_rising_spectrum() -> None:
    torso = phantoms.Torso(np.random.default_rng(0), (32, 64, 64), (3.0, 2.0, 2.0))
    noise = torso._scanner_noise()
    assert noise.std() == pytest.approx(1, rel=1e-4)
    power = (np.abs(np.fft.fft2(noise)) ** 2).mean(0)
    frequency = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.fftfreq(64)[None])
    bands = [power[(frequency > low) & (frequency < low + 0.03)].mean() for low in (0.0, 0.05, 0.15)]
    assert bands[0] < bands[1] < bands[2]
    assert power[frequency > 0.45].mean() < bands[2]


def test_impossible_phantoms_are_refused() -> None:
    with pytest.raises(UserError, match="known: pancreas, lung"):
        make_phantom("liver", seed=0)
    with pytest.raises(UserError, match=r"at least \(12, 32, 32\), got \(8, 48, 48\)"):
        make_phantom("lung", seed=0, shape=(8, 48, 48))
    with pytest.raises(UserError, match="positive"):
        make_phantom("lung", seed=0, shape=SMALL, spacing_mm=(3.0, 0.0, 2.0))
    with pytest.raises(UserError, match="negative"):
        make_phantom("lung", seed=-1, shape=SMALL)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_phantom_dataset(
        tmp_path / "Dataset900_P", "pancreas", n_train=2, n_test=1, seed=5, shape=SMALL, spacing_mm=(3.0, 2.0, 1.5)
    )


def test_dataset_has_nnunets_raw_format(dataset: Path) -> None:
    files = {str(path.relative_to(dataset)) for path in dataset.rglob("*") if path.is_file()}
    assert files == {
        "dataset.json",
        "imagesTr/phantom_000_0000.nii.gz",
        "imagesTr/phantom_001_0000.nii.gz",
        "labelsTr/phantom_000.nii.gz",
        "labelsTr/phantom_001.nii.gz",
        "imagesTs/phantom_002_0000.nii.gz",
        "labelsTs/phantom_002.nii.gz",
    }
    description = json.loads((dataset / "dataset.json").read_text())
    assert description["channel_names"] == {"0": "CT"}
    assert description["labels"] == {"background": 0, "pancreas": 1, "tumour": 2}
    assert description["numTraining"] == 2
    assert description["file_ending"] == ".nii.gz"
    assert [path.name for path in dataset.parent.iterdir()] == [dataset.name]


def test_dataset_holds_the_phantoms_with_one_geometry_for_image_and_label(dataset: Path) -> None:
    origins = set()
    for index, part in enumerate(("Tr", "Tr", "Ts")):
        image = sitk.ReadImage(str(dataset / f"images{part}" / f"phantom_{index:03d}_0000.nii.gz"))
        label = sitk.ReadImage(str(dataset / f"labels{part}" / f"phantom_{index:03d}.nii.gz"))
        hu, segmentation = make_phantom("pancreas", seed=(5, index), shape=SMALL, spacing_mm=(3.0, 2.0, 1.5))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), hu)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(label), segmentation)
        assert image.GetPixelID() == sitk.sitkInt16
        assert image.GetSpacing() == pytest.approx((1.5, 2.0, 3.0))
        for part_of_geometry in ("GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(image, part_of_geometry)() == getattr(label, part_of_geometry)()
        origins.add(image.GetOrigin())
    assert len(origins) == 3


def test_nnunet_accepts_the_dataset(dataset: Path) -> None:
    from nnunetv2.experiment_planning.verify_dataset_integrity import check_cases
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    for index in range(2):
        images = [str(dataset / "imagesTr" / f"phantom_{index:03d}_0000.nii.gz")]
        label = str(dataset / "labelsTr" / f"phantom_{index:03d}.nii.gz")
        assert check_cases(images, label, 1, SimpleITKIO)


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")
    with pytest.raises(UserError, match="not empty"):
        write_phantom_dataset(tmp_path, "lung", n_train=1, n_test=0, seed=0, shape=SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_an_interrupted_dataset_is_not_there_and_the_next_run_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "Dataset901_L"

    def full_disk(*_args: object, **_keywords: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr(phantoms.sitk, "WriteImage", full_disk)
        write_phantom_dataset(folder, "lung", n_train=1, n_test=0, seed=0, shape=SMALL)
    assert not folder.exists()
    write_phantom_dataset(folder, "lung", n_train=1, n_test=0, seed=0, shape=SMALL)
    assert len(list(folder.rglob("*.nii.gz"))) == 2


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "Dataset901_L"
    command = [str(folder), "--kind", "lung", "--n-train", "1", "--n-test", "0", "--shape", "24", "48", "48"]
    assert phantoms.main([*command, "--file-ending", ".nrrd"]) == 0
    assert (folder / "imagesTr" / "phantom_000_0000.nrrd").is_file()
    assert phantoms.main(command) == 1
    assert "not empty" in capsys.readouterr().err


def test_clean_images_are_the_same_without_the_noise(tmp_path: Path) -> None:
    options = {"n_train": 1, "n_test": 1, "seed": 5, "shape": SMALL}
    with_clean = write_phantom_dataset(tmp_path / "clean", "lung", clean=True, **options)
    plain = write_phantom_dataset(tmp_path / "plain", "lung", **options)
    assert not (plain / "cleanTr").exists()
    for part, name in (("Tr", "phantom_000_0000.nii.gz"), ("Ts", "phantom_001_0000.nii.gz")):
        image = sitk.ReadImage(str(with_clean / f"images{part}" / name))
        clean = sitk.ReadImage(str(with_clean / f"clean{part}" / name))
        assert image.GetOrigin() == clean.GetOrigin()
        scanned, without = (sitk.GetArrayFromImage(one).astype(float) for one in (image, clean))
        np.testing.assert_array_equal(
            scanned, sitk.GetArrayFromImage(sitk.ReadImage(str(plain / f"images{part}" / name)))
        )
        difference = (scanned - without)[(without > -900) & (without < 2500)]
        assert abs(difference.mean()) < 0.5 and 14.5 < difference.std() < 20.5
