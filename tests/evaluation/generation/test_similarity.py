"""Cosines, copies of training cases and masks, each by hand; which images a folder stands for."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from generation_for_tests import VOLUME, MeanAndSpread, hu_volume, save_script, write_image, write_synthetic

from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.generation.adherence import mask_adherence, overlap
from fvae_nnunet.evaluation.generation.compared_structures import common_structures, read_groups, read_names
from fvae_nnunet.evaluation.generation.evaluate import evaluate_generation
from fvae_nnunet.evaluation.generation.evaluation import Evaluation
from fvae_nnunet.evaluation.generation.feature_networks import load_feature_networks
from fvae_nnunet.evaluation.generation.image_sets import ImageCase, ImageSet, read_image_set
from fvae_nnunet.evaluation.generation.memorisation import (
    CaseVectors,
    Nearest,
    nearest_training_cases,
    summarise_memorisation,
)
from fvae_nnunet.evaluation.generation.similarity import (
    TextNetwork,
    matched_cosines,
    pair_with_real,
    summarise_cosines,
    unit,
)
from fvae_nnunet.evaluation.generation.summary import format_table
from fvae_nnunet.nnunet.case_reports import CaseReport, CaseReports, write_case_reports
from fvae_nnunet.synthesis.generation.case_list import read_case_list

# -- images


def names_of(images):
    return [(case.name, [path.name for path in case.images]) for case in images.cases]


def test_folders_of_images_with_and_without_channels(tmp_path):
    for name in ("b", "a"):
        write_image(tmp_path / "plain" / f"{name}.nii.gz", hu_volume(0))
        for channel in (1, 0):
            write_image(tmp_path / "raw" / "imagesTr" / f"{name}_000{channel}.nii.gz", hu_volume(0))
    write_image(tmp_path / "raw" / "labelsTr" / "a.nii.gz", np.zeros((4, 6, 6), np.uint8))
    plain = read_image_set(tmp_path / "plain")
    assert plain.kind == "images" and names_of(plain) == [("a", ["a.nii.gz"]), ("b", ["b.nii.gz"])]
    raw = read_image_set(tmp_path / "raw")
    assert raw.kind == "dataset"
    assert names_of(raw) == [(name, [f"{name}_0000.nii.gz", f"{name}_0001.nii.gz"]) for name in "ab"]
    assert [case.label for case in raw.cases] == [tmp_path / "raw" / "labelsTr" / "a.nii.gz", None]
    assert names_of(read_image_set(tmp_path / "raw" / "imagesTr")) == names_of(raw)
    (tmp_path / "raw" / "imagesTr" / "a_0000.nii.gz").unlink()
    with pytest.raises(UserError, match=r"channel 0000 \(the CT\) is missing for a$"):
        read_image_set(tmp_path / "raw")
    with pytest.raises(UserError, match="no such folder"):
        read_image_set(tmp_path / "none")


def test_numbers_of_many_images_are_not_channels(tmp_path):
    for number in range(9):
        write_image(tmp_path / f"gen_{number:04d}.nii.gz", hu_volume(0))
    assert names_of(read_image_set(tmp_path)) == [(f"gen_{n:04d}", [f"gen_{n:04d}.nii.gz"]) for n in range(9)]


def test_the_current_folder_is_a_folder_like_others(tmp_path, monkeypatch):
    write_image(tmp_path / "plain" / "a.nii.gz", hu_volume(0))
    monkeypatch.chdir(tmp_path / "plain")
    assert names_of(read_image_set(Path())) == [("a", ["a.nii.gz"])]
    assert read_image_set(Path()).cases[0].label is None
    write_image(tmp_path / "raw" / "imagesTs" / "a_0000.nii.gz", hu_volume(0))
    for folder, kind in (("labelsTs", "label"), ("structuresTs", "structures")):
        write_image(tmp_path / "raw" / folder / "a.nii.gz", boxes((1, np.s_[0, 0, 0])))
        (case,) = read_image_set(tmp_path / "raw" / "imagesTs").cases
        assert getattr(case, kind) == tmp_path / "raw" / folder / "a.nii.gz"
    report = CaseReport("p", "test", "a.nii.gz", report="nothing new")
    write_case_reports(tmp_path / "raw" / "reports.json", CaseReports((), {"a": report}))
    (tmp_path / "raw" / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "tumour": 1}}))
    monkeypatch.chdir(tmp_path / "raw" / "imagesTs")
    assert read_image_set(Path()) == read_image_set(tmp_path / "raw" / "imagesTs")
    assert read_image_set(Path()).cases[0].text == "nothing new"
    monkeypatch.chdir(tmp_path / "raw" / "labelsTs")
    assert read_names(Path()) == {"tumour": (1,)}


def test_texts_come_from_records_reports_of_the_dataset_or_a_file(tmp_path):
    records = {"s0": {"source_case": "a", "text": "a mass"}, "s1": {"text": None}}
    fake = read_image_set(write_synthetic(tmp_path / "fake", {"s0": hu_volume(0), "s1": hu_volume(1)}, records))
    assert fake.kind == "synthetic"
    assert [(case.name, case.source, case.text) for case in fake.cases] == [("s0", "a", "a mass"), ("s1", "none", None)]
    assert fake.cases[0].label == tmp_path / "fake" / "labelsTr" / "s0.nii.gz"

    write_image(tmp_path / "raw" / "imagesTr" / "a_0000.nii.gz", hu_volume(0))
    report = CaseReport("p", "train", "a.nii.gz", report="nothing new")
    write_case_reports(tmp_path / "raw" / "reports.json", CaseReports((), {"a": report}))
    for folder in ("raw", "raw/imagesTr"):
        assert read_image_set(tmp_path / folder).cases[0].text == "nothing new"

    (tmp_path / "texts.csv").write_text("case,text\ns1,two masses\n")
    given = read_image_set(tmp_path / "fake", reports=tmp_path / "texts.csv")
    assert [case.text for case in given.cases] == ["a mass", "two masses"]
    with pytest.raises(UserError, match="no text for any of the cases"):
        read_image_set(tmp_path / "fake", reports=tmp_path / "raw" / "reports.json")


# -- cosines


def test_cosines_of_pairs_and_of_unrelated_ones():
    ours = np.array([[2.0, 0.0], [1.0, 1.0]])
    theirs = np.array([[3.0, 0.0], [0.0, 5.0], [0.0, -1.0]])
    matched, others = matched_cosines(ours, theirs, [0, 1])
    root = np.sqrt(0.5)
    assert matched == pytest.approx([1.0, root])
    assert others == pytest.approx([0.0, (root - root) / 2])
    _, others = matched_cosines(ours[:1], theirs[:1], [0])
    assert np.isnan(others).all()
    with pytest.raises(UserError, match="all zero"):
        unit(np.zeros((1, 3)))


def test_summary_of_cosines():
    found = summarise_cosines({"a": 0.5, "b": 0.7, "c": 0.9}, np.array([0.1, np.nan, 0.3]), seed=0, resamples=200)
    assert found["mean"] == pytest.approx(0.7) and found["unrelated"] == pytest.approx(0.2) and found["n"] == 3
    assert 0.5 <= found["low"] < 0.7 < found["high"] <= 0.9
    assert found["cases"] == {"a": 0.5, "b": 0.7, "c": 0.9}


def test_generated_cases_belong_to_their_source_or_their_namesake(tmp_path):
    def cases(**sources):
        return ImageSet(tmp_path, "images", tuple(ImageCase(name, (), source) for name, source in sources.items()))

    real = cases(a=None, b=None)
    assert pair_with_real(real, cases(s0="a", s1="a", b=None, s2="gone", s3=None)) == {"s0": "a", "s1": "a", "b": "b"}
    assert pair_with_real(real, cases(s3=None)) == {}


def test_the_shown_volume_from_structures_of_a_test_case_pairs_with_it(tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "synthesis_volumes.md").read_text()
    shown = [line.strip() for line in page[page.index("    case,source,") :].split("\n\n")[0].splitlines()]
    (tmp_path / "list.csv").write_text("\n".join(shown))
    listed = {row.case: row.structures for row in read_case_list(tmp_path / "list.csv")}
    fake = ImageSet(tmp_path, "synthetic", tuple(ImageCase(case, ()) for case in listed))
    tested = {path.name.removesuffix(".nii.gz") for path in listed.values() if path is not None}
    real = ImageSet(tmp_path, "images", tuple(ImageCase(case, ()) for case in tested))
    assert tested and pair_with_real(real, fake) == {case: case for case in tested}


def test_texts_are_cleaned_padded_to_512_tokens_and_encoded_alone(tmp_path):
    from generation_for_tests import TextLength, save_script

    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "mass", "no"]))
    path = save_script(TextLength(), tmp_path / "text.pt")
    network = TextNetwork(path, tokenizer=str(tmp_path), trust_weights=True)
    done = []
    encoded = network.encode(["no mass", "(mass)", "mass " * 600], lambda: done.append(1))
    assert encoded.tolist() == [[4.0, 1.0], [3.0, 1.0], [512.0, 1.0]] and len(done) == 3


# -- copies


def vectors(cases, rows, digests=None):
    return CaseVectors(cases, np.asarray(rows, float), digests or [f"digest of {case}" for case in cases])


def test_the_nearest_training_case_of_each_image():
    train = vectors(["t0", "t1"], [[1, 0], [0, 1]], ["x", "y"])
    fake = vectors(["s0", "s1"], [[3, 4], [1, 0]], ["s", "x"])
    found = nearest_training_cases(fake, train, leave_out_identical=False)
    assert [(one.case, one.training_case, one.identical) for one in found] == [("s0", "t1", False), ("s1", "t0", True)]
    assert [one.cosine for one in found] == pytest.approx([0.8, 1.0])
    found = nearest_training_cases(train, train, leave_out_identical=True)
    assert [(one.case, one.training_case) for one in found] == [("t0", "t1"), ("t1", "t0")]
    assert [one.cosine for one in found] == [0.0, 0.0]
    alone = vectors(["t0"], [[1, 0]], ["x"])
    assert nearest_training_cases(alone, alone, leave_out_identical=True) == []


def test_copies_lie_above_the_limit_of_real_images():
    train = vectors([f"t{n}" for n in range(2)], [[1, 0], [0, 1]])
    angles = np.deg2rad(np.linspace(10, 45, 41))
    real = vectors([f"r{n}" for n in range(41)], np.stack([np.cos(angles), np.sin(angles)], 1))
    close = np.deg2rad([1, 11, 20, 40])
    fake = vectors([f"s{n}" for n in range(4)], np.stack([np.cos(close), np.sin(close)], 1))
    nearest = [nearest_training_cases(images, train, leave_out_identical=True) for images in (fake, real)]
    found = summarise_memorisation(*nearest, {"s0": "t0", "s1": "t1", "s2": None})
    # the second nearest of 41: at most (41 + 1) / 20 lie above
    assert found["limit"] == pytest.approx(np.cos(angles[1])) and found["expected_above"] == pytest.approx(2 / 42)
    assert found["above"] == 0.25 and found["n"] == 4 and found["n_real"] == 41
    assert [(one["case"], one["above"]) for one in found["cases"]] == [
        ("s0", True), ("s1", False), ("s2", False), ("s3", False),
    ]  # fmt: skip
    assert found["nearest_is_source"] == 1 and found["identical"] == []
    for few in (0, 18):
        none = summarise_memorisation(nearest[0], nearest[1][:few], {})
        assert all(np.isnan(none[key]) for key in ("limit", "above", "expected_above"))
        assert not any(one["above"] for one in none["cases"])
    assert summarise_memorisation(nearest[0], nearest[1][:19], {})["limit"] == nearest[1][0].cosine


@pytest.mark.slow
@pytest.mark.parametrize("n", [19, 20, 30, 39, 80])
def test_without_copies_at_most_5_percent_lie_above_the_limit(n):
    rng = np.random.default_rng(n)
    shares, generated = [], 20
    for _ in range(3000):
        drawn = [Nearest("c", "t", cosine, False) for cosine in rng.normal(size=n + generated)]
        found = summarise_memorisation(drawn[:generated], drawn[generated:], {})
        shares.append(found["above"])
    standard_error = np.std(shares) / np.sqrt(len(shares))
    assert 0.03 < np.mean(shares) < 0.05 + 4 * standard_error
    assert abs(np.mean(shares) - found["expected_above"]) < 4 * standard_error and found["expected_above"] <= 0.05


@pytest.mark.parametrize(
    ("n_real", "limit", "few"),
    [
        (18, "no limit for copies, which needs at least 19 real images", ["18 real", "2 generated"]),
        (19, "(5 % expected without copying)", ["19 real", "2 generated"]),
        (20, "(4.8 % expected without copying)", ["2 generated"]),
    ],
)
def test_too_few_images_for_a_memorisation_check_are_told(tmp_path, n_real, limit, few):
    for name, seeds in (("real", range(n_real)), ("fake", range(30, 32)), ("train", range(40, 43))):
        for seed in seeds:
            write_image(tmp_path / name / f"{seed}.nii.gz", hu_volume(seed))
    sets = {name: read_image_set(tmp_path / name) for name in ("real", "fake", "train")}
    networks = load_feature_networks(
        ct_clip=save_script(MeanAndSpread(), tmp_path / "net.pt", VOLUME), trust_weights=True
    )
    evaluation = Evaluation(**sets, networks=networks, metrics=["memorisation"], output=tmp_path / "out", processes=0)
    results = evaluate_generation(evaluation).results
    assert limit in format_table(results)
    assert results["warnings"] == [f"only {of_set} cases: too few to trust the memorisation check" for of_set in few]


@pytest.mark.parametrize(("fakes", "metrics"), [(1, ("memorisation",)), (2, ("fvd", "kid", "memorisation"))])
def test_a_single_image_has_no_distance_and_the_other_metrics_remain(tmp_path, fakes, metrics):
    for name, seeds in (("real", range(2)), ("fake", range(30, 30 + fakes)), ("train", range(40, 42))):
        for seed in seeds:
            write_image(tmp_path / name / f"{seed}.nii.gz", hu_volume(seed))
    sets = {name: read_image_set(tmp_path / name) for name in ("real", "fake", "train")}
    script = save_script(MeanAndSpread(), tmp_path / "net.pt", VOLUME)
    networks = load_feature_networks(features={"net": script}, trust_weights=True)
    evaluation = Evaluation(**sets, networks=networks, output=tmp_path / "out", processes=0)
    assert evaluation.chosen_metrics() == metrics
    named = replace(evaluation, metrics=["fvd", "memorisation"])
    if fakes == 1:
        with pytest.raises(UserError, match="fvd needs at least two real and two generated images"):
            named.chosen_metrics()


# -- masks


def boxes(*values_and_slices, shape=(4, 6, 6)):
    array = np.zeros(shape, np.uint8)
    for value, where in values_and_slices:
        array[where] = value
    return array


def test_overlap_by_hand():
    mask = boxes((1, np.s_[0:2, 0:2, 0:2]), (2, np.s_[3, 3, 3:6]))
    found = boxes((7, np.s_[1:3, 0:2, 0:2]), (9, np.s_[3, 3, 3:6]))
    structures = {
        "a": ((1,), (7,)),
        "b": ((2,), (9,)),
        "both": ((1, 2), (7, 9)),
        "none": ((5,), (6,)),
        "x": ((1,), (6,)),
    }
    scores = overlap(mask, found, structures)
    assert scores["a"] == {"dice": 2 * 4 / 16, "iou": 4 / 12, "mask_voxels": 8, "segmented_voxels": 8}
    assert scores["b"]["dice"] == scores["b"]["iou"] == 1.0
    assert scores["both"]["dice"] == pytest.approx(2 * 7 / 22)
    assert np.isnan(scores["none"]["dice"]) and np.isnan(scores["none"]["iou"])
    assert scores["x"]["dice"] == scores["x"]["iou"] == 0.0


def test_structures_meet_by_name_and_groups_take_several_together():
    masks, found = {"rib 1": (1,), "rib 2": (2,), "heart": (3,)}, {"heart": (1,), "rib 1": (8,), "rib 2": (9,)}
    assert common_structures(masks, found, None).values["heart"] == ((3,), (1,))
    assert common_structures(masks, {"heart": (1,)}, None).only_in_masks == ("rib 1", "rib 2")
    assert common_structures(masks, None, None).values["heart"] == ((3,), (3,))
    assert common_structures(None, None, None) is None
    groups = {"ribs": ["rib 1", "rib 2"], "value": [4, 5]}
    assert common_structures(masks, found, groups).values == {"ribs": ((1, 2), (8, 9)), "value": ((4, 5), (4, 5))}
    with pytest.raises(UserError, match="group ribs: unknown structures: rib 3; known: rib 1, rib 2, heart"):
        common_structures(masks, found, {"ribs": ["rib 3"]})
    with pytest.raises(UserError, match="share no structure name"):
        common_structures(masks, {"liver": (1,)}, None)
    # a folder that names only background is not one without names
    for named in ((masks, {}), ({}, masks), ({}, None), (None, {})):
        with pytest.raises(UserError, match=r"share no structure name: .*none.*`masks`"):
            common_structures(*named, None)


@pytest.mark.parametrize("wrong", [None, [5, 51], 5.7, True, {}])
def test_groups_hold_names_and_whole_numbers(tmp_path, wrong):
    path = tmp_path / "groups.json"
    path.write_text(json.dumps({"ribs": ["rib 1", 93]}))
    assert read_groups(path) == {"ribs": ["rib 1", 93]}
    path.write_text(json.dumps({"ribs": ["rib 1", 93], "heart": [51, wrong]}))
    with pytest.raises(UserError, match="heart: structures must be names or whole numbers, not") as error:
        read_groups(path)
    assert str(error.value).endswith(f"not {json.dumps(wrong)}")


def test_names_of_label_maps(tmp_path):
    assert read_names(tmp_path) is None
    labels = {"background": 0, "tumour": 2, "whole": [1, 2], "ignore": 3}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    for name in ("labelsTr", "structuresTr"):
        (tmp_path / name).mkdir()
    assert read_names(tmp_path / "labelsTr") == {"tumour": (2,), "whole": (1, 2)} == read_names(tmp_path)
    assert read_names(tmp_path / "structuresTr") is None
    (tmp_path / "structuresTr" / "structures.json").write_text(json.dumps({"aorta": 6}))
    assert read_names(tmp_path / "structuresTr") == {"aorta": (6,)}
    for wrong in ("six", 5.7, True, [1, None]):
        (tmp_path / "structuresTr" / "structures.json").write_text(json.dumps({"aorta": wrong}))
        with pytest.raises(UserError, match="does not name labels"):
            read_names(tmp_path / "structuresTr")
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0}}))
    assert read_names(tmp_path / "labelsTr") == {}


@pytest.fixture
def mask_folders(tmp_path):
    cube, shifted = np.s_[0:2, 0:2, 0:2], np.s_[1:3, 0:2, 0:2]
    for case, place in (("a", cube), ("b", shifted)):
        write_image(tmp_path / "masks" / f"{case}.nii.gz", boxes((1, cube), (2, np.s_[3, 3, 3])))
        write_image(tmp_path / "found" / f"{case}.nii.gz", boxes((1, place)))
    return tmp_path / "masks", tmp_path / "found"


def test_masks_of_all_cases_with_means_and_intervals(mask_folders):
    found = mask_adherence(["a", "b"], *mask_folders, seed=0, resamples=100)
    assert found["structures"]["1"]["dice"] == pytest.approx(0.75) and found["structures"]["1"]["n"] == 2
    assert found["structures"]["1"]["iou"] == pytest.approx((1 + 4 / 12) / 2)
    assert 0.5 <= found["structures"]["1"]["dice_low"] <= 0.75 <= found["structures"]["1"]["dice_high"] <= 1
    assert found["structures"]["2"]["dice"] == 0 and np.isnan(found["structures"]["2"]["dice_low"])
    assert found["mean"] == {"dice": pytest.approx(0.375), "iou": pytest.approx(1 / 3)}
    assert found["cases"]["b"]["1"]["dice"] == 0.5


def test_without_names_every_value_of_any_mask_counts_in_all_cases(mask_folders):
    masks, found = mask_folders
    box, other = np.s_[0:2, 0:2, 0:2], np.s_[3, 3, 3]
    for case in "ab":
        write_image(masks / f"{case}.nii.gz", boxes((1, box), *[(2, other)] * (case == "a")))
        # 2 is a false positive in b; 3 is in no mask and was not asked for
        write_image(found / f"{case}.nii.gz", boxes((1, box), (2, other), (3, np.s_[3, 0, 0])))
    unnamed = mask_adherence(["a", "b"], masks, found, resamples=20)
    assert list(unnamed["structures"]) == ["1", "2"]
    assert (unnamed["structures"]["2"]["dice"], unnamed["structures"]["2"]["n"]) == (0.5, 2)
    assert unnamed["cases"]["b"]["2"] == {"dice": 0.0, "iou": 0.0, "mask_voxels": 0, "segmented_voxels": 1}
    (masks / "structures.json").write_text(json.dumps({"1": 1, "2": 2}))
    named = mask_adherence(["a", "b"], masks, found, resamples=20)
    assert named["cases"] == unnamed["cases"] and named["mean"] == unnamed["mean"]
    (masks / "structures.json").unlink()
    write_image(found / "b.nii.gz", boxes((1, box)))
    unnamed = mask_adherence(["a", "b"], masks, found, resamples=20)
    assert np.isnan(unnamed["cases"]["b"]["2"]["dice"]) and unnamed["structures"]["2"]["n"] == 1


@pytest.mark.parametrize("names", [None, {"heart": 1}])
def test_masks_without_structures_are_refused(mask_folders, names):
    masks, found = mask_folders
    for case in "ab":
        write_image(masks / f"{case}.nii.gz", boxes())
    if names:
        (masks / "structures.json").write_text(json.dumps(names))
    with pytest.raises(UserError, match=f"masks hold {'none of heart' if names else 'no structure'}; .*`masks`"):
        mask_adherence(["a", "b"], masks, found)


def adherence_by_default(fake, found):
    evaluation = Evaluation(read_image_set(found), read_image_set(fake), segmentations=found, processes=0, resamples=20)
    return evaluate_generation(evaluation).results["masks"]


@pytest.mark.parametrize("named", [True, False])
def test_structures_are_the_masks_where_labels_name_none(tmp_path, named):
    """What ``fvae-synthesize --list`` writes for a dataset without labels: empty label maps beside structures."""
    fake = write_synthetic(tmp_path / "fake", {"s0": hu_volume(0), "s1": hu_volume(1)})
    structures = boxes((5, np.s_[0:2, 0:3]), (51, np.s_[3, 4:, 4:]))
    for case in ("s0", "s1"):
        write_image(fake / "labelsTr" / f"{case}.nii.gz", boxes())
        for folder in (fake / "structuresTr", tmp_path / "found"):
            write_image(folder / f"{case}.nii.gz", structures)
    names = json.dumps({"liver": 5, "heart": 51})
    (fake / "structuresTr" / "structures.json").write_text(names)
    if named:
        (tmp_path / "found" / "structures.json").write_text(names)
    content = json.loads((fake / "dataset.json").read_text())
    with pytest.raises(UserError, match=r"labelsTr and in .*structuresTr; give the one .* `masks`"):
        adherence_by_default(fake, tmp_path / "found")
    (fake / "dataset.json").write_text(json.dumps(content | {"labels": {"background": 0}}))
    masks = adherence_by_default(fake, tmp_path / "found")
    assert masks["mask_folder"] == str(fake / "structuresTr")
    assert {name: figures["dice"] for name, figures in masks["structures"].items()} == {"liver": 1.0, "heart": 1.0}
    (fake / "structuresTr" / "s1.nii.gz").unlink()
    with pytest.raises(UserError, match=r"only masks in .*labelsTr, where only the background has a name"):
        adherence_by_default(fake, tmp_path / "found")


def test_masks_that_cannot_be_compared_are_named(mask_folders):
    masks, found = mask_folders
    with pytest.raises(UserError, match=r"c: no label map in .*masks"):
        mask_adherence(["a", "c"], masks, found)
    write_image(found / "a.nii.gz", boxes(), spacing_mm=(3.0, 1.0, 1.0))
    write_image(found / "b.nii.gz", np.full((4, 6, 6), -5))
    with pytest.raises(UserError, match=r"(?s)a: mask and segmentation differ in spacing.*b: .*not a label map"):
        mask_adherence(["a", "b"], masks, found)
    shutil.rmtree(found)
    with pytest.raises(UserError, match="found is not a folder"):
        mask_adherence(["a"], masks, found)
