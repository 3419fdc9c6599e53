"""Quality against hand-made volumes; a segmenter that stands in, and nnU-Net itself."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from painted_cases import CORONAL, LESION_HU, ORGAN_HU, rewrite_image, write_dataset
from prediction_for_tests import save_model

from fvae_nnunet.ct.files import read_volume
from fvae_nnunet.ct.geometry import Geometry
from fvae_nnunet.errors import UserError
from fvae_nnunet.nnunet.segmenter import Segmenter, SegmenterModel
from fvae_nnunet.synthesis.lesions import real_lesions
from fvae_nnunet.synthesis.lesions.measures import MEASURES
from fvae_nnunet.synthesis.lesions.quality import QualityLimits, lesion_quality, reasons_against
from fvae_nnunet.synthesis.lesions.real_lesions import (
    RealLesions,
    borrow,
    measure_real_lesions,
    read_real_lesions,
    write_real_lesions,
)
from fvae_nnunet.synthesis.sources.dataset import open_source_dataset
from fvae_nnunet.trainers import nnUNetTrainerFVAEReconOnly

SPACING_MM = (5.0, 1.0, 1.0)


@pytest.mark.slow
def test_quality_holds_what_a_segmenter_found():
    lesion = np.zeros((7, 40, 40), bool)
    lesion[3, 15:25, 14:24] = True
    hu, organ = np.where(lesion, 40, 100).astype(np.int16), np.ones_like(lesion)
    found = np.zeros_like(lesion)
    found[3, 15:22, 14:24] = True
    found[0] = True
    limits = real(12, core_sd_hu=range(12))
    quality = lesion_quality(hu, lesion, organ & ~lesion, SPACING_MM, inside_fraction=0.9, found=found, limits=limits)
    assert quality["found_share"] == 0.7
    assert quality["inside_fraction"] == 0.9
    alone = lesion_quality(hu, lesion, organ, SPACING_MM, inside_fraction=0.9, found=None, limits=limits)
    assert alone["found_share"] is None
    # 100 voxels of 5 mm3 are a ball of 9.8 mm
    assert alone["limits"] == limits.of_size(9.847, 5.0).recorded()


def real(count, **measures):
    """Real lesions of 10, 11, ... mm; of each measure the value for each of them."""
    others = dict.fromkeys(MEASURES)
    lesions = [
        others | {"diameter_mm": 10.0 + at, "depth_mm": 5.0} | {name: values[at] for name, values in measures.items()}
        for at in range(count)
    ]
    return QualityLimits(RealLesions(tuple(lesions), {}), 0.8, 0.7)


def test_limits_of_mean_and_contrast_are_widened_percentiles_of_all_real_lesions():
    limits = real(101, core_mean_hu=range(101), contrast_hu=[-30.0] * 101).of_size(12.0, 5.0)
    # percentiles 1 and 99, and a quarter of the 98 between them; at least 8
    assert limits.hu == {"core_mean_hu": (1 - 24.5, 99 + 24.5), "contrast_hu": (-38.0, -22.0)}
    few = real(4, core_mean_hu=[10, 20, 30, 40]).of_size(12.0, 5.0)
    # percentiles of 4 lie between them: 10.3 and 39.7; 8 / 4 of 29.4 is 58.8
    assert few.hu["core_mean_hu"] == (-48.5, 98.5)
    assert real(2, core_mean_hu=[10, 20]).of_size(12.0, 5.0).hu == {}
    assert real(0).of_size(12.0, 5.0).hu == {} and real(0).of_size(12.0, 5.0).diameters_mm is None


def test_limits_of_texture_and_rim_are_those_of_the_real_lesions_nearest_in_size():
    # of 48 lesions of 10 to 57 mm a third
    limits = real(48, core_sd_hu=[10.0] * 24 + [40.0] * 24, rim_hu=[-100.0] * 48, slice_change_hu=[1.0] * 48)
    small, large = limits.of_size(11.0, 5.0), limits.of_size(50.0, 5.0)
    assert small.real_lesions == 16 and small.diameters_mm == (10.0, 25.0)
    assert small.hu == {"core_sd_hu": (2.0, 18.0), "rim_hu": (-108.0, -92.0), "slice_change_hu": (0.0, 9.0)}
    # 42 to 57 mm, of which 57 and 42 are the farthest by their ratio to 50
    assert large.diameters_mm == (42.0, 57.0)
    assert large.hu["core_sd_hu"] == (32.0, 48.0)
    # 24.5 lies between both
    between = limits.of_size(33.0, 5.0).hu["core_sd_hu"]
    assert between[0] < 10 and between[1] > 40
    assert real(20, core_sd_hu=range(20)).of_size(10.0, 5.0).real_lesions == 12
    assert real(5, core_sd_hu=range(5)).of_size(10.0, 5.0).real_lesions == 5


def test_lesions_with_a_blurred_core_are_held_against_such():
    values = {"core_mean_hu": [0.0] * 20 + [40.0] * 20, "contrast_hu": [-100.0] * 40, "core_sd_hu": [10.0] * 40}
    plain = {"core_mean_hu": (-10.0, 50.0), "contrast_hu": (-108.0, -92.0), "core_sd_hu": (2.0, 18.0)}
    limits = real(40, **values)
    assert limits.of_size(12.0, 4.0).hu == plain
    # no real one is 3.9 mm deep at most: half the contrast, and one and a half times the standard deviation
    assert limits.of_size(12.0, 3.9).hu == {"contrast_hu": (-108.0, -46.0), "core_sd_hu": (2.0, 27.0)}
    bright = real(40, contrast_hu=[800.0] * 40)
    assert bright.of_size(12.0, 3.9).hu == {"contrast_hu": (396.0, 808.0)}
    for depth_mm, mean_hu in ((3.0, (-8.0, 8.0)), (5.0, (-10.0, 50.0))):
        some = real(40, **values)
        for lesion in some.real.lesions[:3]:
            lesion["depth_mm"] = 3.0
        expected = plain | {"core_mean_hu": mean_hu}
        assert some.of_size(12.0, depth_mm).hu == expected


def test_every_reason_is_said():
    limits = QualityLimits(RealLesions((), {}), 0.8, 0.7)
    allowed = {"diameters_mm": [9.6, 14.2], "core_sd_hu": [5.0, 20.0], "contrast_hu": [-50.0, -20.0]}
    good = dict.fromkeys(MEASURES, 20.0) | {
        "contrast_hu": -50.0, "inside_fraction": 0.8, "found_share": 0.7, "limits": allowed,
    }  # fmt: skip
    assert reasons_against([good], limits) == []
    assert reasons_against([good | {"found_share": None, "contrast_hu": None}], limits) == []
    nothing = QualityLimits(RealLesions((), {}), 0.8, 0.7).of_size(10.0, 5.0).recorded()
    assert reasons_against([good | {"core_sd_hu": 99.0, "limits": nothing}], limits) == []
    assert reasons_against([good | {"core_sd_hu": 61.0}], limits) == [
        "the lesion has a core with a standard deviation of 61.0 HU; real ones of 9.6 to 14.2 mm allow 5.0 to 20.0"
    ]
    bad = good | {"core_sd_hu": 1.0, "contrast_hu": 5.0, "inside_fraction": 0.75, "found_share": 0.5}
    assert reasons_against([good, bad], limits) == [
        "lesion 2 has a contrast of 5.0 HU to its surroundings; real ones allow −50.0 to −20.0",
        "lesion 2 has a core with a standard deviation of 1.0 HU; real ones of 9.6 to 14.2 mm allow 5.0 to 20.0",
        "75 % of lesion 2 is in the organ; at least 80 % is required",
        "50 % of lesion 2 is found by the segmenter; at least 70 % is required",
    ]


@pytest.fixture
def blocks():
    return write_dataset(cases=3)


def measure(dataset, path, workers=0):
    seen = []
    found = measure_real_lesions(dataset, path, workers=workers, on_case=lambda: seen.append(1))
    assert len(seen) == len(dataset.cases)
    write_real_lesions(path, dataset, found)
    return found


def test_real_lesions_of_a_dataset(blocks, tmp_path):
    dataset = open_source_dataset(blocks.name)
    found = measure(dataset, tmp_path / "real.json")
    assert [(lesion["case"], lesion["number"]) for lesion in found.lesions] == [(f"case_{i}", 1) for i in range(3)]
    for lesion in found.lesions:
        image = sitk.GetArrayFromImage(sitk.ReadImage(str(blocks.raw / f"imagesTr/{lesion['case']}_0000.nii.gz")))
        label = sitk.GetArrayFromImage(sitk.ReadImage(str(blocks.raw / f"labelsTr/{lesion['case']}.nii.gz")))
        assert lesion["voxels"] == (label == 2).sum()
        assert lesion["mean_hu"] == pytest.approx(image[label == 2].mean(), abs=0.01)
        assert lesion["contrast_hu"] == pytest.approx(LESION_HU - ORGAN_HU, abs=8), (
            "50 and 141 voxels of noise of 10 HU"
        )
        assert lesion["diameter_mm"] == pytest.approx((6 / np.pi * lesion["voxels"] * 12) ** (1 / 3), abs=0.01)
        assert np.array_equal(borrow(dataset, lesion).mask, np.ones((2, 5, 5)))


def test_real_lesions_are_measured_once(blocks, tmp_path, monkeypatch):
    dataset, path = open_source_dataset(blocks.name), tmp_path / "real.json"
    first, bytes_before = measure(dataset, path), path.read_bytes()
    read = []
    original = real_lesions.lesions_of
    monkeypatch.setattr(real_lesions, "lesions_of", lambda source: read.append(source.case) or original(source))
    assert measure(dataset, path) == first
    assert read == []

    def move_the_lesion(labels):
        labels[labels == 2] = 1
        labels[5:8, 20:24, 20:24] = 2
        return labels

    rewrite_image(blocks.raw / "labelsTr" / "case_1.nii.gz", move_the_lesion)
    assert [lesion["voxels"] for lesion in measure(dataset, path).lesions] == [50, 48, 50]
    assert read == ["case_1"]
    assert path.read_bytes() != bytes_before


@pytest.mark.slow
def test_processes_give_the_same_real_lesions(blocks, tmp_path):
    dataset = open_source_dataset(blocks.name)
    measure(dataset, tmp_path / "here.json")
    measure(dataset, tmp_path / "there.json", workers=2)
    assert (tmp_path / "here.json").read_bytes() == (tmp_path / "there.json").read_bytes()


def test_cases_that_cannot_be_measured_are_named(blocks, tmp_path):
    for case in (1, 2):
        path = blocks.raw / "labelsTr" / f"case_{case}.nii.gz"
        path.write_bytes(path.read_bytes()[:-40])
    dataset, path = open_source_dataset(blocks.name), tmp_path / "real.json"
    with pytest.raises(UserError) as caught:
        measure(dataset, path)
    first, *failed, last = str(caught.value).splitlines()
    assert first.startswith("2 cases cannot be measured")
    assert [line.split(":")[0] for line in failed] == ["  case_1", "  case_2"]
    assert last.endswith("(`leave_out=case_1 case_2`)")
    assert [lesion["case"] for lesion in measure(dataset.without(["case_1", "case_2"]), path).lesions] == ["case_0"]


@pytest.mark.slow
def test_measuring_writes_nothing(blocks, tmp_path):
    dataset, path = open_source_dataset(blocks.name), tmp_path / "folder" / "real.json"
    found = measure_real_lesions(dataset, path, workers=0, on_case=lambda: None)
    assert list(tmp_path.iterdir()) == []
    write_real_lesions(path, dataset, found)
    assert read_real_lesions(path, dataset) == found
    assert read_real_lesions(path, open_source_dataset(blocks.name, organ="none")) == RealLesions((), {})


def test_a_file_of_other_measures_is_not_used(blocks, tmp_path):
    dataset, path = open_source_dataset(blocks.name), tmp_path / "real.json"
    found = measure(dataset, path)
    content = json.loads(path.read_text())
    assert content["measures"] == list(MEASURES) and set(MEASURES) <= set(content["lesions"][0])
    # as version 0.1.0 wrote it
    del content["measures"]
    content["lesions"] = [{"case": "case_0", "number": 1, "mean_hu": 0.0, "sd_hu": 1.0, "contrast_hu": None}]
    path.write_text(json.dumps(content))
    assert read_real_lesions(path, dataset) == RealLesions((), {})
    assert measure(dataset, path) == found


def test_lesions_of_a_few_voxels_are_no_models(blocks, tmp_path, monkeypatch):
    monkeypatch.setattr(real_lesions, "MIN_VOXELS", 51)
    assert measure(open_source_dataset(blocks.name), tmp_path / "real.json").lesions == ()


def test_borrowed_masks_are_axial(tmp_path):
    blocks = write_dataset(cases=1, shape=(40, 16, 24), spacing_mm=(2.0, 3.0, 1.0), direction=CORONAL)
    dataset = open_source_dataset(blocks.name)
    lesion = borrow(dataset, measure(dataset, tmp_path / "real.json").lesions[0])
    assert lesion.spacing_mm == (3.0, 2.0, 1.0)
    assert lesion.mask.shape == (2, 5, 3)


@pytest.fixture(scope="module")
def nnunet_model(planned):
    return save_model(nnUNetTrainer, planned)


def judge_of(folder, **options):
    return SegmenterModel.open(folder, **{"lesion_name": "tumour", "channels": 1, "fold": None} | options)


@pytest.mark.parametrize("oriented", [False, True])
def test_nnunet_itself_finds_what_it_finds_by_its_own_command(planned, nnunet_model, tmp_path, oriented):
    image = planned.raw / "imagesTr" / "phantom_000_0000.nii.gz"
    if oriented:
        turned = sitk.DICOMOrient(sitk.ReadImage(str(image)), "LIP")
        image = tmp_path / "phantom_000_0000.nii.gz"
        sitk.WriteImage(turned, str(image))
    volume, geometry = read_volume(image)
    segmenter = Segmenter(judge_of(nnunet_model), "cpu")
    found = segmenter.find_lesions([volume], geometry)
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(nnunet_model), (0,), "checkpoint_final.pth")
    (tmp_path / "out").mkdir()
    predictor.predict_from_files_sequential([[str(image)]], str(tmp_path / "out"))
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / "phantom_000.nii.gz"))) == 2
    assert found.shape == volume.shape
    assert 0 < expected.mean() < 1, "random weights call something lesion and something not"
    assert np.array_equal(found, expected)


def test_segmenters_that_cannot_judge_are_refused(planned, nnunet_model, tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        judge_of(tmp_path / "none")
    with pytest.raises(UserError, match="give the folder of a trained model"):
        judge_of(tmp_path)
    with pytest.raises(UserError, match=r"takes 1 channel, but the dataset has 2"):
        judge_of(nnunet_model, channels=2)
    with pytest.raises(UserError, match=r"no label 'nodule', only background, pancreas, tumour"):
        judge_of(nnunet_model, lesion_name="nodule")
    with pytest.raises(UserError, match=r"folds with a checkpoint_final\.pth: 0"):
        judge_of(nnunet_model, fold=3)
    recon_only = tmp_path / "nnUNetTrainerFVAEReconOnly__nnUNetPlans__3d_fullres"
    shutil.copytree(nnunet_model, recon_only)
    path = recon_only / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    torch.save(checkpoint | {"fvae_nnunet": {"trainer": nnUNetTrainerFVAEReconOnly.__name__, "view": None}}, path)
    with pytest.raises(UserError, match="has seen only reconstructions"):
        judge_of(recon_only)


def test_labels_of_several_values_count_together(nnunet_model, tmp_path):
    folder = tmp_path / nnunet_model.name
    shutil.copytree(nnunet_model, folder)
    content = json.loads((folder / "dataset.json").read_text())
    content["labels"]["both"] = [1, 2]
    (folder / "dataset.json").write_text(json.dumps(content))
    assert judge_of(folder, lesion_name="both").lesion_values == (1, 2)


def test_other_channels_reach_the_segmenter_as_they_are(tmp_path, monkeypatch):
    seen = {}

    class Recorder:
        def __init__(self, *arguments):
            pass

        def predict(self, inputs, output, *, scratch):
            images = inputs["synthetic"]["case"]
            seen.update({path.name: sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in images})
            sitk.WriteImage(sitk.ReadImage(str(images[0])) > 0, str(Path(output) / "case.nii.gz"))
            return {}

    monkeypatch.setattr("fvae_nnunet.nnunet.segmenter.Predictor", Recorder)
    pet = np.random.default_rng(0).random((3, 4, 5)).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(pet), str(tmp_path / "other_0001.nrrd"))
    model = type("Model", (), {"file_ending": ".nii.gz"})()
    geometry = Geometry((1.0, 1.0, 1.0), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel()))
    ct = np.arange(-30, 30, dtype=np.int16).reshape(3, 4, 5)
    found = Segmenter(SegmenterModel(model, (1,)), "cpu").find_lesions([ct, tmp_path / "other_0001.nrrd"], geometry)
    assert np.array_equal(found, ct > 0)
    assert np.array_equal(seen["case_0000.nii.gz"], ct)
    assert np.array_equal(seen["case_0001.nii.gz"], pet)
