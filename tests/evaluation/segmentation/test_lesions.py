"""Lesions one by one, on masks made by hand and against plain loops."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from segmentations_for_tests import PLAIN, Folders, ellipsoid, write

from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.segmentation.lesion_summary import summarise_lesions
from fvae_nnunet.evaluation.segmentation.lesions import (
    CaseLesions,
    LesionRule,
    choose_lesion_labels,
    match_lesions,
    size_class,
)

UNIT = (1.0, 1.0, 1.0)


def row(text: str) -> np.ndarray:
    """A mask of one line of voxels."""
    return np.array([[[letter == "#" for letter in text]]])


def match(reference, prediction, spacing_mm=UNIT, detection_overlap=0.1) -> CaseLesions:
    return match_lesions(reference, prediction, spacing_mm=spacing_mm, detection_overlap=detection_overlap)


def diameter_mm(voxels: int, spacing_mm=UNIT) -> float:
    return (6 * voxels * math.prod(spacing_mm) / math.pi) ** (1 / 3)


def test_a_tenth_of_the_voxels_detects_a_lesion_and_less_does_not():
    one_of_ten = match(row("##########.."), row("#..........."))
    assert one_of_ten.detected == (True,) and one_of_ten.overlaps == (0.1,)
    assert one_of_ten.dice == pytest.approx((2 * 1 / (10 + 1),))
    one_of_eleven = match(row("###########."), row("#..........."))
    assert one_of_eleven.detected == (False,) and one_of_eleven.overlaps == pytest.approx((1 / 11,))
    assert math.isnan(one_of_eleven.dice[0])


def test_what_grazes_a_lesion_is_neither_detection_nor_false_positive():
    found = match(row("###########....."), row("..........######"))
    assert found.detected == (False,) and found.false_positive_diameters_mm == ()


@pytest.mark.parametrize("overlap, detected", [(0.3, True), (0.31, False), (1.0, False)])
def test_the_overlap_of_a_detection_can_be_chosen(overlap, detected):
    assert match(row("##########"), row("#######...")[..., ::-1], detection_overlap=overlap).overlaps == (0.7,)
    assert match(row("##########"), row("###......."), detection_overlap=overlap).detected == (detected,)


def test_a_predicted_component_beside_a_lesion_is_a_false_positive_of_its_own_size():
    found = match(row("####......"), row("....##.###"), spacing_mm=(3, 2, 5))
    assert found.detected == (False,) and found.overlaps == (0.0,)
    assert found.diameters_mm == pytest.approx((diameter_mm(4, (3, 2, 5)),))
    assert found.false_positive_diameters_mm == pytest.approx((diameter_mm(2, (3, 2, 5)), diameter_mm(3, (3, 2, 5))))


def test_a_split_prediction_detects_once_with_both_parts():
    found = match(row("####################.."), row("#..................###"), detection_overlap=0.1)
    assert found.detected == (True,) and found.overlaps == (0.1,)
    assert found.dice == pytest.approx((2 * 2 / (20 + 1 + 3),)) and found.false_positive_diameters_mm == ()


def test_a_merged_prediction_detects_both_lesions_and_is_too_large_for_each():
    found = match(row("####..##...."), row("########...."))
    assert found.detected == (True, True) and found.overlaps == (1.0, 1.0)
    assert found.dice == pytest.approx((2 * 4 / (4 + 8), 2 * 2 / (2 + 8)))
    assert found.false_positive_diameters_mm == ()


def test_voxels_that_share_a_corner_are_one_lesion():
    mask = np.zeros((3, 3, 3), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[2, 2, 2] = True
    assert match(mask, mask).diameters_mm == pytest.approx((diameter_mm(3),))
    mask[1, 1, 1] = False
    assert len(match(mask, mask).diameters_mm) == 2


def test_lesions_that_touch_are_one():
    shape = (20, 20, 40)
    apart = ellipsoid((10, 10, 8), (5, 5, 5), shape), ellipsoid((10, 10, 30), (5, 5, 5), shape)
    touching = ellipsoid((10, 10, 8), (5, 5, 5), shape), ellipsoid((10, 10, 19), (5, 5, 5), shape)
    prediction = apart[0]
    assert match(apart[0] | apart[1], prediction).detected == (True, False)
    together = match(touching[0] | touching[1], prediction)
    assert together.detected == (True,) and together.overlaps == (0.5,)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (2.5, 0.8, 0.7)])
@pytest.mark.parametrize("radius_mm", [4.0, 7.5, 15.0])
def test_the_diameter_of_a_ball_is_its_own_whatever_the_spacing(radius_mm, spacing_mm):
    shape = [int(2 * radius_mm / edge_mm) + 4 for edge_mm in spacing_mm]
    centre, radii = [size / 2 for size in shape], [radius_mm / edge_mm for edge_mm in spacing_mm]
    ball = ellipsoid(centre, radii, shape)
    (found_mm,) = match(ball, ball, spacing_mm=spacing_mm).diameters_mm
    # slices of 2.5 mm miss 6 % of the volume of a ball of 8 mm, and a third of that of its diameter
    assert found_mm == pytest.approx(2 * radius_mm, rel=0.025)


def test_classes_of_size():
    classes = [size_class(mm) for mm in (0.1, 9.999, 10, 15, 20, 20.001, 300)]
    assert classes == ["below_10mm"] * 2 + ["10_to_20mm"] * 3 + ["above_20mm"] * 2


def test_empty_masks():
    nothing, something = row("......"), row(".##.#.")
    assert match(nothing, nothing) == CaseLesions((), (), (), (), ())
    assert match(something, nothing).detected == (False, False)
    only_false = match(nothing, something)
    assert only_false.detected == () and len(only_false.false_positive_diameters_mm) == 2


@pytest.mark.parametrize("seed", range(4))
def test_matching_equals_plain_loops(seed):
    from skimage.measure import label

    rng = np.random.default_rng(seed)
    reference, prediction = (rng.random((9, 11, 13)) < share for share in (0.05, 0.06))
    prediction |= reference & (rng.random(reference.shape) < 0.4)
    spacing_mm, overlap = (2.0, 1.5, 0.5), 0.4
    true, predicted = label(reference, connectivity=3), label(prediction, connectivity=3)
    lesions = []
    for number in range(1, true.max() + 1):
        lesion = true == number
        share = (lesion & prediction).sum() / lesion.sum()
        partners = np.isin(predicted, [n for n in np.unique(predicted[lesion]) if n])
        dice = 2 * (lesion & partners).sum() / (lesion.sum() + partners.sum())
        lesions.append((diameter_mm(lesion.sum(), spacing_mm), share, dice if share >= overlap else -1))
    false_mm = [
        diameter_mm((predicted == number).sum(), spacing_mm)
        for number in range(1, predicted.max() + 1)
        if not (reference & (predicted == number)).any()
    ]
    found = match(reference, prediction, spacing_mm, overlap)
    assert len(lesions) > 10 and 0 < sum(found.detected) < len(lesions) and false_mm
    dice = np.nan_to_num(found.dice, nan=-1)
    assert [value > 0 for value in dice] == list(found.detected)
    in_order = np.round(np.transpose([found.diameters_mm, found.overlaps, dice]), 9)
    np.testing.assert_allclose(sorted(in_order.tolist()), sorted(np.round(lesions, 9).tolist()), rtol=0, atol=1e-8)
    np.testing.assert_allclose(sorted(found.false_positive_diameters_mm), sorted(false_mm), rtol=1e-9)


def test_summary_by_hand():
    cases = [
        CaseLesions((5.0, 15.0, 25.0), (1, 0.5, 0), (True, True, False), (0.8, 0.4, math.nan), (3.0, 12.0)),
        CaseLesions((8.0,), (0.0,), (False,), (math.nan,), ()),
        CaseLesions((), (), (), (), (4.0,)),
    ]
    summary = summarise_lesions(cases)
    assert summary["all"] == pytest.approx(
        {
            "lesions": 4, "detected": 2, "detection_rate": 0.5, "false_positives": 3, "false_positives_per_case": 1,
            "dice_of_detected": 0.6,
        }
    )  # fmt: skip
    small, large = summary["below_10mm"], summary["above_20mm"]
    assert (small["lesions"], small["detected"], small["detection_rate"], small["false_positives"]) == (2, 1, 0.5, 2)
    assert large["detection_rate"] == 0 and math.isnan(large["dice_of_detected"])
    assert sum(summary[size]["false_positives"] for size in list(summary)[1:]) == 3
    assert math.isnan(summarise_lesions(cases[2:])["all"]["detection_rate"])


@pytest.mark.parametrize(
    "names, wanted, chosen",
    [
        ({1: "pancreas", 2: "tumour"}, None, (2,)),
        ({1: "liver", 2: "Tumor core", (1, 2): "whole_LESION", 3: "lung cancer", 4: "Metastases"}, None,
         (2, (1, 2), 3, 4)),
        ({1: "nodules"}, None, (1,)),
        ({1: "spleen"}, None, (1,)),
        ({1: "liver", 2: "spleen"}, None, ()),
        ({1: "pancreas", 2: "tumour"}, ["pancreas"], (1,)),
        ({1: "pancreas", 2: "tumour"}, [], ()),
    ],
)  # fmt: skip
def test_labels_with_lesions_are_known_by_name_or_chosen(names, wanted, chosen):
    assert choose_lesion_labels(names, wanted) == chosen


def test_impossible_choices_are_refused():
    with pytest.raises(UserError, match=r"no label is named cyst; dataset\.json has pancreas, tumour"):
        choose_lesion_labels({1: "pancreas", 2: "tumour"}, ["cyst", "tumour"])
    for overlap in (0, -0.1, 1.1, math.nan):
        with pytest.raises(UserError, match="`detection_overlap` must be above 0 and at most 1"):
            LesionRule((1,), overlap)


# The command

IGNORE = {"labels": PLAIN["labels"] | {"ignore": 3}}


def lesion_folders(root, dataset) -> Folders:
    """Of case 0 a lesion of 8 voxels is found and one of 2 is not; of case 1 one is invented."""
    folders = Folders(root, dataset)
    for number in (2, 3):
        for folder in (folders.references, folders.predictions):
            (folder / f"case_{number}.nii.gz").unlink()
    reference, prediction = np.zeros((2, 8, 8, 8), np.uint8), np.zeros((2, 8, 8, 8), np.uint8)
    reference[0, :2, :2, :2], reference[0, 5, 5, 5:7] = 2, 2
    prediction[0, :2, :2, :1] = 2
    prediction[1, 3, 3, 3] = 2
    for number in range(2):
        write(folders.references / f"case_{number}.nii.gz", reference[number])
        write(folders.predictions / f"case_{number}.nii.gz", prediction[number])
    return folders


def test_command_counts_lesions_in_table_and_summary(tmp_path, capsys):
    folders = lesion_folders(tmp_path, PLAIN)
    assert folders.command() == 0
    lesions = json.loads((folders.predictions / "summary.json").read_text())["fvae"]["lesions"]
    assert lesions["connectivity"] == 26 and lesions["detection_overlap"] == 0.1
    (tumour,) = lesions["labels"]
    assert (tumour["key"], tumour["name"]) == ("2", "tumour")
    counts = tumour["sizes"]["all"]
    assert (counts["lesions"], counts["detected"], counts["false_positives_per_case"]) == (2, 1, 0.5)
    voxel_mm3 = (3.0, 0.9, 0.7)
    first = lesions["cases"]["case_0"]["2"]
    assert first["diameters_mm"] == pytest.approx([diameter_mm(8, voxel_mm3), diameter_mm(2, voxel_mm3)], rel=1e-5)
    assert first["overlaps"] == [0.5, 0] and first["dice"][0] == pytest.approx(2 * 4 / (8 + 4))
    out = capsys.readouterr().out
    of_pancreas, of_tumour = (out[out.index(f"{label}: ") :].split("\n\n")[0] for label in ("pancreas", "tumour"))
    assert "detection rate" not in of_pancreas and "at least 10 %" in out
    rows = {line[:17].strip(): line[17:].split() for line in of_tumour.splitlines()}
    assert [rows[name][0] for name in ("detection rate", "DSC of detected", "false positives")] == [
        "0.500", "0.667", "0.50"
    ]  # fmt: skip
    assert "1 of 2 lesions detected" in " ".join(of_tumour.split())


def test_command_takes_labels_and_overlap(tmp_path, capsys):
    folders = lesion_folders(tmp_path, PLAIN)
    assert folders.command("--lesion-labels", "tumour", "--detection-overlap", "0.6") == 0
    lesions = json.loads((folders.predictions / "summary.json").read_text())["fvae"]["lesions"]
    assert lesions["labels"][0]["sizes"]["all"]["detected"] == 0
    assert folders.command("--lesion-labels") == 0
    assert "lesions" not in json.loads((folders.predictions / "summary.json").read_text())["fvae"]
    assert folders.command("--lesion-labels", "cyst") == 1
    assert "no label is named cyst" in capsys.readouterr().err


def test_lesions_in_the_ignored_area_are_not_there(tmp_path):
    folders = lesion_folders(tmp_path, IGNORE)
    reference = np.zeros((8, 8, 8), np.uint8)
    reference[2:5] = 3
    write(folders.references / "case_1.nii.gz", reference)
    (tumour,) = folders.evaluate()["fvae"]["lesions"]["labels"]
    assert tumour["sizes"]["all"]["false_positives"] == 0
