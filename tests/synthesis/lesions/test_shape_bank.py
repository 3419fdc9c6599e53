"""Banks of shapes: which lesions a folder of masks has, who may be borrowed from, and what the records say."""

import numpy as np
import pytest
import SimpleITK as sitk
from painted_cases import CORONAL, write_dataset, write_image
from synthesize_for_tests import SIZE, files_of, paints, run

from fvae_nnunet.errors import UserError
from fvae_nnunet.findings.synthetic_cases import _origins
from fvae_nnunet.nnunet.synthetic_folder import read_synthetic_cases, shape_donors
from fvae_nnunet.synthesis.lesions.shape_bank import ShapeBank

__all__ = ["paints"]


def masks():
    """Two lesions and a speck of 7 voxels; a long one; nothing."""
    two = np.zeros((6, 12, 14), np.uint8)
    two[1:3, 1:4, 1:3] = 1  # 12 voxels
    two[3:5, 5:8, 5:9] = 7  # 24, of another value
    two[0, 10, 2:9] = 1
    long = np.zeros((4, 5, 20), np.float32)
    long[1:3, 2, 3:18] = 0.5
    return {"two": two, "long": long, "empty": np.zeros((3, 3, 3), np.uint8)}


@pytest.fixture
def folder(tmp_path):
    for name, mask in masks().items():
        write_image(tmp_path / "bank" / f"{name}.nii.gz", mask, spacing_mm=(2.0, 1.5, 1.0))
    return tmp_path / "bank"


def opened(folder, workers=0):
    seen = []
    bank = ShapeBank.open(folder, workers=workers, on_file=lambda: seen.append(1))
    assert len(seen) == len(list(folder.iterdir()))
    return bank


@pytest.mark.slow
def test_each_connected_piece_of_eight_voxels_is_a_lesion(folder):
    bank = opened(folder)
    assert bank.lesions == (
        {"file": "long.nii.gz", "number": 1, "voxels": 30},
        {"file": "two.nii.gz", "number": 2, "voxels": 12},
        {"file": "two.nii.gz", "number": 3, "voxels": 24},
    )
    assert opened(folder, workers=2) == bank


def test_lesions_are_drawn_evenly_with_their_own_spacing(folder):
    bank, rng = opened(folder), np.random.default_rng(0)
    drawn = [bank.draw(rng) for _ in range(150)]
    shapes = {lesion.mask.shape: lesion for lesion in drawn}
    assert set(shapes) == {(2, 1, 15), (2, 3, 2), (2, 3, 4)}
    counts = [sum(lesion.mask.shape == shape for lesion in drawn) for shape in shapes]
    assert min(counts) > 50 - 4 * (150 * 2 / 9) ** 0.5
    assert all(lesion.mask.all() and lesion.spacing_mm == (2.0, 1.5, 1.0) for lesion in drawn)
    assert shapes[2, 1, 15].case == "long.nii.gz"


def test_masks_are_turned_to_axial(tmp_path):
    mask = np.zeros((9, 4, 20), np.uint8)
    mask[1:8, 1:3, 2:14] = 1
    write_image(tmp_path / "bank" / "one.nrrd", mask, spacing_mm=(2.0, 3.0, 1.0), direction=CORONAL)
    lesion = opened(tmp_path / "bank").draw(np.random.default_rng(0))
    assert lesion.mask.shape == (2, 7, 12)
    assert lesion.spacing_mm == (3.0, 2.0, 1.0)


def test_the_digest_is_of_names_and_contents(folder, tmp_path):
    before = opened(folder)
    copied = tmp_path / "copy"
    copied.mkdir()
    for path in folder.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    assert opened(copied).sha256 == before.sha256
    (copied / "empty.nii.gz").rename(copied / "nothing.nii.gz")
    renamed = opened(copied)
    assert renamed.lesions == before.lesions and renamed.sha256 != before.sha256


def test_files_that_are_no_masks_are_all_named(folder):
    write_image(folder / "ct.nii.gz", np.full((3, 4, 5), -1000, np.int16), spacing_mm=(1, 1, 1))
    (folder / "two.nii.gz").write_bytes((folder / "two.nii.gz").read_bytes()[:-30])
    with pytest.raises(UserError) as caught:
        opened(folder)
    first, *failed, last = str(caught.value).splitlines()
    assert first == f"2 files of the bank {folder} without a valid mask:"
    assert failed[0] == f"  {folder / 'ct.nii.gz'} has negative values or NaN, so it is an image and not a mask"
    assert str(folder / "two.nii.gz") in failed[1]
    assert last == "Repair them or move them elsewhere"


def test_a_bank_without_lesions_or_that_changes_is_refused(folder):
    bank = opened(folder)
    for path in folder.iterdir():
        write_image(path, np.ones((1, 1, 7), np.uint8), spacing_mm=(1, 1, 1))
    with pytest.raises(UserError, match="has changed while it was used"):
        bank.draw(np.random.default_rng(0))
    with pytest.raises(UserError, match="no mask has 8 connected voxels that are not 0"):
        opened(folder)


@pytest.mark.slow
def test_the_command_borrows_from_a_bank_and_no_case_lends(paints, folder, tmp_path, capsys):
    # a file with the name of a case is no case
    (folder / "long.nii.gz").rename(folder / "case_1.nii.gz")
    (folder / "two.nii.gz").unlink()
    dataset, output = write_dataset(), tmp_path / "out"
    assert run(dataset, output, *SIZE, "--shapes", folder, "--no-filter", n=3) == 0
    for case in read_synthetic_cases(output):
        (lesion,) = case.record["lesions"]
        assert (lesion["shape"], lesion["borrowed_from"]) == ("bank", "case_1.nii.gz")
        assert shape_donors(case.record) == []
        assert _origins(case.record) == [(dataset.name, case.record["source_case"])]
        # a rod of 1 : 10, whichever way it lies
        points = np.argwhere(sitk.GetArrayFromImage(sitk.ReadImage(str(case.label))) == 2)[:, ::-1] * (2, 2, 3)
        points = points[np.linalg.norm(points - (np.array(lesion["centre_voxel"]) * (3, 2, 2))[::-1], axis=1) < 30]
        spread = np.linalg.eigvalsh(np.cov(points.T))
        assert spread[2] > 8 * spread[1]
    before = files_of(output)
    assert run(dataset, output, *SIZE, "--shapes", folder, "--no-filter", n=3) == 0
    assert files_of(output) == before
    write_image(folder / "more.nii.gz", np.ones((2, 3, 4), np.uint8), spacing_mm=(1, 1, 1))
    capsys.readouterr()
    assert run(dataset, output, *SIZE, "--shapes", folder, "--no-filter", n=3) == 1
    assert "shape_bank" in capsys.readouterr().err


@pytest.mark.slow
def test_a_bank_can_be_mixed_with_ellipsoids_and_needs_no_real_lesion(paints, folder, tmp_path):
    dataset = write_dataset(cases=1, lesion=False)
    options = [*SIZE, "--shapes", folder, "--borrowed-share", "0.5"]
    assert run(dataset, tmp_path / "out", *options, n=8) == 0
    lesions = [case.record["lesions"][0] for case in read_synthetic_cases(tmp_path / "out")]
    assert {lesion["shape"] for lesion in lesions} == {"bank", "ellipsoid"}
    assert all((lesion["borrowed_from"] is None) == (lesion["shape"] == "ellipsoid") for lesion in lesions)


def test_donors_of_a_record():
    lesions = [
        {"shape": "ellipsoid", "borrowed_from": None},
        {"shape": "borrowed", "borrowed_from": "case_2"},
        {"shape": "borrowed", "borrowed_from": "case_1"},
        {"shape": "bank", "borrowed_from": "case_0"},
        {"borrowed_from": "case_2"},
        {},
    ]
    assert shape_donors({"lesions": lesions}) == ["case_1", "case_2"]
