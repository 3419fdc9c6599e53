import nibabel
import numpy as np
import pytest
from conversion_for_tests import SHAPE, grounding_entry, write_grounding, write_json

from fvae_nnunet.conversion.ct_rate import VolumeName
from fvae_nnunet.conversion.rexgroundingct import (
    CATEGORIES,
    LABELS,
    Finding,
    GroundedCase,
    find_mask,
    read_cases,
    read_disease_map,
)
from fvae_nnunet.errors import UserError

NAME = "train_1_a_1.nii.gz"
VOLUME = VolumeName.parse(NAME)


def _box(z, y, x):
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[z, y, x] = 1
    return mask


LARGE = _box(slice(0, 4), slice(2, 12), slice(3, 9))
SMALL = _box(slice(1, 3), slice(4, 6), slice(5, 8))
FINDINGS = [("A consolidation", "2b", LARGE), ("A nodule", "2d", SMALL)]


def _case(findings=FINDINGS):
    return GroundedCase(
        "train", tuple(Finding(text, category, int((mask > 0).sum())) for text, category, mask in findings)
    )


def test_classes_are_the_14_categories_of_lung_and_pleura_in_the_order_of_their_codes():
    assert list(CATEGORIES) == [*(f"1{letter}" for letter in "abcdef"), *(f"2{letter}" for letter in "abcdefgh")]
    assert sorted(LABELS.values()) == list(range(1, 15))
    assert LABELS["bronchial_wall_thickening"] == 1
    assert LABELS["nodule_mass"] == 10
    assert LABELS["other_focal"] == 14


def test_the_published_entries_are_read(tmp_path):
    content = {
        "train": [grounding_entry(NAME, FINDINGS)],
        "val": [grounding_entry("train_2_b_2.nii.gz", FINDINGS[1:])],
        "test": [{"name": "train_3_a_1.nii.gz", "findings": {"0": "Honeycombing"}, "categories": {"0": "2f"}}],
    }
    table = read_cases(write_json(tmp_path / "dataset.json", content))
    assert not table.wrong and not table.unassigned_rows
    assert table.rows[VOLUME] == GroundedCase(
        "train", (Finding("A consolidation", "2b", 240), Finding("A nodule", "2d", 12))
    )
    assert table.rows[VolumeName("train", 2, "b", 2)].split == "val"
    assert len(table.rows) == 2 and table.withheld == 1
    assert table.published == {VOLUME: {"train"}, VolumeName("train", 2, "b", 2): {"val"}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"categories": {"0": "2b"}}, "finding 1 has the category None"),
        ({"categories": {"0": "2b", "1": "8a"}}, "finding 1 has the category '8a'; the categories are 1a, "),
        ({"findings": {"0": "x", "2": "y"}}, "must be numbered 0 to 1, got 0, 2"),
        ({"pixels": {"0": -1}}, "finding 0: pixels must be a whole number"),
        ({"findings": ["x"]}, "must be objects"),
    ],
)
def test_wrong_entries_are_named_and_the_others_read(tmp_path, changes, message):
    entries = [grounding_entry(NAME, FINDINGS) | changes, grounding_entry("train_2_a_1.nii.gz", FINDINGS)]
    table = read_cases(write_json(tmp_path / "dataset.json", {"train": entries}))
    assert message in table.wrong[VOLUME] and "dataset.json, train 0: train_1_a_1: " in table.wrong[VOLUME]
    assert list(table.rows) == [VolumeName("train", 2, "a", 1)]


def test_a_volume_in_two_lists_and_an_entry_without_a_name_are_named(tmp_path):
    content = {"train": [grounding_entry(NAME, FINDINGS), {"findings": {}}], "val": [grounding_entry(NAME, FINDINGS)]}
    table = read_cases(write_json(tmp_path / "dataset.json", content))
    assert table.wrong == {VOLUME: "dataset.json, val 0: train_1_a_1 has two entries"}
    assert not table.rows
    assert table.unassigned_rows == ["dataset.json, train 1: does not name a volume"]


def test_of_the_withheld_entries_only_volumes_that_are_listed_elsewhere_matter(tmp_path):
    content = {"train": [grounding_entry(NAME, FINDINGS)], "test": [{"name": NAME}, {"name": "x"}, None]}
    table = read_cases(write_json(tmp_path / "dataset.json", content))
    assert table.wrong == {VOLUME: "dataset.json, test 0: train_1_a_1 has two entries"}
    assert not table.rows and not table.unassigned_rows and table.withheld == 3
    assert table.published == {VOLUME: {"train"}}


def test_training_cases_of_patients_in_val_are_known_though_entries_are_wrong(tmp_path):
    names = {"train": ["train_1_a_1", "train_2_a_1", "train_3_a_1"], "val": ["train_1_b_1", "train_2_b_1"]}
    content = {split: [grounding_entry(f"{n}.nii.gz", FINDINGS) for n in of_split] for split, of_split in names.items()}
    content["train"][0]["categories"] = content["val"][1]["categories"] = {}
    table = read_cases(write_json(tmp_path / "dataset.json", content))
    assert {volume.case for volume in table.wrong} == {"train_1_a_1", "train_2_b_1"}
    assert {volume.case for volume in table.in_training_and_val} == {"train_1_a_1", "train_2_a_1"}


def test_another_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="no lists train, val or test"):
        read_cases(write_json(tmp_path / "dataset.json", {"train": [], "val": None}))
    with pytest.raises(UserError, match="no lists train, val or test"):
        read_cases(write_json(tmp_path / "dataset.json", {"labels": {}}))
    with pytest.raises(UserError, match="is not a file"):
        read_cases(tmp_path / "none.json")


def test_each_finding_becomes_its_class_in_the_images_own_axes(tmp_path):
    write_grounding(tmp_path, NAME, [LARGE, SMALL])
    found = read_disease_map(find_mask(tmp_path, VOLUME), _case(), SHAPE)
    expected = np.where(SMALL > 0, LABELS["nodule_mass"], np.where(LARGE > 0, LABELS["atelectasis_consolidation"], 0))
    assert found.labels.dtype == np.uint8
    np.testing.assert_array_equal(found.labels, expected)
    assert [(mask.label, mask.name, mask.text, mask.voxels) for mask in found.masks] == [
        (8, "atelectasis_consolidation", "A consolidation", 240),
        (10, "nodule_mass", "A nodule", 12),
    ]
    assert found.overlap_voxels == 12


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_the_smaller_finding_is_on_top_in_whatever_order(tmp_path, order):
    findings = [FINDINGS[index] for index in order]
    write_grounding(tmp_path, NAME, [mask for _, _, mask in findings])
    found = read_disease_map(find_mask(tmp_path, VOLUME), _case(findings), SHAPE)
    assert found.labels[1, 4, 5] == LABELS["nodule_mass"]


def test_of_findings_of_one_size_the_first_is_on_top(tmp_path):
    findings = [("a", "1c", SMALL), ("b", "2c", SMALL)]
    write_grounding(tmp_path, NAME, [SMALL, SMALL])
    found = read_disease_map(find_mask(tmp_path, VOLUME), _case(findings), SHAPE)
    assert set(np.unique(found.labels)) == {0, LABELS["emphysema"]}


def test_pieces_of_a_finding_are_one_class(tmp_path):
    pieces = SMALL + 2 * _box(slice(5, 6), slice(15, 17), slice(20, 22))
    write_grounding(tmp_path, NAME, [pieces])
    found = read_disease_map(find_mask(tmp_path, VOLUME), _case([("two nodules", "1e", pieces)]), SHAPE)
    assert found.masks[0].voxels == 12 + 4
    assert set(np.unique(found.labels)) == {0, LABELS["micronodules"]}


@pytest.mark.parametrize("form", ["findings last", "3-dimensional"])
def test_other_forms_of_the_mask_are_understood(tmp_path, form):
    findings = FINDINGS if form == "findings last" else FINDINGS[:1]
    stored = np.stack([mask.T for _, _, mask in findings], axis=-1)
    path = tmp_path / "mask.nii.gz"
    nibabel.save(nibabel.Nifti1Image(stored if form == "findings last" else stored[..., 0], np.eye(4)), path)
    found = read_disease_map(path, _case(findings), SHAPE)
    assert found.labels[0, 2, 3] == LABELS["atelectasis_consolidation"]
    assert (found.labels > 0).sum() == 240


@pytest.mark.parametrize("wrong", ["axes of space swapped", "a finding more", "a finding less"])
def test_a_mask_of_another_shape_is_refused(tmp_path, wrong):
    masks = [LARGE, SMALL] if wrong != "a finding less" else [LARGE]
    masks += [SMALL] if wrong == "a finding more" else []
    masks = [mask.transpose(0, 2, 1) for mask in masks] if wrong == "axes of space swapped" else masks
    write_grounding(tmp_path, NAME, masks)
    with pytest.raises(UserError, match=r"and 2 findings, so it must be \(2, 24, 20, 6\)"):
        read_disease_map(find_mask(tmp_path, VOLUME), _case(), SHAPE)


def test_masks_in_another_order_than_their_entries_are_refused(tmp_path):
    write_grounding(tmp_path, NAME, [SMALL, LARGE])
    with pytest.raises(UserError, match="mask of finding 0 has 12 voxels, its entry says 240"):
        read_disease_map(find_mask(tmp_path, VOLUME), _case(), SHAPE)


def test_a_missing_and_a_damaged_mask_are_named(tmp_path):
    with pytest.raises(UserError, match="has no mask train_1_a_1"):
        find_mask(tmp_path, VOLUME)
    write_grounding(tmp_path, NAME, [LARGE, SMALL])
    path = find_mask(tmp_path, VOLUME)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"cannot be read|truncated"):
        read_disease_map(path, _case(), SHAPE)
