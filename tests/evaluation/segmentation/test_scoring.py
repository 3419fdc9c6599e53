"""fvae-evaluate: NSD and HD95 against google-deepmind/surface-distance and by hand, summary.json against nnU-Net's."""

from __future__ import annotations

import csv
import json
import math
import multiprocessing.dummy
import shutil
import types

import numpy as np
import pytest
from scipy import ndimage
from segmentations_for_tests import (
    IGNORE,
    PLAIN,
    REGIONS,
    REGIONS_AND_IGNORE,
    SHAPE,
    Folders,
    ellipsoid,
    label_maps,
    write,
)

from fvae_nnunet.cli import evaluate
from fvae_nnunet.cli.evaluate import main
from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.segmentation.results_text import format_summary
from fvae_nnunet.evaluation.segmentation.scoring import evaluate_case
from fvae_nnunet.evaluation.segmentation.surface_distance import surface_distances
from fvae_nnunet.nnunet.labels import LabelScheme

TOLERANCES_MM = (0.0, 1.0, 2.0, 5.0)
NIFTI_0_4_MM = float(np.float32(0.4))
"""What a NIfTI header makes of 0.4 mm: five voxels are a little more than 2 mm."""


def voxel(*index, shape=SHAPE):
    mask = np.zeros(shape, dtype=bool)
    mask[index] = True
    return mask


def noise(seed, shape=SHAPE):
    """A quarter of the voxels, from raw bits that NumPy keeps the same in all versions."""
    bits = np.random.PCG64(seed).random_raw(math.prod(shape)) >> np.uint64(62)
    return (bits == 0).reshape(shape)


PAIRS = {
    "equal spacing": (ellipsoid((6, 9, 11), (4, 6, 7)), ellipsoid((7, 10, 12), (4, 5, 8)), (1.0, 1.0, 1.0)),
    "unequal spacing": (ellipsoid((6, 9, 11), (4, 6, 7)), ellipsoid((7, 10, 12), (4, 5, 8)), (3.0, 1.3, 0.7)),
    "distances that meet the tolerance": (
        ellipsoid((6, 9, 11), (4, 6, 7)), ellipsoid((6, 9, 16), (4, 6, 7)), (NIFTI_0_4_MM,) * 3
    ),
    "borders": (ellipsoid((0, 3, 23), (6, 8, 9)), ellipsoid((13, 0, 20), (12, 9, 8)), (2.5, 0.8, 0.8)),
    "single voxels": (voxel(3, 4, 5), voxel(4, 5, 7), (2.0, 1.5, 0.9)),
    "single voxels in corners": (voxel(0, 0, 0), voxel(13, 19, 23), (0.3, 0.2, 0.1)),
    "a voxel in an organ": (ellipsoid((6, 9, 11), (2, 2, 3)), voxel(6, 9, 12), (1.5, 1.0, 1.0)),
    "noise": (noise(1), noise(2), (2.0, 1.1, 0.9)),
    "one slice": (ellipsoid((0, 9, 11), (1, 6, 7))[:1], ellipsoid((0, 10, 12), (1, 5, 8))[:1], (5.0, 0.7, 0.7)),
    "the whole volume": (np.ones(SHAPE, bool), ellipsoid((6, 9, 11), (6, 9, 10)), (2.0, 1.0, 1.0)),
    "two parts": (
        ellipsoid((6, 5, 5), (3, 3, 3)) | voxel(12, 17, 21), ellipsoid((6, 5, 6), (3, 3, 3)), (2.0, 1.0, 1.0)
    ),
}  # fmt: skip

FROM_SURFACE_DISTANCE = {
    "equal spacing": (0.401717, 0.824964, 0.987586, 1.000000),
    "unequal spacing": (0.437100, 0.603422, 0.864155, 1.000000),
    "distances that meet the tolerance": (0.249254, 0.774936, 0.995892, 1.000000),
    "borders": (0.211370, 0.284985, 0.357953, 0.577221),
    "single voxels": (0.000000, 0.125000, 0.375000, 1.000000),
    "single voxels in corners": (0.000000, 0.000000, 0.000000, 0.000000),
    "a voxel in an organ": (0.000000, 0.216074, 0.609781, 1.000000),
    "noise": (0.872857, 0.975507, 0.999394, 1.000000),
    "one slice": (0.794419, 0.960644, 1.000000, 1.000000),
    "the whole volume": (0.003145, 0.048863, 0.200156, 0.752580),
    "two parts": (0.684855, 0.993354, 0.993354, 0.993354),
}
"""`compute_surface_dice_at_tolerance(compute_surface_distances(reference, prediction, spacing), tolerance)` of
google-deepmind/surface-distance, commit 1f805ce (with `ndimage.correlate` and `ndimage.distance_transform_edt` in place
of the names that SciPy has removed), for `PAIRS` and `TOLERANCES_MM`."""


def surface_dice(reference, prediction, *, spacing_mm, tolerances_mm):
    surfaces = surface_distances(reference, prediction, spacing_mm=spacing_mm)
    return [surfaces.dice(tolerance_mm) for tolerance_mm in tolerances_mm]


@pytest.mark.parametrize("name", PAIRS)
def test_nsd_equals_surface_distance_to_four_decimals(name):
    reference, prediction, spacing_mm = PAIRS[name]
    found = surface_dice(reference, prediction, spacing_mm=spacing_mm, tolerances_mm=TOLERANCES_MM)
    np.testing.assert_allclose(found, FROM_SURFACE_DISTANCE[name], rtol=0, atol=2e-6)
    swapped = surface_dice(prediction, reference, spacing_mm=spacing_mm, tolerances_mm=TOLERANCES_MM)
    np.testing.assert_allclose(swapped, found, rtol=0, atol=1e-12)


@pytest.mark.parametrize("axis, edge_mm", [(0, 5.0), (1, 3.0), (2, 1.0)])
def test_nsd_of_a_voxel_moved_by_two_is_half_at_one_edge_and_whole_at_two(axis, edge_mm):
    """Of its eight corners, all of equal area, four are one edge and four are two edges from the other voxel."""
    reference = voxel(4, 4, 4)
    prediction = np.roll(reference, 2, axis)
    tolerances_mm = (0.99 * edge_mm, edge_mm, 1.99 * edge_mm, 2 * edge_mm)
    found = surface_dice(reference, prediction, spacing_mm=(5.0, 3.0, 1.0), tolerances_mm=tolerances_mm)
    assert found == [0.0, 0.5, 0.5, 1.0]


HAUSDORFF_FROM_SURFACE_DISTANCE = {
    "equal spacing": (1.732051, 1.000000),
    "unequal spacing": (2.952965, 0.700000),
    "distances that meet the tolerance": (1.649242, 0.565685),
    "borders": (18.022486, 6.931089),
    "single voxels": (3.080584, 2.193171),
    "single voxels in corners": (5.911007, 5.717517),
    "a voxel in an organ": (3.354102, 1.802776),
    "noise": (0.900000, 0.000000),
    "one slice": (1.400000, 0.000000),
    "the whole volume": (7.549834, 4.242641),
    "two parts": (1.000000, 0.000000),
}
"""`compute_robust_hausdorff` of the same code, 95 and 50 %."""


@pytest.mark.parametrize("name", PAIRS)
def test_hd95_equals_surface_distance(name):
    reference, prediction, spacing_mm = PAIRS[name]
    for masks in ((reference, prediction), (prediction, reference)):
        surfaces = surface_distances(*masks, spacing_mm=spacing_mm)
        found = (surfaces.hausdorff_mm(), surfaces.hausdorff_mm(50))
        np.testing.assert_allclose(found, HAUSDORFF_FROM_SURFACE_DISTANCE[name], rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", PAIRS)
def test_hd95_is_the_smallest_distance_that_holds_95_percent_of_both_surfaces(name):
    reference, prediction, spacing_mm = PAIRS[name]
    surfaces = surface_distances(reference, prediction, spacing_mm=spacing_mm)
    hd95_mm = surfaces.hausdorff_mm()
    shares, smaller_shares = (
        [a[d <= limit_mm].sum() / a.sum() for d, a in zip(surfaces.distances_mm, surfaces.areas_mm2)]
        for limit_mm in (hd95_mm, hd95_mm * (1 - 1e-9))
    )
    assert min(shares) >= 0.95 - 1e-12 and min(smaller_shares) < 0.95
    assert surfaces.dice(hd95_mm) >= 0.95


@pytest.mark.filterwarnings("ignore::FutureWarning:monai")
@pytest.mark.parametrize("axis, edge_mm", [(0, 5.0), (1, 3.0), (2, 1.0)])
def test_hd95_of_a_moved_voxel_is_how_far_it_moved_as_in_monai(axis, edge_mm):
    import torch
    from monai.metrics import compute_hausdorff_distance

    reference, spacing_mm = voxel(4, 4, 4), (5.0, 3.0, 1.0)
    prediction = np.roll(reference, 3, axis)
    masks = (torch.from_numpy(mask)[None, None] for mask in (prediction, reference))
    monai = compute_hausdorff_distance(*masks, include_background=True, percentile=95, spacing=spacing_mm)
    assert surface_distances(reference, prediction, spacing_mm=spacing_mm).hausdorff_mm() == 3 * edge_mm == monai.item()


@pytest.mark.filterwarnings("ignore::FutureWarning:monai")
def test_hd95_takes_each_direction_as_monai_does_and_does_not_pool_them_as_medpy_does():
    """A false positive with 9 % of the prediction's border voxels, but 4.5 % of those of both masks."""
    import torch
    from monai.metrics import compute_hausdorff_distance

    spacing_mm = (2.4, 0.8, 0.8)
    at = np.stack(
        np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip((32, 64, 64), spacing_mm)], indexing="ij")
    )

    def ball(radius_mm, *centre_mm):
        return np.linalg.norm(at - np.reshape(centre_mm, (3, 1, 1, 1)), axis=0) < radius_mm

    def border_distances_mm(mask, other):
        border, other_border = (one & ~ndimage.binary_erosion(one) for one in (mask, other))
        return ndimage.distance_transform_edt(~other_border, sampling=spacing_mm)[border]

    def by_each(reference, prediction):
        masks = (torch.from_numpy(mask)[None, None] for mask in (prediction, reference))
        monai = compute_hausdorff_distance(*masks, include_background=True, percentile=95, spacing=spacing_mm)
        both = border_distances_mm(reference, prediction), border_distances_mm(prediction, reference)
        medpy = np.percentile(np.concatenate(both), 95)  # medpy.metric.binary.hd95
        return surface_distances(reference, prediction, spacing_mm=spacing_mm).hausdorff_mm(), monai.item(), medpy

    reference, without = ball(12, 0, 0, 0), ball(11, 0, 0.8, 0)
    assert by_each(reference, without) == pytest.approx((2.26, 2.40, 2.40), abs=0.01)
    assert by_each(reference, without | ball(4, 0, -19, -12)) == pytest.approx((10.76, 11.00, 2.40), abs=0.01)


def test_hd95_of_equal_masks_is_zero_and_has_no_value_without_both():
    mask, nothing = noise(3), np.zeros(SHAPE, bool)
    assert surface_distances(mask, mask, spacing_mm=(3, 1, 1)).hausdorff_mm() == 0
    for masks in ((mask, nothing), (nothing, mask), (nothing, nothing)):
        assert surface_distances(*masks, spacing_mm=(3, 1, 1)) is None
    for policy in ("nan", "flare"):
        for masks in ((mask, nothing), (nothing, mask), (nothing, nothing)):
            metrics = evaluate_case(
                *(one.astype(np.uint8) for one in masks), spacing_mm=(3, 1, 1), labels=[1], empty_masks=policy
            )
            assert math.isnan(metrics[1]["HD95_mm"])


@pytest.mark.parametrize("shapes", [((4, 4), (4, 4)), ((4, 4, 4), (4, 4, 5)), ((1, 4, 4, 4), (1, 4, 4, 4))])
@pytest.mark.parametrize("filled", [False, True])
def test_surfaces_of_slices_and_of_two_shapes_are_refused_also_where_they_are_empty(shapes, filled):
    masks = [np.full(shape, filled) for shape in shapes]
    with pytest.raises(UserError, match=r"two masks of equal shape \(z, y, x\)") as refused:
        surface_dice(*masks, spacing_mm=(3, 1, 1), tolerances_mm=(2,))
    assert str(shapes[0]) in str(refused.value)
    with pytest.raises(UserError, match="three positive numbers"):
        surface_dice(np.ones((2, 2, 2), bool), np.ones((2, 2, 2), bool), spacing_mm=(1, 1), tolerances_mm=(2,))


@pytest.mark.parametrize("name", PAIRS)
def test_nsd_does_not_depend_on_the_field_of_view(name):
    reference, prediction, spacing_mm = PAIRS[name]
    wider = [np.pad(mask, ((3, 0), (1, 7), (0, 2))) for mask in (reference, prediction)]
    found = surface_dice(*wider, spacing_mm=spacing_mm, tolerances_mm=TOLERANCES_MM)
    assert found == surface_dice(reference, prediction, spacing_mm=spacing_mm, tolerances_mm=TOLERANCES_MM)


def test_nsd_of_equal_masks_is_one_at_tolerance_zero():
    assert surface_dice(noise(3), noise(3), spacing_mm=(3.0, 0.7, 0.9), tolerances_mm=(0.0,)) == [1.0]


def test_case_counts_and_overlaps_by_hand():
    reference, prediction = np.array([[[1, 1, 1, 2, 0, 0]]]), np.array([[[1, 1, 2, 2, 2, 0]]])
    metrics = evaluate_case(reference, prediction, spacing_mm=(1, 1, 1), labels=[1, 2, (1, 2)], tolerances_mm=(2, 0.5))
    assert list(metrics) == [1, 2, (1, 2)]
    assert {key: metrics[1][key] for key in ("TP", "FP", "FN", "TN", "n_pred", "n_ref")} == {
        "TP": 2, "FP": 0, "FN": 1, "TN": 3, "n_pred": 2, "n_ref": 3
    }  # fmt: skip
    assert metrics[1]["Dice"] == pytest.approx(2 * 2 / 5) and metrics[1]["IoU"] == pytest.approx(2 / 3)
    assert metrics[2]["Dice"] == pytest.approx(2 * 1 / 4)
    assert metrics[(1, 2)]["Dice"] == pytest.approx(2 * 4 / 9)
    assert metrics[1].keys() >= {"NSD_2mm", "NSD_0.5mm"}


@pytest.mark.parametrize("empty_masks, expected", [("nan", math.nan), ("flare", 1.0)])
def test_the_policy_decides_only_what_two_empty_masks_score(empty_masks, expected):
    reference, prediction = np.zeros((2, 4, 4), np.uint8), np.zeros((2, 4, 4), np.uint8)
    reference[0, 0, 0], prediction[1, 1, 1] = 1, 2
    metrics = evaluate_case(reference, prediction, spacing_mm=(1, 1, 1), labels=[1, 2, 3], empty_masks=empty_masks)
    for score in ("Dice", "IoU", "NSD_2mm"):
        assert metrics[1][score] == 0 and metrics[2][score] == 0
        assert metrics[3][score] == pytest.approx(expected, nan_ok=True)


def test_nothing_is_scored_inside_the_ignored_area():
    reference, prediction = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    reference[3:9, 4:12, 4:12] = 1
    prediction[3:9, 4:12, 4:12] = 1
    reference[:, 14:], reference[:, 10:12, 8:] = 3, 3
    prediction[5, 15:19, 5:20] = 1
    prediction[:, 10:12, 8:] = 2
    kept = reference != 3
    metrics = evaluate_case(
        reference, prediction, spacing_mm=(2, 1, 1), labels=[1, 2], ignore_label=3, tolerances_mm=(0,)
    )
    assert metrics[1]["Dice"] == 1 and metrics[1]["NSD_0mm"] == 1
    assert metrics[1]["TN"] == kept.sum() - metrics[1]["TP"]
    assert math.isnan(metrics[2]["Dice"]) and math.isnan(metrics[2]["NSD_0mm"])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"tolerances_mm": (-1,)}, "not negative"),
        ({"tolerances_mm": (math.nan,)}, "finite"),
        ({"tolerances_mm": (2, 2.0)}, "once"),
        ({"empty_masks": "one"}, "nan, flare"),
        ({"spacing_mm": (1, 1)}, "three positive"),
        ({"spacing_mm": (1, 0, 1)}, "three positive"),
    ],
)
def test_impossible_options_are_refused(options, message):
    volume = np.zeros((2, 3, 4), np.uint8)
    with pytest.raises(UserError, match=message):
        evaluate_case(volume, volume, **({"spacing_mm": (1, 1, 1), "labels": [1]} | options))


def test_arrays_of_different_shape_are_refused():
    with pytest.raises(UserError, match=r"\(2, 3, 4\) and \(2, 4, 3\)"):
        evaluate_case(np.zeros((2, 3, 4)), np.zeros((2, 4, 3)), spacing_mm=(1, 1, 1), labels=[1])


# Folders


@pytest.fixture
def folders(tmp_path):
    return Folders(tmp_path, PLAIN)


@pytest.mark.parametrize(
    "dataset", [PLAIN, REGIONS, IGNORE, REGIONS_AND_IGNORE], ids=["plain", "regions", "ignore", "regions and ignore"]
)
def test_summary_json_equals_that_of_nnunet(tmp_path, monkeypatch, dataset):
    from nnunetv2.evaluation import evaluate_predictions as nnunet
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    # threads in place of nnU-Net's spawned processes, which take seconds to start
    threads = types.SimpleNamespace(get_context=lambda _: multiprocessing.dummy)
    monkeypatch.setattr(nnunet, "multiprocessing", threads)
    folders = Folders(tmp_path, dataset)
    manager = LabelManager(dataset["labels"], dataset.get("regions_class_order"))
    nnunet.compute_metrics_on_folder(
        str(folders.references), str(folders.predictions), str(tmp_path / "nnunet.json"), SimpleITKIO(), ".nii.gz",
        manager.foreground_regions if manager.has_regions else manager.foreground_labels, manager.ignore_label, 1,
    )  # fmt: skip
    assert folders.command("-o", str(tmp_path / "ours.json")) == 0

    expected = nnunet.load_summary_json(str(tmp_path / "nnunet.json"))
    found = nnunet.load_summary_json(str(tmp_path / "ours.json"))
    assert found.keys() - expected.keys() == {"fvae"}
    scored = [found["foreground_mean"], *found["mean"].values()]
    scored += [metrics for case in found["metric_per_case"] for metrics in case["metrics"].values()]
    for metrics in scored:
        assert 0 <= metrics.pop("NSD_2mm") <= 1 or math.isnan(metrics["Dice"])
        assert not metrics.pop("HD95_mm") <= 0
    del found["fvae"]
    np.testing.assert_equal(found, expected)


def test_regions_keep_their_names_and_nnunets_keys(tmp_path):
    summary = Folders(tmp_path, REGIONS).evaluate()
    named = {label["key"]: label["name"] for label in summary["fvae"]["labels"]}
    assert named == {"(1, 2)": "organ", "2": "tumour", "(3,)": "cyst"}
    assert list(summary["mean"]) == list(named)


def test_spacing_is_read_from_the_file_and_reversed(folders):
    reference, prediction = label_maps(0, (0, 1, 2))
    summary = folders.evaluate(tolerances_mm=(1, 2))
    expected = evaluate_case(reference, prediction, spacing_mm=(3.0, 0.9, 0.7), labels=[1, 2], tolerances_mm=(1, 2))
    found = summary["metric_per_case"][0]["metrics"]
    for label in (1, 2):
        assert found[str(label)] == pytest.approx(expected[label], abs=1e-6)
    wrong = evaluate_case(reference, prediction, spacing_mm=(0.7, 0.9, 3.0), labels=[1, 2], tolerances_mm=(1, 2))
    assert abs(wrong[1]["NSD_1mm"] - expected[1]["NSD_1mm"]) > 0.01


def test_command_writes_summary_and_csv_and_prints_the_table(folders, capsys):
    assert folders.command("--tolerance", "2", "0.5") == 0
    out, _ = capsys.readouterr()
    summary = json.loads((folders.predictions / "summary.json").read_text())
    cases = [case["metrics"]["2"] for case in summary["metric_per_case"]]
    assert [math.isnan(case["Dice"]) for case in cases] == [False, True, False, False]
    assert cases[2]["Dice"] == 0 and cases[2]["NSD_0.5mm"] == 0
    assert summary["mean"]["2"]["Dice"] == pytest.approx((cases[0]["Dice"] + cases[3]["Dice"]) / 3)
    assert summary["fvae"]["tolerances_mm"] == [2.0, 0.5] and summary["fvae"]["empty_masks"] == "nan"
    assert summary["fvae"]["labels"][1] == {
        "key": "2", "name": "tumour", "n": 3, "nan": 1, "missing": 0, "one_empty": 1
    }  # fmt: skip

    of_tumour = out[out.index("tumour: ") :].split("\n\n")[0]
    rows = {line[:17].strip(): line[17:].split() for line in of_tumour.splitlines()}
    for name, key in (("DSC", "Dice"), ("NSD 2 mm", "NSD_2mm"), ("NSD 0.5 mm", "NSD_0.5mm")):
        assert (rows[name][0], rows[name][-1]) == (f"{summary['mean']['2'][key]:.3f}", "3")
    assert rows["HD95, mm"][0] == f"{summary['mean']['2']['HD95_mm']:.1f}"
    (measure,) = [m for m in summary["fvae"]["measures"] if (m["label"], m["key"]) == ("2", "NSD_2mm")]
    assert measure["models"][0]["mean"] == pytest.approx(summary["mean"]["2"]["NSD_2mm"])
    assert " ".join(rows["NSD 2 mm"][1:4]) == "{:.3f} to {:.3f}".format(*measure["models"][0]["interval"])
    text = " ".join(out.split())
    assert "cases in which only the reference or only the prediction lacks it: 1" in text
    assert f"mean of labels: DSC {summary['foreground_mean']['Dice']:.3f}," in text

    with (folders.predictions / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 2
    assert [rows[3][column] for column in ("case", "label", "name", "Dice")] == ["case_1", "2", "tumour", "nan"]
    assert float(rows[0]["NSD_2mm"]) == summary["metric_per_case"][0]["metrics"]["1"]["NSD_2mm"]
    assert not list(folders.predictions.glob(".*"))


def test_flare_policy_reaches_the_mean(folders):
    summary = folders.evaluate(empty_masks="flare")
    cases = [case["metrics"]["2"]["Dice"] for case in summary["metric_per_case"]]
    assert cases[1] == 1 and cases[2] == 0
    assert summary["mean"]["2"]["Dice"] == pytest.approx(sum(cases) / 4)
    assert summary["fvae"]["labels"][1]["nan"] == 0
    assert "both reference and prediction scores 1;" in format_summary(summary)


def test_label_that_no_case_holds_has_no_mean_and_is_counted(folders):
    folders.write_dataset_json({"labels": PLAIN["labels"] | {"cyst": 3}})
    summary = folders.evaluate()
    assert math.isnan(summary["mean"]["3"]["Dice"]) and math.isnan(summary["foreground_mean"]["Dice"])
    assert summary["fvae"]["labels"][2] == {
        "key": "3", "name": "cyst", "n": 0, "nan": 4, "missing": 0, "one_empty": 0
    }  # fmt: skip


def test_missing_prediction_is_an_error_that_names_it(folders, capsys):
    (folders.predictions / "case_1.nii.gz").unlink()
    (folders.predictions / "case_3.nii.gz").unlink()
    assert folders.command() == 1
    out, err = capsys.readouterr()
    assert "lacks 2 of 4 predictions: case_1, case_3" in err and "--allow-missing" in err
    assert out == "" and not (folders.predictions / "summary.json").exists()


def test_allowed_missing_predictions_are_counted(folders, capsys):
    (folders.predictions / "case_0.nii.gz").unlink()
    assert folders.command("--allow-missing") == 0
    out, _ = capsys.readouterr()
    facts = json.loads((folders.predictions / "summary.json").read_text())["fvae"]
    assert facts["cases"] == {"reference": 4, "scored": 3, "missing": 1, "missing_names": ["case_0"]}
    assert facts["labels"][1] == {
        "key": "2", "name": "tumour", "n": 2, "nan": 1, "missing": 1, "one_empty": 1
    }  # fmt: skip
    assert "DSC of tumour: 2 of 4 cases" in out and "predictions: 1 missing: case_0" in out


def test_no_prediction_at_all_is_an_error_even_if_missing_ones_are_allowed(folders):
    for path in folders.predictions.iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"holds no file that ends in \.nii\.gz"):
        folders.evaluate(allow_missing=True)


def test_all_problems_are_named_at_once_and_an_old_summary_stays(folders, capsys):
    old = '{"foreground_mean": {}, "metric_per_case": []}'
    (folders.predictions / "summary.json").write_text(old)
    (folders.predictions / "case_0.nii.gz").rename(folders.predictions / "case_9.nii.gz")
    (folders.predictions / "case_1.nii.gz").write_bytes(b"no image")
    _, prediction = label_maps(2, (0, 1, 2))
    prediction[0, 0, :2] = 7, 9
    write(folders.predictions / "case_2.nii.gz", prediction, spacing_mm=(5.0, 0.9, 0.7))
    write(folders.predictions / "case_3.nii.gz", label_maps(3, (0, 1, 2))[1], spacing_mm=(6.0, 0.9, 0.75))
    assert folders.command() == 1
    _, err = capsys.readouterr()
    assert "lacks 1 of 4 predictions: case_0;" in err
    assert "without reference in" in err and ": case_9;" in err
    assert "case_1: " in err and "case_1.nii.gz cannot be read" in err
    assert "case_2: " in err and "not in dataset.json: 7, 9; known labels are 0, 1, 2" in err
    assert "case_3: reference and prediction differ in spacing;" in err
    assert "spacing (0.7, 0.9, 6) mm" in err and "spacing (0.75, 0.9, 6) mm" in err
    assert "Traceback" not in err
    assert (folders.predictions / "summary.json").read_text() == old
    assert not (folders.predictions / "summary.csv").exists()


def test_unknown_label_in_the_reference_is_an_error(folders):
    reference = label_maps(0, (0, 1, 2))[0]
    reference[0, 0, 0] = 4
    write(folders.references / "case_0.nii.gz", reference)
    with pytest.raises(UserError, match=r"labelsTs.case_0.*not in dataset.json: 4"):
        folders.evaluate()


@pytest.mark.parametrize(
    "change, part",
    [
        ({"spacing_mm": (3.0, 0.9, 0.71)}, "spacing"),
        ({"origin_mm": (-30.0, 5.0, 100.4)}, "origin"),
        ({"direction": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)}, "direction"),
    ],
)
def test_other_geometry_is_an_error_that_names_the_part(folders, change, part):
    write(folders.predictions / "case_0.nii.gz", label_maps(0, (0, 1, 2))[1], **change)
    with pytest.raises(UserError, match=f"case_0: reference and prediction differ in {part}; reference: shape"):
        folders.evaluate()


def test_other_shape_is_an_error_that_gives_both(folders):
    write(folders.predictions / "case_0.nii.gz", label_maps(0, (0, 1, 2))[1][:-1])
    with pytest.raises(UserError, match=r"differ in shape; .*shape \(24, 20, 14\),.*shape \(24, 20, 13\),"):
        folders.evaluate()


def test_rounding_in_a_header_is_no_difference(folders):
    expected = folders.evaluate()
    write(
        folders.predictions / "case_0.nii.gz", label_maps(0, (0, 1, 2))[1],
        spacing_mm=(3.00001, 0.900002, 0.7), origin_mm=(-30.0001, 5.0, 100.001),
    )  # fmt: skip
    np.testing.assert_equal(folders.evaluate(), expected)


def test_float_files_with_whole_labels_are_read_and_others_refused(folders):
    _, prediction = label_maps(0, (0, 1, 2))
    expected = folders.evaluate()
    write(folders.predictions / "case_0.nii.gz", prediction.astype(np.float64))
    np.testing.assert_equal(folders.evaluate(), expected)
    write(folders.predictions / "case_0.nii.gz", prediction * np.float32(0.5))
    with pytest.raises(UserError, match=r"not in dataset.json: 0\.5"):
        folders.evaluate()


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_other_file_formats_give_the_same_scores(tmp_path, folders, ending):
    (tmp_path / "other").mkdir()
    found = Folders(tmp_path / "other", PLAIN, ending).evaluate()
    for label, metrics in folders.evaluate()["mean"].items():
        assert found["mean"][label] == pytest.approx(metrics, abs=1e-6)


def test_images_of_two_dimensions_are_refused(tmp_path):
    folders = Folders(tmp_path, PLAIN, ".mha")
    for folder in (folders.references, folders.predictions):
        write(folder / "case_0.mha", np.zeros((8, 8), np.uint8))
    with pytest.raises(UserError, match=r"case_0.*2 dimensions"):
        folders.evaluate()
    folders.ending = ".png"
    folders.write_dataset_json(PLAIN)
    with pytest.raises(UserError, match=r"file_ending \.png is not one of volumes"):
        folders.evaluate()


def test_dataset_json_beside_the_predictions_comes_first(folders):
    (folders.predictions / "dataset.json").write_text(json.dumps({"file_ending": ".nii.gz", **REGIONS}))
    assert "(1, 2)" in folders.evaluate()["mean"]
    assert "1" in folders.evaluate(dataset_json=folders.root / "dataset.json")["mean"]
    (folders.predictions / "dataset.json").unlink()
    assert "1" in folders.evaluate()["mean"]
    (folders.root / "dataset.json").rename(folders.references / "dataset.json")
    assert "1" in folders.evaluate()["mean"]
    (folders.references / "dataset.json").unlink()
    with pytest.raises(UserError, match=r"no dataset\.json in .*`dataset_json`"):
        folders.evaluate()


@pytest.mark.parametrize(
    "content, message",
    [
        ({"file_ending": ".nii.gz", "labels": {"0": "background", "1": "tumour"}}, "does not accept the labels"),
        ({"file_ending": ".nii.gz", "labels": {"background": 0, "a": [1, 2]}}, "regions_class_order"),
        ({"file_ending": ".nii.gz", "labels": {"background": 0, "tumour": 1, "ignore": 7}}, "ignore label"),
        ({"file_ending": ".nii.gz", "labels": {"background": 0}}, "no label other than background"),
        ({"labels": {"background": 0, "tumour": 1}}, "needs labels and file_ending"),
        ({"file_ending": ".nii.gz"}, "needs labels and file_ending"),
        ([1, 2], "needs labels and file_ending"),
    ],
)
def test_damaged_dataset_json_is_refused(tmp_path, content, message):
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as caught:
        LabelScheme.read(path)
    assert str(path) in str(caught.value)


def test_output_that_cannot_be_written_is_an_error_after_the_table(folders, capsys, monkeypatch):
    def full_disk(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fvae_nnunet.evaluation.results_files.write_json", full_disk)
    assert folders.command() == 1
    out, err = capsys.readouterr()
    assert "tumour" in out and "No space left on device" in err
    assert not (folders.predictions / "summary.json").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        (("-o", "table.txt"), "ends in .json"),
        (("-np", "-1"), "must not be negative"),
        (("--tolerance", "-2"), "not negative"),
        (("-djfile", "nowhere.json"), "nowhere.json is not a file"),
    ],
)
def test_command_refuses_impossible_options(folders, capsys, options, message):
    assert folders.command(*options) == 1
    assert message in capsys.readouterr().err


def test_folder_that_is_not_there_is_named(tmp_path, capsys):
    assert main([str(tmp_path / "labels"), str(tmp_path)]) == 1
    assert f"no such folder: {tmp_path / 'labels'}" in capsys.readouterr().err


@pytest.mark.slow
def test_processes_give_the_same_summary(folders):
    seen = []
    found = folders.evaluate(processes=2, on_case=lambda done, total: seen.append((done, total)))
    np.testing.assert_equal(found, folders.evaluate())
    assert seen == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize("models", [1, 2])
def test_results_are_there_before_anything_is_printed(folders, monkeypatch, models):
    def nobody_reads(*_arguments):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("fvae_nnunet.evaluation.segmentation.results_text.format_summary", nobody_reads)
    monkeypatch.setattr("fvae_nnunet.evaluation.segmentation.results_text.format_comparison", nobody_reads)
    result = folders.predictions.parent / "result.json"
    predictions, options = [str(folders.predictions)], ["-np", "0", "-o", str(result)]
    if models == 2:
        predictions.append(str(shutil.copytree(folders.predictions, folders.predictions.parent / "second")))
        options += ["--resamples", "99"]
    with pytest.raises(BrokenPipeError):
        evaluate.main([str(folders.references), *predictions, *options])
    assert result.is_file() and result.with_suffix(".csv").is_file()
