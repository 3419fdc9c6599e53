"""Organ masks from labels, folders and thresholds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from synthesis_for_tests import image_file, phantom_dataset, read

from fvae_nnunet.errors import UserError
from fvae_nnunet.synthesis.sources.dataset import open_source_dataset
from fvae_nnunet.synthesis.sources.organs import OrganSource, body, lungs

SPACING_MM = (3.0, 1.5, 1.5)
LABELS = {"liver": (1,), "vessel": (2,), "tumour": (3,)}


def ellipsoid(shape, centre, radii):
    grid = np.ogrid[tuple(slice(n) for n in shape)]
    return sum(((axis - c) / r) ** 2 for axis, c, r in zip(grid, centre, radii)) <= 1


@pytest.fixture(scope="module")
def chest():
    """A body with two lungs, a nodule within one and one at the pleura of the other, bowel gas, and a hollow table."""
    shape = (24, 110, 120)
    hu = np.full(shape, -1000, np.int16)
    skin = np.broadcast_to(ellipsoid(shape, (12, 50, 60), (1e3, 40, 50)), shape)
    hu[skin] = 40
    hu[:, 100:106] = 100
    hu[:, 102:104, 5:115] = -1000
    parts = [ellipsoid(shape, (12, 48, x), (9, 25, 14)) for x in (38, 82)]
    for part in parts:
        hu[part] = -850
    inner = ellipsoid(shape, (12, 48, 38), (2, 4, 4))
    pleural = ellipsoid(shape, (12, 48, 82), (9, 25, 14)) & ellipsoid(shape, (12, 48, 96), (1.5, 2, 4))
    hu[inner | pleural] = 40
    hu[ellipsoid(shape, (12, 80, 60), (2, 3, 3))] = -900
    return hu, skin, parts, inner, pleural


def test_lungs_hold_nodules_and_nothing_else(chest):
    hu, _, parts, inner, pleural = chest
    found = lungs(hu, spacing_mm=SPACING_MM)
    truth = parts[0] | parts[1]
    # closing rounds off the corner between a nodule and the pleura
    assert found[inner].all() and found[pleural].mean() > 0.5
    assert (found & ~truth).sum() < 0.02 * truth.sum() and (found & truth).sum() > 0.99 * truth.sum()
    assert not found[:, 95:].any(), "the table is no lung"


def test_one_lung_alone_is_found_and_none_is_empty(chest):
    hu, skin, parts, _, _ = chest
    single = np.where(parts[1], 40, hu).astype(np.int16)
    found = lungs(single, spacing_mm=SPACING_MM)
    assert (found & parts[0]).sum() > 0.99 * parts[0].sum() and not found[:, :, 75:].any()
    assert not lungs(np.where(skin, 40, -1000).astype(np.int16), spacing_mm=SPACING_MM).any()
    assert not lungs(np.full((3, 4, 5), -1000, np.int16), spacing_mm=SPACING_MM).any()


def test_the_body_is_whole_without_the_table(chest):
    hu, skin, _, _, _ = chest
    assert (body(hu) == skin).all()


def test_lungs_of_a_phantom_are_the_phantoms_lungs():
    from phantoms import Torso

    torso = Torso(np.random.default_rng(3), (24, 64, 64), (4.0, 4.0, 4.0))
    torso.add_body()
    torso.add_lungs(whole_length=True)
    found = lungs(torso.scanned(), spacing_mm=(4.0, 4.0, 4.0))
    dice = 2 * (found & torso.lungs).sum() / (found.sum() + torso.lungs.sum())
    assert dice > 0.95


def test_the_default_is_all_labels_but_the_lesion():
    source = OrganSource.parse(None, label_values=LABELS, lesion_names=["tumour"], cases=[], raw_folder=Path())
    assert source.text == "label:liver,vessel" and source.values == (1, 2)
    again = OrganSource.parse(source.text, label_values=LABELS, lesion_names=["tumour"], cases=[], raw_folder=Path())
    assert again == source


def test_a_dataset_without_organ_asks_for_one():
    with pytest.raises(UserError, match="`organ='lungs'`"):
        OrganSource.parse(None, label_values={"tumour": (1,)}, lesion_names=["tumour"], cases=[], raw_folder=Path())


@pytest.mark.parametrize("text", ["label:", "label:tumour", "label:spleen", "kidney", "folder:", ""])
def test_what_is_no_organ_is_refused(text):
    with pytest.raises(UserError, match="`organ="):
        OrganSource.parse(text, label_values=LABELS, lesion_names=["tumour"], cases=[], raw_folder=Path())


@pytest.fixture
def masked(tmp_path):
    """A dataset of lungs and a folder of masks with the values 10 and 11 in the two halves of an image."""
    dataset = phantom_dataset("lung", cases=2)
    for case in ("phantom_000", "phantom_001"):
        image = sitk.ReadImage(str(image_file(dataset, case)))
        mask = np.zeros(image.GetSize()[::-1], np.uint8)
        mask[:, :, :10], mask[:, :, 20:] = 10, 11
        organ = sitk.GetImageFromArray(mask)
        organ.CopyInformation(image)
        sitk.WriteImage(organ, str(tmp_path / f"{case}.nii.gz"))
    return dataset, tmp_path


@pytest.mark.slow
def test_masks_of_a_folder_by_value(masked):
    dataset, folder = masked
    source = open_source_dataset(dataset.name, organ=f"folder:{folder}")
    case = source.read("phantom_000")
    assert (case.organ == ((read(folder / "phantom_000.nii.gz") > 0) | case.lesion)).all()
    assert "organ phantom_000.nii.gz" in case.digests and source.organ.recorded == "folder:"
    source = open_source_dataset(dataset.name, organ=f"folder:{folder}:11,12")
    case = source.read("phantom_000")
    assert (case.organ == ((read(folder / "phantom_000.nii.gz") == 11) | case.lesion)).all()
    assert source.organ.recorded == "folder::11,12"
    assert open_source_dataset(dataset.name, organ=source.organ.text).organ == source.organ


def test_a_mask_that_lies_elsewhere_is_refused(masked):
    dataset, folder = masked
    image = sitk.ReadImage(str(folder / "phantom_001.nii.gz"))
    image.SetOrigin([0.0, 0.0, 5.0])
    sitk.WriteImage(image, str(folder / "phantom_001.nii.gz"))
    source = open_source_dataset(dataset.name, organ=f"folder:{folder}")
    source.read("phantom_000")
    with pytest.raises(UserError, match=r"the image of phantom_001 and .* differ in origin"):
        source.read("phantom_001")


def test_a_missing_mask_is_named(masked):
    dataset, folder = masked
    (folder / "phantom_001.nii.gz").unlink()
    with pytest.raises(UserError, match=r"no mask for 1 case \(first: phantom_001\)"):
        open_source_dataset(dataset.name, organ=f"folder:{folder}")


def test_lungs_that_are_not_there_are_an_empty_organ():
    dataset = phantom_dataset("lung", cases=1)
    path = image_file(dataset, "phantom_000")
    image = sitk.GetImageFromArray(np.full(read(path).shape, 40, np.int16))
    image.CopyInformation(sitk.ReadImage(str(path)))
    sitk.WriteImage(image, str(path))
    label = sitk.GetImageFromArray(np.zeros(read(path).shape, np.uint8))
    label.CopyInformation(image)
    sitk.WriteImage(label, str(dataset.raw / "labelsTr" / "phantom_000.nii.gz"))
    with pytest.raises(UserError, match=r"the organ \(lungs\) has no voxel"):
        open_source_dataset(dataset.name, organ="lungs").read("phantom_000")
