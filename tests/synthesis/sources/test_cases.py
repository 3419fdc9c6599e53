"""Raw cases as synthesis reads them: axes, classes, folds, and what is refused."""

from __future__ import annotations

import hashlib
import json
import pickle

import numpy as np
import pytest
import SimpleITK as sitk
from synthesis_for_tests import (
    SHAPE,
    SPACING_MM,
    edit_dataset_json,
    image_file,
    label_file,
    phantom_dataset,
    read,
    rewrite,
)

from fvae_nnunet.errors import UserError
from fvae_nnunet.synthesis.sources.dataset import open_source_dataset


@pytest.fixture(scope="module")
def pancreas():
    """Not to be changed."""
    return phantom_dataset(cases=6)


def test_a_case_holds_what_the_files_hold(pancreas):
    source = open_source_dataset(pancreas.name)
    case = source.read("phantom_001")
    labels = read(label_file(pancreas, "phantom_001"))
    assert (case.volume_hu == read(image_file(pancreas, "phantom_001"))).all() and case.volume_hu.dtype == np.int16
    assert (case.labels == labels).all() and case.volume_hu.shape == SHAPE
    assert case.spacing_mm == SPACING_MM and case.geometry.axial_order == (0, 1, 2)
    assert (case.lesion == (labels == 2)).all() and (case.organ == (labels > 0)).all()
    assert case.class_map.dtype == np.uint8 and (case.class_map == labels).all()
    assert source.class_names == ("organ", "tumour") and source.lesion_value == 2 and source.ct_channel == 0
    assert source.organ.text == "label:pancreas"


def test_digests_are_those_of_the_files(pancreas):
    digests = open_source_dataset(pancreas.name).read("phantom_000").digests
    files = {"image": image_file(pancreas, "phantom_000"), "label": label_file(pancreas, "phantom_000")}
    assert digests == {f"{role} {p.name}": hashlib.sha256(p.read_bytes()).hexdigest() for role, p in files.items()}


def test_the_dataset_goes_to_other_processes(pancreas):
    source = open_source_dataset(pancreas.name)
    assert pickle.loads(pickle.dumps(source)) == source


@pytest.mark.slow
def test_a_file_whose_first_axis_is_not_the_body_axis_is_read_axially():
    dataset = phantom_dataset(cases=1)
    volume, labels = (read(path(dataset, "phantom_000")) for path in (image_file, label_file))
    # the array's axes become (left-right, body, front-back), so the image's (x, y, z) are front-back, body, left-right
    order = (2, 0, 1)
    for path, array in ((image_file, volume), (label_file, labels)):
        image = sitk.GetImageFromArray(array.transpose(order))
        image.SetSpacing([SPACING_MM[axis] for axis in order][::-1])
        image.SetDirection((0, 0, 1, 1, 0, 0, 0, 1, 0))
        sitk.WriteImage(image, str(path(dataset, "phantom_000")))
    case = open_source_dataset(dataset.name).read("phantom_000")
    assert case.volume_hu.shape == SHAPE and (case.volume_hu == volume).all() and (case.labels == labels).all()
    assert case.spacing_mm == pytest.approx(SPACING_MM)
    assert (case.geometry.as_in_file(case.volume_hu) == volume.transpose(order)).all()
    size, spacing_mm = open_source_dataset(dataset.name).read_size("phantom_000")
    assert size == SHAPE and spacing_mm == pytest.approx(SPACING_MM)


def test_without_an_organ_the_lesion_is_the_only_class(pancreas):
    source = open_source_dataset(pancreas.name, organ="none")
    case = source.read("phantom_000")
    assert source.class_names == ("tumour",) and not case.organ.any()
    assert (case.class_map == case.lesion).all() and case.lesion.any()


@pytest.mark.parametrize(("organ", "values"), [("label:pancreas", [1]), (None, [1, 2])])
def test_without_lesions_an_organ_that_is_a_label_is_read(pancreas, organ, values):
    source = open_source_dataset(pancreas.name, organ=organ, lesions=["none"])
    case = source.read("phantom_000")
    expected = np.isin(read(label_file(pancreas, "phantom_000")), values)
    assert (case.class_map == expected).all() and (case.organ == expected).all() and not case.lesion.any()
    assert sorted(case.digests) == ["image phantom_000_0000.nii.gz", "label phantom_000.nii.gz"]


def test_without_lesions_segmentations_are_needed_only_for_the_organ():
    dataset = phantom_dataset(cases=2)
    label_file(dataset, "phantom_001").unlink()
    assert not open_source_dataset(dataset.name, organ="body", lesions=["none"]).read("phantom_001").labels.any()
    with pytest.raises(UserError, match="and an `organ` that is no label"):
        open_source_dataset(dataset.name, organ="label:pancreas", lesions=["none"])


def test_a_lesion_outside_the_organ_mask_belongs_to_the_organ():
    dataset = phantom_dataset("lung", cases=1)
    case = open_source_dataset(dataset.name, organ="lungs").read("phantom_000")
    assert case.organ[case.lesion].all() and (case.class_map[case.lesion] == 2).all()
    assert (case.class_map[case.organ & ~case.lesion] == 1).all()


@pytest.mark.slow
def test_a_fold_is_that_of_nnunet(pancreas):
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    everything = open_source_dataset(pancreas.name).cases
    expected = generate_crossval_split(everything, seed=12345, n_splits=5)[2]["train"]
    assert open_source_dataset(pancreas.name, fold=2).cases == sorted(expected)
    splits = pancreas.preprocessed / "splits_final.json"
    splits.write_text(json.dumps([{"train": ["phantom_004", "phantom_001"], "val": ["phantom_000"]}]))
    try:
        assert open_source_dataset(pancreas.name, fold=0).cases == ["phantom_001", "phantom_004"]
        with pytest.raises(UserError, match="has folds 0 to 0"):
            open_source_dataset(pancreas.name, fold=1)
    finally:
        splits.unlink()


def test_cases_can_be_left_out(pancreas):
    source = open_source_dataset(pancreas.name)
    assert source.without(["phantom_003"]).cases == [case for case in source.cases if case != "phantom_003"]
    with pytest.raises(UserError, match="no training case 'phantom_9'"):
        source.without(["phantom_9"])


def test_a_missing_segmentation_is_named():
    dataset = phantom_dataset(cases=2)
    label_file(dataset, "phantom_001").unlink()
    with pytest.raises(UserError, match=r"1 of 2 cases .*phantom_001\.nii\.gz"):
        open_source_dataset(dataset.name)


def test_a_label_that_dataset_json_does_not_declare_is_refused():
    dataset = phantom_dataset(cases=1)
    labels = read(label_file(dataset, "phantom_000"))
    labels[0, 0, 0] = 7
    rewrite(label_file(dataset, "phantom_000"), labels)
    with pytest.raises(UserError, match=r"phantom_000\.nii\.gz has the labels 7, .*it has 0, 1, 2"):
        open_source_dataset(dataset.name).read("phantom_000")


def test_image_and_segmentation_of_different_shapes_are_refused():
    dataset = phantom_dataset(cases=1)
    rewrite(label_file(dataset, "phantom_000"), read(label_file(dataset, "phantom_000"))[1:])
    with pytest.raises(UserError, match=r"\(20, 32, 32\) voxels .* \(19, 32, 32\)"):
        open_source_dataset(dataset.name).read("phantom_000")


def test_values_that_are_not_finite_are_refused():
    # of NIfTI files SimpleITK reads 0 where they hold NaN
    dataset = phantom_dataset(cases=1, file_ending=".nrrd")
    path = dataset.raw / "imagesTr" / "phantom_000_0000.nrrd"
    volume = read(path).astype(np.float32)
    volume[3, 4, 5] = np.nan
    rewrite(path, volume)
    with pytest.raises(UserError, match=r"phantom_000_0000\.nrrd.*not finite"):
        open_source_dataset(dataset.name).read("phantom_000")


def test_an_empty_organ_is_refused_and_named():
    dataset = phantom_dataset(cases=1)
    rewrite(label_file(dataset, "phantom_000"), np.zeros(SHAPE, np.uint8))
    with pytest.raises(
        UserError,
        match=r"phantom_000: the organ \(label:pancreas\) has no voxel.*\(`leave_out`; in a list: its rows\)",
    ):
        open_source_dataset(dataset.name).read("phantom_000")


def test_several_ct_channels_are_refused():
    dataset = phantom_dataset(cases=1)
    edit_dataset_json(dataset, channel_names={"0": "CT", "1": "CT"})
    with pytest.raises(UserError, match="2 CT channels"):
        open_source_dataset(dataset.name)


def test_another_channel_beside_ct_is_left_alone():
    dataset = phantom_dataset(cases=1)
    edit_dataset_json(dataset, channel_names={"0": "PET", "1": "CT"})
    image_file(dataset, "phantom_000", 1).write_bytes(image_file(dataset, "phantom_000").read_bytes())
    source = open_source_dataset(dataset.name)
    assert source.ct_channel == 1 and len(source.image_files["phantom_000"]) == 2
    assert "image phantom_000_0001.nii.gz" in source.read("phantom_000").digests


@pytest.mark.parametrize(
    ("labels", "lesion", "message"),
    [
        ({"background": 0, "tumour": 1, "nodule": 2}, None, r"several labels could be the lesion \(tumour, nodule\)"),
        ({"background": 0, "liver": 1, "spleen": 2}, None, "no label is named like a lesion"),
        ({"background": 0, "liver": 1, "tumour": 2}, "cyst", "no label 'cyst'"),
    ],
)
def test_the_lesion_must_be_clear(labels, lesion, message):
    dataset = phantom_dataset(cases=1)
    edit_dataset_json(dataset, labels=labels)
    with pytest.raises(UserError, match=message):
        open_source_dataset(dataset.name, lesions=lesion and [lesion])


def test_a_region_of_several_values_is_no_lesion():
    dataset = phantom_dataset(cases=1)
    edit_dataset_json(dataset, labels={"background": 0, "tumour": [1, 2], "core": [2]}, regions_class_order=[1, 2])
    with pytest.raises(UserError, match="region of 2 values"):
        open_source_dataset(dataset.name)
    # the core is one value, and the organ what of the other regions is not core
    source = open_source_dataset(dataset.name, lesions=["core"])
    assert source.lesion_value == 2 and source.organ.values == (1,)
