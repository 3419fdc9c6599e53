"""fvae-synthesize from the options to the files, with a model that paints and once with a real tiny one."""

import dataclasses
import itertools
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from painted_cases import CORONAL, LESION_HU, ORGAN_HU, PaintingModel, rewrite_image, write_dataset, write_image
from prediction_for_tests import save_model
from scipy import ndimage
from scipy.spatial.distance import cdist
from synthesize_for_tests import SIZE, a_tiny_model, files_of, paints, run

from fvae_nnunet.cli import synthesize
from fvae_nnunet.errors import UserError
from fvae_nnunet.files.checked_json import read_json
from fvae_nnunet.nnunet import segmenter
from fvae_nnunet.nnunet.folders import nnunet_folder
from fvae_nnunet.nnunet.synthetic_folder import read_synthetic_cases, synthetic_dataset_json
from fvae_nnunet.synthesis.generation import painting
from fvae_nnunet.synthesis.lesions import plan as case_plan
from fvae_nnunet.synthesis.lesions.measures import MEASURES
from fvae_nnunet.synthesis.lesions.placed import PlacedLesion
from fvae_nnunet.synthesis.lesions.placement import Placement, position_of
from fvae_nnunet.synthesis.lesions.plan import SOURCES_TRIED, sources_of
from fvae_nnunet.synthesis.sources.dataset import open_source_dataset

__all__ = ["paints"]


def array_of(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def new_lesion(dataset, case):
    """The raw and synthetic image, both labels, and the voxels that are new lesion."""
    source = case.record["source_case"]
    raw, labels = (
        array_of(dataset.raw / name) for name in (f"imagesTr/{source}_0000.nii.gz", f"labelsTr/{source}.nii.gz")
    )
    synthetic, its_labels = array_of(case.images[0]), array_of(case.label)
    return raw, synthetic, labels, its_labels, (its_labels == 2) & (labels != 2)


@pytest.mark.slow
@pytest.mark.parametrize("direction", [None, CORONAL])
def test_a_case_from_end_to_end(paints, tmp_path, direction):
    # the same patient grid, stored axial or coronal
    shape, spacing_mm = ((16, 40, 44), (5.0, 0.9, 0.9)) if direction is None else ((40, 16, 44), (0.9, 5.0, 0.9))
    dataset = write_dataset(shape=shape, spacing_mm=spacing_mm, direction=direction)
    paints(bias_hu=5.0, noise_hu=1.0)
    assert run(dataset, tmp_path / "out", *SIZE, "--margin-mm", "4", "--no-filter", n=4) == 0
    cases = read_synthetic_cases(tmp_path / "out")
    assert [case.name for case in cases] == [f"synthetic_{i:04d}" for i in range(4)]
    assert synthetic_dataset_json(tmp_path / "out") == read_json(dataset.raw / "dataset.json")
    for case in cases:
        raw, synthetic, labels, its_labels, new = new_lesion(dataset, case)
        (lesion,) = case.record["lesions"]
        assert new.sum() == lesion["voxels"]
        diameter_mm = (6 / np.pi * new.sum() * np.prod(spacing_mm)) ** (1 / 3)
        assert lesion["diameter_mm"] == pytest.approx(diameter_mm, abs=0.01)
        assert 10 * 0.9 < diameter_mm < 14 * 1.1
        # labels: only the lesion is new
        assert np.array_equal(its_labels[~new], labels[~new])
        # image: beyond the margin the raw voxels, in the lesion what was painted
        distance = np.full(raw.shape, np.inf)
        everywhere = np.indices(raw.shape).reshape(3, -1).T * spacing_mm
        for voxel in np.argwhere(new) * spacing_mm:
            np.minimum(distance, np.linalg.norm(everywhere - voxel, axis=1).reshape(raw.shape), out=distance)
        assert np.array_equal(synthetic[distance >= 4], raw[distance >= 4])
        # generated minus reconstructed is 40 - (raw + 5), so lesion voxels are 35 plus the model's noise
        assert np.abs(synthetic[new] - 35.0).max() < 6
        assert lesion["inside_fraction"] == pytest.approx((new & (labels > 0)).sum() / new.sum(), abs=1e-4)
        assert lesion["inside_fraction"] >= 0.8
        # geometry and position
        source, written = (
            sitk.ReadImage(str(path))
            for path in (dataset.raw / f"imagesTr/{case.record['source_case']}_0000.nii.gz", case.images[0])
        )
        label = sitk.ReadImage(str(case.label))
        for image in (written, label):
            assert image.GetSpacing() == source.GetSpacing()
            assert image.GetOrigin() == source.GetOrigin()
            assert image.GetDirection() == source.GetDirection()
        centre = np.argwhere(new).mean(axis=0)
        assert lesion["centre_voxel"] == pytest.approx(centre, abs=0.006)
        expected_mm = source.TransformContinuousIndexToPhysicalPoint(centre[::-1].tolist())
        assert lesion["centre_mm"] == pytest.approx(expected_mm, abs=0.006)
    record = cases[0].record
    assert (record["number"], record["seed"], record["mode"], record["accepted"]) == (0, 0, "inpaint", True)
    assert record["dataset"] == dataset.name
    assert record["label"] == {"name": "tumour", "value": 2}
    assert record["model"]["training_cases"] == ["case_0", "case_1", "case_2"]
    assert record["settings"]["plan"]["inside_fraction"] == 0.8
    assert record["settings"]["paint"]["margin_mm"] == 4
    assert set(record["quality"]["lesions"][0]) == {*MEASURES, "inside_fraction", "found_share", "limits"}


@pytest.mark.slow
def test_clearance_to_real_and_synthetic_lesions(paints, tmp_path):
    spacing_mm = (5.0, 0.7, 0.7)
    dataset = write_dataset(cases=1, shape=(12, 44, 44), spacing_mm=spacing_mm)
    arguments = ["--diameter-mm", "8", "9", "--lesions-per-case", "4", "--clearance-mm", "7", "--shapes", "ellipsoid"]
    assert run(dataset, tmp_path / "out", *arguments, "--no-filter", n=4) == 0
    for case in read_synthetic_cases(tmp_path / "out"):
        lesions = case.record["lesions"]
        assert len(lesions) > 1
        *_, its_labels, new = new_lesion(dataset, case)
        pieces, n = ndimage.label(its_labels == 2, np.ones((3, 3, 3)))
        assert n == len(lesions) + 1, "with the real one"
        voxels = np.bincount(pieces[new])
        assert sorted(voxels[voxels > 0]) == sorted(lesion["voxels"] for lesion in lesions)
        points = [np.argwhere(pieces == piece) * spacing_mm for piece in range(1, n + 1)]
        assert min(cdist(a, b).min() for a, b in itertools.combinations(points, 2)) >= 7


def test_structures_to_avoid(paints, tmp_path):
    dataset = write_dataset(cases=1, shape=(16, 40, 40))
    vessel = np.zeros((16, 40, 40), np.uint8)
    vessel[:, :, 12:] = 3
    where = {"spacing_mm": (3, 2, 2), "origin_mm": (-20, 5, 30)}
    write_image(tmp_path / "vessels" / "case_0.nii.gz", vessel, **where)
    assert run(dataset, tmp_path / "out", *SIZE, "--avoid", tmp_path / "vessels", "--clearance-mm", "0", n=3) == 0
    for case in read_synthetic_cases(tmp_path / "out"):
        *_, new = new_lesion(dataset, case)
        assert new.any()
        assert not new[vessel > 0].any()


def test_structures_to_avoid_must_lie_on_the_image(paints, tmp_path, capsys):
    dataset = write_dataset(cases=1, shape=(16, 40, 40))
    mask = tmp_path / "vessels" / "case_0.nii.gz"
    write_image(mask, np.zeros((16, 40, 40), np.uint8), spacing_mm=(3, 2, 2), origin_mm=(-20, 5, 31))
    assert run(dataset, tmp_path / "out", *SIZE, "--avoid", mask.parent, n=1) == 1
    assert f"the image of case_0 and {mask} differ in origin" in capsys.readouterr().err
    assert not list((tmp_path / "out" / "imagesTr").glob("*"))


def test_guidance_needs_a_model_for_it(paints, tmp_path, capsys):
    dataset = write_dataset()
    paints().training["condition_dropout"] = 0.0
    assert run(dataset, tmp_path / "out", "--guidance", "2") == 1
    assert "model was trained without --condition-dropout" in capsys.readouterr().err
    paints().training["condition_dropout"] = 0.1
    assert run(dataset, tmp_path / "out", "--guidance", "2") == 0


@pytest.mark.slow
@pytest.mark.parametrize("direction", [None, CORONAL])
def test_at_is_a_position_in_the_patient(paints, tmp_path, direction):
    shape, spacing_mm = ((16, 40, 44), (3.0, 2.0, 1.5)) if direction is None else ((40, 16, 44), (2.0, 3.0, 1.5))
    dataset = write_dataset(shape=shape, spacing_mm=spacing_mm, direction=direction)
    index = np.array([9, 20, 15] if direction is None else [20, 9, 15])
    geometry = open_source_dataset(dataset.name).read("case_1").geometry
    at = position_of(index, geometry)
    arguments = [*SIZE, "--at", *at, "--cases", "case_1"]
    assert run(dataset, tmp_path / "out", *arguments, n=1) == 0
    (case,) = read_synthetic_cases(tmp_path / "out")
    assert case.record["source_case"] == "case_1"
    *_, new = new_lesion(dataset, case)
    assert np.abs(np.argwhere(new).mean(axis=0) - index).max() <= 0.5
    assert np.abs(np.array(case.record["lesions"][0]["centre_mm"]) - at).max() <= max(spacing_mm) / 2 + 0.01


@pytest.mark.slow
def test_at_a_place_that_will_not_do(paints, tmp_path, capsys):
    dataset = write_dataset()
    assert run(dataset, tmp_path / "out", *SIZE, "--at", 1000, 0, 0, "--cases", "case_1", n=1) == 1
    assert "--at 1000 0 0 is outside the image" in capsys.readouterr().err
    assert run(dataset, tmp_path / "out", *SIZE, "--at", 0, 0, 0, n=1) == 1
    assert "name this case with --cases" in capsys.readouterr().err


@pytest.mark.slow
def test_the_same_bytes_however_the_work_is_spread(paints, tmp_path):
    dataset = write_dataset(shape=(16, 40, 40))
    assert run(dataset, tmp_path / "one", *SIZE, n=5) == 0
    for part in (1, 0):
        parts = ["-num_parts", "2", "-part_id", part]
        assert run(dataset, tmp_path / "parts", *SIZE, *parts, n=5) == 0
    assert run(dataset, tmp_path / "two", *SIZE, "-np", "2", n=5) == 0
    assert run(dataset, tmp_path / "grown", *SIZE, n=2) == 0
    assert run(dataset, tmp_path / "grown", *SIZE, n=5) == 0
    expected = files_of(tmp_path / "one")
    assert len([name for name in expected if name.startswith("imagesTr")]) == 5
    for other in ("parts", "two", "grown"):
        assert files_of(tmp_path / other) == expected
    assert run(dataset, tmp_path / "seed", *SIZE, "--seed", "1", n=5) == 0
    assert not set(files_of(tmp_path / "seed").values()) & {
        digest for name, digest in expected.items() if name.startswith("imagesTr")
    }


def test_sources_are_used_evenly():
    cases = ["a", "b", "c", "d"]
    drawn = [sources_of(number, cases, seed=3)[0] for number in range(40)]
    for start in range(0, 40, 4):
        assert sorted(drawn[start : start + 4]) == cases
    assert len({tuple(drawn[start : start + 4]) for start in range(0, 40, 4)}) > 3
    assert all(sorted(sources_of(number, cases, seed=3)) == cases for number in range(8))
    assert len(sources_of(3, range(40), seed=3)) == SOURCES_TRIED


@pytest.mark.slow
def test_verify_makes_a_damaged_case_again(paints, tmp_path, capsys):
    dataset = write_dataset()
    assert run(dataset, tmp_path / "out") == 0
    whole = files_of(tmp_path / "out")
    record = tmp_path / "out" / "records" / "synthetic_0001.json"
    record.write_bytes(record.read_bytes().replace(b"synthetic_0001", b"synthetic_0009"))
    assert run(dataset, tmp_path / "out", "--verify") == 0
    captured = capsys.readouterr()
    assert f"DAMAGED, will be made again: synthetic_0001: {record} has changed" in captured.err
    assert "1 case accepted, 0 rejected, 1 already complete" in captured.out
    assert files_of(tmp_path / "out") == whole


@pytest.mark.slow
def test_finished_cases_are_left_alone_and_changed_ones_made_again(paints, tmp_path, capsys):
    dataset = write_dataset()
    output = tmp_path / "out"
    assert run(dataset, output, *SIZE, n=3) == 0
    before = files_of(output)
    painting_model = paints()
    assert run(dataset, output, *SIZE, n=3) == 0
    assert painting_model.calls == []
    assert "0 cases accepted, 0 rejected, 3 already complete" in capsys.readouterr().out
    (output / "imagesTr" / "synthetic_0001_0000.nii.gz").unlink()
    assert run(dataset, output, *SIZE, n=3) == 0
    assert len(painting_model.calls) == 1
    assert files_of(output) == before
    assert run(dataset, output, "--diameter-mm", "11", "14", n=3) == 1
    assert "made with other settings" in capsys.readouterr().err
    assert run(dataset, output, "--diameter-mm", "11", "14", "--overwrite", n=1) == 0
    assert len(read_synthetic_cases(output)) == 1


@pytest.mark.slow
def test_where_nothing_fits_another_case_is_taken_and_where_it_fits_nowhere_the_status_says_so(
    paints, tmp_path, capsys
):
    dataset = write_dataset(cases=2)

    def shrink_the_organ(labels):
        labels[labels == 1] = 0
        labels[8, 20, 20] = 1
        return labels

    rewrite_image(dataset.raw / "labelsTr" / "case_1.nii.gz", shrink_the_organ)
    assert run(dataset, tmp_path / "out", *SIZE, n=4) == 0
    made = read_synthetic_cases(tmp_path / "out")
    assert [case.record["source_case"] for case in made] == ["case_0"] * 4
    capsys.readouterr()
    assert run(dataset, tmp_path / "out", *SIZE, n=4) == 0
    assert "0 cases accepted, 0 rejected, 4 already complete" in capsys.readouterr().out
    before = files_of(tmp_path / "out")
    made[2].images[0].unlink()
    assert run(dataset, tmp_path / "out", *SIZE, n=4) == 0
    assert "1 case accepted, 0 rejected, 3 already complete" in capsys.readouterr().out
    assert files_of(tmp_path / "out") == before
    rewrite_image(dataset.raw / "labelsTr" / "case_0.nii.gz", shrink_the_organ)
    assert run(dataset, tmp_path / "nowhere", *SIZE, n=2) == 1
    captured = capsys.readouterr()
    for last, first in (("case_0", "case_1"), ("case_1", "case_0")):
        said = f"{last}: no lesion of 10 to 14 mm fits, 5 were tried; the last one: no place"
        assert re.search(f"{said}.*; nor in {first}$", captured.err, re.MULTILINE)
    assert "2 of 2 cases failed" in captured.err
    assert "0 cases accepted, 0 rejected, 0 already complete, 2 failed" in captured.out


def test_fewer_lesions_where_there_is_no_room_for_all(paints, tmp_path):
    dataset = write_dataset(cases=1, shape=(12, 24, 24))
    arguments = ["--diameter-mm", "20", "22", "--lesions-per-case", "6", "--no-filter", "--shapes", "ellipsoid"]
    assert run(dataset, tmp_path / "out", *arguments, n=1) == 0
    assert 1 <= len(read_synthetic_cases(tmp_path / "out")[0].record["lesions"]) < 6


@pytest.mark.slow
def test_empty_organ_and_small_volume_are_one_error_each(paints, tmp_path, capsys):
    empty = write_dataset(cases=1, organ=False, lesion=False)
    assert run(empty, tmp_path / "empty", *SIZE, "--shapes", "ellipsoid", n=1) == 1
    assert "the organ (label:organ) has no voxel" in capsys.readouterr().err
    flat = write_dataset(cases=1, shape=(3, 40, 40))
    assert run(flat, tmp_path / "flat", "--diameter-mm", "20", "22", "--shapes", "ellipsoid", n=1) == 1
    assert "does not fit into a volume of 3 x 40 x 40" in capsys.readouterr().err


@pytest.mark.slow
def test_a_case_that_cannot_be_measured_stops_before_anything_is_made(paints, tmp_path, capsys):
    dataset = write_dataset()
    assert run(dataset, tmp_path / "undisturbed", *SIZE, n=5) == 0
    path, output = dataset.raw / "imagesTr" / "case_1_0000.nii.gz", tmp_path / "out"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    capsys.readouterr()
    for options in ([], ["-num_parts", 2, "-part_id", 1], ["--cases", "case_0", "case_2"]):
        assert run(dataset, output, *SIZE, *options, n=5) == 1
        error = capsys.readouterr().err
        assert error.count("case_1_0000.nii.gz") == 1
        assert "1 case cannot be measured" in error
        assert "--leave-out case_1" in error
        assert not output.exists()
    assert run(dataset, tmp_path / "others", *SIZE, "--leave-out", "case_1", n=3) == 0
    made = read_synthetic_cases(tmp_path / "others")
    assert {case.record["source_case"] for case in made} == {"case_0", "case_2"}
    assert made[0].record["settings"]["limits"]["real_lesions"] == 2
    path.write_bytes(whole)
    assert run(dataset, output, *SIZE, n=5) == 0
    assert files_of(output) == files_of(tmp_path / "undisturbed")


@pytest.mark.slow
def test_a_changed_source_makes_its_cases_anew_while_the_real_lesions_stay(paints, tmp_path, capsys):
    dataset = write_dataset()
    assert run(dataset, tmp_path / "out", *SIZE, n=4) == 0

    def change_a_corner(hu):
        hu[-1, -1, -1] += 1
        return hu

    rewrite_image(dataset.raw / "imagesTr" / "case_1_0000.nii.gz", change_a_corner)
    painting_model = paints()
    assert run(dataset, tmp_path / "out", *SIZE, n=4) == 0
    sources = [case.record["source_case"] for case in read_synthetic_cases(tmp_path / "out")]
    assert len(painting_model.calls) == sources.count("case_1") > 0
    assert run(dataset, tmp_path / "anew", *SIZE, n=4) == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "anew")


@pytest.mark.slow
def test_other_real_lesions_are_refused_and_nothing_changes(paints, tmp_path, capsys):
    dataset, output = write_dataset(), tmp_path / "out"
    options = [*SIZE, "--cases", "case_0", "case_2"]
    assert run(dataset, output, *options, n=3) == 0
    path, before = dataset.raw / "labelsTr" / "case_1.nii.gz", files_of(output)
    whole = path.read_bytes()

    def move_the_lesion(labels):
        labels[labels == 2] = 1
        labels[5:8, 20:24, 20:24] = 2
        return labels

    def refused(*changes):
        capsys.readouterr()
        assert run(dataset, output, *options, *changes, n=3) == 1
        assert files_of(output) == before
        return capsys.readouterr().err

    said = f"{output} was started with other real lesions of {dataset.name}"
    assert f"{said}, which determine limits and shapes (now left out: case_1)" in refused("--leave-out", "case_1")
    rewrite_image(path, move_the_lesion)
    error = refused()
    assert f"{said}, which determine limits and shapes (changed: case_1)" in error
    assert "Use the same files and cases again, another -o, or --overwrite" in error
    assert "plan.clearance_mm: 5.0, now 6.0" in refused("--clearance-mm", 6)
    path.write_bytes(whole)
    assert run(dataset, output, *options, n=3) == 0
    assert files_of(output) == before
    assert "3 already complete" in capsys.readouterr().out


def test_a_folder_that_is_no_model(tmp_path, capsys):
    dataset = write_dataset(cases=1)
    assert run(dataset, tmp_path / "out", "--ldm", tmp_path) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{tmp_path} is not a latent diffusion model" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_rejected_cases_are_kept_aside_with_the_reason(paints, tmp_path, capsys):
    dataset = write_dataset()
    paints(hu=200)
    output = tmp_path / "out"
    assert run(dataset, output, *SIZE, n=2) == 0
    assert "0 cases accepted, 2 rejected" in capsys.readouterr().out
    assert read_synthetic_cases(output) == []
    rejected = read_synthetic_cases(output, accepted=False)
    for case in rejected:
        assert not case.record["accepted"]
        mean, contrast = case.record["reasons"]
        assert re.fullmatch(
            r"the lesion has a core with a mean of (19|20)\d\.\d HU; real ones allow [\d.]+ to [\d.]+", mean
        )
        assert "contrast of 10" in contrast or "contrast of 9" in contrast
        assert array_of(case.images[0])[array_of(case.label) == 2].max() > 190
    # a finished case that was rejected is finished, too
    model_again = paints(hu=200)
    assert run(dataset, output, *SIZE, n=2) == 0
    assert model_again.calls == []
    assert run(dataset, tmp_path / "all", *SIZE, "--no-filter", n=2) == 0
    kept = read_synthetic_cases(tmp_path / "all")
    assert [len(case.record["reasons"]) for case in kept] == [2, 2]


def test_a_segmenter_that_finds_too_little(paints, tmp_path, monkeypatch):
    """It finds the lesion's upper half or so: everything above the middle slice of the volume."""

    class StandIn:
        def __init__(self, judge, device):
            pass

        def find_lesions(self, images, geometry):
            found = images[0] < 70
            found[:, :, 20:] = False
            return found

    judge = SimpleNamespace(weights_sha256="1" * 64)
    monkeypatch.setattr(segmenter.SegmenterModel, "open", lambda *arguments, **keywords: judge)
    monkeypatch.setattr(segmenter, "Segmenter", StandIn)
    dataset = write_dataset(shape=(16, 40, 40))
    assert run(dataset, tmp_path / "out", *SIZE, "--segmenter", "folder", n=6) == 0
    accepted, rejected = (read_synthetic_cases(tmp_path / "out", accepted=state) for state in (True, False))
    assert accepted
    assert rejected
    for case in (*accepted, *rejected):
        *_, new = new_lesion(dataset, case)
        share = case.record["quality"]["lesions"][0]["found_share"]
        assert share == pytest.approx(new[:, :, :20].sum() / new.sum(), abs=0.02)
        assert case.record["accepted"] == (share >= 0.7)
    assert "is found by the segmenter; at least 70 % is required" in rejected[0].record["reasons"][-1]


def test_full_mode_writes_the_generated_volume_in_the_sources_geometry(paints, tmp_path):
    dataset = write_dataset(cases=1, shape=(40, 16, 24), spacing_mm=(2.0, 3.0, 2.0), direction=CORONAL)
    assert run(dataset, tmp_path / "out", *SIZE, "--mode", "full", "--no-filter", n=1) == 0
    (case,) = read_synthetic_cases(tmp_path / "out")
    _, synthetic, _, its_labels, new = new_lesion(dataset, case)
    assert new.any()
    assert np.array_equal(synthetic, np.choose(its_labels, [-100, ORGAN_HU, LESION_HU]))
    assert case.record["mode"] == "full"


def test_models_with_a_spacing_of_their_own(paints, tmp_path):
    dataset = write_dataset(cases=1, shape=(16, 60, 60), spacing_mm=(3.0, 1.0, 1.0))
    painting_model = paints(window_slices=12, inplane_pixels=24, spacing_mm=(1.5, 2.0, 2.0), bias_hu=3.0, noise_hu=1.0)
    options = ["--diameter-mm", "22", "22", "--no-filter", "--margin-mm", "3", "--shapes", "ellipsoid"]
    assert run(dataset, tmp_path / "out", *options, n=1) == 0
    # a window has 12 slices of 1.5 mm, so the lesion and its margin take more than one
    assert len(painting_model.calls) > 1
    assert all(call.volume_hu.shape == (12, 30, 30) for call in painting_model.calls)
    (case,) = read_synthetic_cases(tmp_path / "out")
    raw, synthetic, *_, new = new_lesion(dataset, case)
    inside, distance = (ndimage.distance_transform_edt(mask, sampling=(3, 1, 1)) for mask in (new, ~new))
    # generated 40, "reconstructed" 100 + 3, put on the raw 100; at the surface the coarse grid blurs it
    assert synthetic[inside > 4].mean() == pytest.approx(37, abs=1)
    # and the scan's own noise is still there
    assert synthetic[inside > 4].std() == pytest.approx(10, abs=1.5)
    assert np.array_equal(synthetic[distance >= 3], raw[distance >= 3])


def test_what_lies_beyond_the_hu_window_counts_as_the_reconstructions_error(paints, tmp_path):
    dataset = write_dataset(cases=1)
    rewrite_image(dataset.raw / "imagesTr" / "case_0_0000.nii.gz", lambda hu: hu + np.int16(2000))
    paints(hu=900, noise_hu=1.0)
    assert run(dataset, tmp_path / "out", *SIZE, "--no-filter", "--hu-as-is", "--margin-mm", "0", n=1) == 0
    _, synthetic, *_, new = new_lesion(dataset, read_synthetic_cases(tmp_path / "out")[0])
    assert np.abs(synthetic[new] - 900.0).max() < 6


@pytest.mark.slow
def test_other_channels_are_copied(paints, tmp_path, capsys):
    dataset = write_dataset(cases=1, channels=2)
    assert run(dataset, tmp_path / "out", *SIZE, n=1) == 0
    (case,) = read_synthetic_cases(tmp_path / "out")
    assert case.images[1].read_bytes() == (dataset.raw / "imagesTr" / "case_0_0001.nii.gz").read_bytes()
    assert run(dataset, tmp_path / "full", *SIZE, "--mode", "full", n=1) == 1
    assert "--mode full generates only CT, and" in capsys.readouterr().err


def test_only_training_cases_of_the_fold_are_sources(paints, tmp_path, capsys):
    dataset = write_dataset(cases=4)
    preprocessed = nnunet_folder("nnUNet_preprocessed") / dataset.name
    preprocessed.mkdir()
    splits = [{"train": ["case_2", "case_3"], "val": ["case_0", "case_1"]}]
    (preprocessed / "splits_final.json").write_text(json.dumps(splits))
    assert run(dataset, tmp_path / "out", *SIZE, "--fold", "0", n=4) == 0
    made = read_synthetic_cases(tmp_path / "out")
    assert {case.record["source_case"] for case in made} == {"case_2", "case_3"}
    assert made[0].record["settings"]["limits"]["real_lesions"] == 2
    assert "trained on 2 cases outside the training cases of fold 0 (first: case_0)" in capsys.readouterr().err


def test_borrowed_shapes_name_their_donor(paints, tmp_path):
    dataset = write_dataset()
    assert run(dataset, tmp_path / "out", *SIZE, "--shapes", "borrowed", n=3) == 0
    lesions = [case.record["lesions"][0] for case in read_synthetic_cases(tmp_path / "out")]
    assert {lesion["shape"] for lesion in lesions} == {"borrowed"}
    assert {lesion["borrowed_from"] for lesion in lesions} <= {"case_0", "case_1", "case_2"}


def test_sizes_of_the_real_lesions(paints, tmp_path):
    dataset = write_dataset()
    assert run(dataset, tmp_path / "out", "--sizes", "real", "--shapes", "ellipsoid", n=3) == 0
    for case in read_synthetic_cases(tmp_path / "out"):
        # each of the three has 2 x 5 x 5 voxels
        assert abs(case.record["lesions"][0]["voxels"] - 50) <= 5
        assert case.record["settings"]["plan"]["sizes"] is None


def test_models_without_an_organ_place_lesions_in_the_body(paints, tmp_path):
    dataset = write_dataset(cases=1)

    def add_air(hu):
        hu[:, :, 20:] = -1000
        return hu

    rewrite_image(dataset.raw / "imagesTr" / "case_0_0000.nii.gz", add_air)
    painting_model = paints(organ="none", class_names=("tumour",))
    assert run(dataset, tmp_path / "out", *SIZE, "--inside-fraction", "1", "--no-filter", n=4) == 0
    for case in read_synthetic_cases(tmp_path / "out"):
        *_, new = new_lesion(dataset, case)
        assert new.any()
        assert not new[:, :, 20:].any()
    assert {value for call in painting_model.calls for value in np.unique(call.class_map)} == {0, 1}


@pytest.mark.slow
def test_datasets_without_real_lesions_are_filled_all_the_same(paints, tmp_path, capsys):
    dataset = write_dataset(cases=1, lesion=False)
    assert run(dataset, tmp_path / "out", *SIZE, n=1) == 1
    assert (
        "no real lesion to borrow a shape from; choose --shapes ellipsoid or a folder of masks"
        in capsys.readouterr().err
    )
    assert run(dataset, tmp_path / "out", "--sizes", "real", "--shapes", "ellipsoid", n=1) == 1
    assert "no real lesion to take --sizes real from" in capsys.readouterr().err
    assert run(dataset, tmp_path / "out", *SIZE, "--shapes", "ellipsoid", n=1) == 0
    assert "HU of synthetic lesions are not checked" in capsys.readouterr().err
    assert len(read_synthetic_cases(tmp_path / "out")) == 1


def test_ignored_voxels_stay_ignored(paints, tmp_path):
    dataset = write_dataset(cases=1)
    content = read_json(dataset.raw / "dataset.json")
    content["labels"]["ignore"] = 3
    (dataset.raw / "dataset.json").write_text(json.dumps(content))
    right = np.arange(40) >= 15
    labels = rewrite_image(dataset.raw / "labelsTr" / "case_0.nii.gz", lambda labels: np.where(right, 3, labels))
    options = [*SIZE, "--inside-fraction", "0.5", "--no-filter"]
    assert run(dataset, tmp_path / "out", *options, n=6) == 0
    for case in read_synthetic_cases(tmp_path / "out"):
        assert np.array_equal(array_of(case.label) == 3, labels == 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "small", "--diameter-mm", "5", "9"], "--sizes and --diameter-mm are mutually exclusive"),
        (["--sizes", "msd-lung", "small=1"], "--sizes msd-lung: expected one of msd-lung, msd-pancreas and real"),
        (["--shapes", "ellipsoid", "--borrowed-share", "0.2"], "--borrowed-share requires --shapes both or a folder"),
        (
            ["--shapes", "elipsoid"],
            "--shapes: no folder eli",
        ),
        (["--shapes", "."], "contains no image"),
        (["--borrowed-share", "2"], "--borrowed-share must be a share between 0 and 1, got 2"),
        (["--inside-fraction", "1.2"], "--inside-fraction must be a share between 0 and 1, got 1.2"),
        (["--lesions-per-case", "3", "2"], "--lesions-per-case needs 1 <= MIN <= MAX, got 3 2"),
        (["--clearance-mm", "-1"], "--clearance-mm must not be negative"),
        (["--margin-mm", "nan"], "--margin-mm must not be negative"),
        (["--found-share", "0.5"], "--found-share has no effect without --segmenter"),
        (["--mode", "full", "--texture", "vae"], "--texture has no effect with --mode full"),
        (["--text-encoder", "."], "--text-encoder has no effect without --text"),
        (["--steps", "0"], "--steps 0: DDIM would not start near pure noise"),
        (["--steps", "501"], "--steps 501: DDIM would not start near pure noise"),
        (["--eta", "2"], "--eta must be between 0 and 1, got 2"),
        (["--cases", "case_9"], "has no case_9; it has case_0"),
        (["--leave-out", "case_9"], "there is no training case 'case_9' to leave out"),
        (["--leave-out", "case_1", "--cases", "case_1"], "--cases and --leave-out both name case_1"),
        (["--organ", "none"], "trained on organ, tumour, but --organ none gives tumour"),
        (["--avoid", "."], "contains no image"),
        (["--seed", "-1"], "--seed must not be negative"),
    ],
)
def test_wrong_options_are_one_error(paints, tmp_path, capsys, monkeypatch, arguments, message):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run(write_dataset(), tmp_path / "out", *arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out" / "imagesTr").exists()


@pytest.mark.slow
def test_a_model_that_needs_a_text_is_not_used_without(paints, tmp_path, capsys):
    dataset, painting_model = write_dataset(cases=1), paints()
    painting_model.settings = dataclasses.replace(painting_model.settings, text_encoder="bert", text_width=8)
    painting_model.training["samples_without_text"] = False
    assert run(dataset, tmp_path / "out", *SIZE, n=1) == 1
    error = capsys.readouterr().err
    assert "every training case of model had a report" in error
    assert "give a report with --text" in error
    assert not (tmp_path / "out").exists()
    assert run(dataset, tmp_path / "out", *SIZE, "--text", "A nodule.", n=1) == 0
    assert painting_model.calls[0].text == "A nodule."
    painting_model.training["samples_without_text"] = True
    assert run(dataset, tmp_path / "other", *SIZE, n=1) == 0


def test_a_folder_of_others_is_not_touched(paints, tmp_path, capsys):
    dataset = write_dataset()
    before = files_of(dataset.raw)
    assert run(dataset, dataset.raw, "--overwrite") == 1
    assert "holds imagesTr, which was not made by fvae-synthesize" in capsys.readouterr().err
    assert files_of(dataset.raw) == before


def test_the_default_inside_fraction_knows_lungs():
    for organ, share in (("lungs", 0.85), ("label:lung_left,lung_right", 0.85), ("label:organ", 0.80), ("body", 0.80)):
        assert case_plan.default_inside_fraction(SimpleNamespace(recorded=organ)) == share


def test_painting_refuses_what_the_models_grid_cannot_show(tmp_path):
    dataset = open_source_dataset(write_dataset(cases=1, shape=(16, 40, 40)).name)
    source = dataset.read("case_0")
    placement = Placement((slice(8, 9), slice(14, 16), slice(14, 16)), 1.0)
    lesion = PlacedLesion(np.ones((1, 2, 2), bool), placement, 4.5, None)
    with pytest.raises(UserError, match="no voxel at the model's spacing"):
        painting.paint(
            PaintingModel(spacing_mm=(9.0, 16.0, 16.0)),
            source,
            [lesion],
            painting.PaintSettings(),
            generator=torch.Generator().manual_seed(0),
        )


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["inpaint", "full"])
def test_a_real_tiny_model_and_a_real_segmenter_on_phantoms(planned, tmp_path, mode):
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    ldm = a_tiny_model(tmp_path / "ldm")
    judge = save_model(nnUNetTrainer, planned)
    options = [
        "--ldm",
        ldm,
        "--segmenter",
        judge,
        "--mode",
        mode,
        "--steps",
        "4",
        "--diameter-mm",
        "9",
        "12",
        "--inside-fraction",
        "0.5",
    ]
    assert run(planned, tmp_path / "out", *options, n=2) == 0
    accepted, rejected = (read_synthetic_cases(tmp_path / "out", accepted=state) for state in (True, False))
    assert len(accepted) + len(rejected) == 2
    for case in (*accepted, *rejected):
        raw, synthetic, *_, new = new_lesion(planned, case)
        assert new.any()
        assert 0 <= case.record["quality"]["lesions"][0]["found_share"] <= 1
        assert case.record["model"]["vae"] == "tiny"
        if mode == "inpaint":
            changed = synthetic != raw
            assert changed[new].mean() > 0.9
            assert not changed[ndimage.distance_transform_edt(~new, sampling=(3, 2, 2)) >= 5].any()
        else:
            assert (synthetic != raw).mean() > 0.9
    if mode == "inpaint":
        assert run(planned, tmp_path / "again", *options, "-np", "2", n=2) == 0
        assert files_of(tmp_path / "again") == files_of(tmp_path / "out")


@pytest.mark.slow
def test_several_devices_give_the_same_bytes(planned, tmp_path):
    ldm = a_tiny_model(tmp_path / "ldm")
    options = ["--steps", "4", "--diameter-mm", "9", "12", "--inside-fraction", "0.5"]
    assert run(planned, tmp_path / "one", "--ldm", ldm, *options, n=3) == 0
    arguments = [planned.name, "--ldm", str(ldm), "-n", "3", "-o", str(tmp_path / "two"), "-np", "0", *options]
    assert synthesize.main([*arguments, "--devices", "cpu", "cpu"]) == 0
    assert files_of(tmp_path / "two") == files_of(tmp_path / "one")


def test_what_is_accepted_without_filter_is_not_said_to_be_good():
    reasons = ["the lesion has a core with a mean of 9.0 HU", "another"]
    assert synthesize.verdict({"accepted": True, "reasons": []}) == "accepted"
    assert synthesize.verdict({"accepted": False, "reasons": reasons}).startswith("rejected: the lesion has")
    assert synthesize.verdict({"accepted": True, "reasons": reasons}) == (
        "accepted without filter; would be rejected: the lesion has a core with a mean of 9.0 HU; another"
    )
