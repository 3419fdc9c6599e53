"""What can be HU and what cannot: volumes, fingerprints, and the commands that reconstruct."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
from phantoms import make_phantom

from fvae_nnunet.cli import preprocess, reconstruct, train_ldm
from fvae_nnunet.ct.hounsfield import check_volume_hu, implausible_foreground, implausible_volume
from fvae_nnunet.errors import UserError
from fvae_nnunet.nnunet import registration
from fvae_nnunet.synthesis.sources.dataset import open_source_dataset
from fvae_nnunet.training.ct_patches import CTPatches

SCALED, OFFSET, OTHER = "seems to be scaled", "offset of 1000 or 1024", "seems not to be CT"


@pytest.fixture(scope="module", params=["pancreas", "lung"])
def hu(request):
    return make_phantom(request.param, seed=3, shape=(24, 48, 48))[0].astype(np.float32)


def _crop(hu):
    """Without air: the middle of the body."""
    return hu[2:10, 20:40, 14:34] if (hu[2:10, 20:40, 14:34] > -300).all() else hu.clip(-200, 300)


GOOD = {
    "as it is": lambda hu: hu,
    "int16": lambda hu: hu.astype(np.int16),
    "without air": _crop,
    "clipped to -160 to 240": lambda hu: hu.clip(-160, 240),
    "clipped to -200 to 300": lambda hu: hu.clip(-200, 300),
    "clipped to -1000 to 1000": lambda hu: hu.clip(-1000, 1000),
    "padded with -2000": lambda hu: np.where(hu < -980, -2000, hu),
    "padded with -3024": lambda hu: np.where(hu < -980, -3024, hu),
    "0 outside of the body": lambda hu: np.where(hu < -500, 0, hu),
    "metal": lambda hu: np.where(np.indices(hu.shape).sum(0) % 97 == 0, 3071, hu),
    "without noise": lambda hu: np.rint(hu / 20) * 20,
}
BAD = {
    "0 to 1": (lambda hu: ((hu + 1000) / 2000).clip(0, 1), SCALED),
    "0 to 1 of a window": (lambda hu: ((hu + 160) / 400).clip(0, 1), SCALED),
    "-1 to 1": (lambda hu: (hu / 1000).clip(-1, 1), SCALED),
    "0 to 255": (lambda hu: ((hu + 1000) / 2000 * 255).clip(0, 255).astype(np.uint8), SCALED),
    "0 to 255 of a window": (lambda hu: np.rint(((hu + 160) / 400 * 255).clip(0, 255)), SCALED),
    "hundredth": (lambda hu: hu * 0.01, SCALED),
    "standardised": (lambda hu: (hu - hu.mean()) / hu.std(), SCALED),
    "standardised by the foreground": (lambda hu: (hu - 90) / 30, OTHER),
    "+1000": (lambda hu: (hu + 1000).clip(0), OFFSET),
    "+1024, unsigned": (lambda hu: (hu + 1024).clip(0).astype(np.uint16), OFFSET),
    "+1000, signed": (lambda hu: hu + 1000, OFFSET),
    "+1024, padded": (lambda hu: np.where(hu < -1000, -2000, hu) + 1024, OFFSET),
    "sign turned": (lambda hu: -hu, OFFSET),
    "+32768": (lambda hu: hu + 32768, OTHER),
    "offset applied twice": (lambda hu: hu - 1024, OTHER),
    "tenfold": (lambda hu: hu * 10, OTHER),
    "SUV": (lambda hu: np.where(hu > -300, np.random.default_rng(0).gamma(2, 0.7, hu.shape), 0), SCALED),
    "Bq/ml": (lambda hu: np.where(hu > -300, np.random.default_rng(0).gamma(2, 3e3, hu.shape), 0), OTHER),
}


@pytest.mark.parametrize("change", GOOD.values(), ids=GOOD)
def test_ct_stays_ct_however_it_was_cut(hu, change):
    assert implausible_volume(change(hu)) is None


@pytest.mark.parametrize(("change", "cause"), BAD.values(), ids=BAD)
def test_what_is_no_hu_is_recognised_with_its_cause(hu, change, cause):
    reason = implausible_volume(change(hu))
    assert reason is not None and (cause in reason or cause == OTHER)
    with pytest.raises(UserError, match=r"^scan.nii cannot be in HU: .*\d.*`hu_as_is=True`$"):
        check_volume_hu(change(hu), "scan.nii")


def test_one_value_none_and_not_finite_ones_are_left_to_others():
    for volume in (np.full((2, 2, 2), 7), np.zeros((0, 3, 3)), np.array([0.5, np.nan])):
        assert implausible_volume(volume) is None


def test_a_brain_cut_out_is_ct_also_in_its_own_window():
    rng = np.random.default_rng(0)
    brain = np.where(rng.random((8, 40, 40)) < 0.6, rng.normal(32, 8, (8, 40, 40)), 0)
    assert implausible_volume(np.rint(brain)) is None
    assert implausible_volume(np.rint(brain.clip(0, 80))) is None


def _foreground(values):
    names = ("mean", "std", "median", "min", "max")
    found = [function(values) for function in (np.mean, np.std, np.median, np.min, np.max)]
    low, high = np.percentile(values, (0.5, 99.5))
    return dict(zip(names, found, strict=True)) | {"percentile_00_5": low, "percentile_99_5": high}


FOREGROUNDS = {
    "soft tissue": (34, 72),
    "liver with contrast": (105, 20),
    "lung nodules": (-300, 350),
    "bone": (450, 300),
    "metal": (2500, 400),
    "brain": (32, 8),
}


@pytest.mark.parametrize(("mean", "sd"), FOREGROUNDS.values(), ids=FOREGROUNDS)
def test_foregrounds_of_ct(mean, sd):
    values = np.rint(np.random.default_rng(0).normal(mean, sd, 20000))
    assert implausible_foreground(_foreground(values.clip(-1024, 3071))) is None


def test_foregrounds_that_are_no_hu():
    rng = np.random.default_rng(0)
    tissue = rng.normal(34, 72, 20000)
    for values, cause in (
        ((tissue + 1000) / 2000, SCALED),
        (tissue / 1000, SCALED),
        ((tissue + 1000) / 2000 * 255, SCALED),
        ((tissue - tissue.mean()) / tissue.std(), SCALED),
        (rng.gamma(2, 3, 20000), SCALED),
        (rng.gamma(4, 2, 20000) * 5, None),
        (tissue + 1000, OFFSET),
        (tissue + 1024, OFFSET),
        (tissue + 32768, OTHER),
        (tissue * 10 - 10000, OTHER),
    ):
        reason = implausible_foreground(_foreground(values))
        assert reason is None if cause is None else cause in reason


def _scale_fingerprint(dataset, channel="0"):
    plans = dataset.plans
    properties = plans["foreground_intensity_properties_per_channel"]
    properties[channel] = {name: (value + 1000) / 2000 for name, value in properties["0"].items()}
    properties[channel]["std"] = properties["0"]["std"] / 2000
    dataset.write_plans(plans)


def _rewrite(path, change):
    image = sitk.ReadImage(str(path))
    changed = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(image)))
    changed.CopyInformation(image)
    sitk.WriteImage(changed, str(path))


def test_preprocess_refuses_a_fingerprint_that_is_no_hu_before_any_work(clone, monkeypatch, capsys):
    _scale_fingerprint(clone)
    monkeypatch.setattr(preprocess, "load", lambda arguments: pytest.fail("work was begun"))
    assert preprocess.main([clone.id, "--vae", "tiny", "-np", "0"]) == 1
    err = capsys.readouterr().err
    assert "channel 0 (CT) cannot be in HU: 99 % of the foreground is between 0.4" in err and "--hu-as-is" in err
    assert not list(clone.preprocessed.glob("*__fvae_*"))


@pytest.mark.slow
def test_preprocess_refuses_each_volume_that_is_no_hu_unless_told_to_take_it(clone, monkeypatch, capsys):
    monkeypatch.setattr(registration, "is_found_by_nnunet", lambda trainer="nnUNetTrainerFVAE": True)
    image = sorted((clone.raw / "imagesTr").iterdir())[2]
    _rewrite(image, lambda hu: (hu + 1024).clip(0).astype(np.uint16))
    command = [clone.id, "-c", "2d", "--vae", "control:identity", "-np", "0"]
    assert preprocess.main(command) == 1
    said = capsys.readouterr()
    assert f"FAILED: {image} cannot be in HU" in said.err and OFFSET in said.err
    assert "4 cases done" in said.out and "train with" not in said.out
    assert preprocess.main([*command, "--hu-as-is"]) == 0
    assert "1 case done" in capsys.readouterr().out
    assert preprocess.main([*command, "--hu-as-is", "--view", "other"]) == 0
    record = json.loads((clone.preprocessed / "nnUNetPlans_2d__fvae_other" / "manifest.json").read_text())
    assert record["made_with"]["parameters"]["hu_as_is"] is True


@pytest.mark.slow
def test_pet_that_is_called_ct_is_left_out_by_naming_the_channels(clone, monkeypatch, capsys):
    monkeypatch.setattr(registration, "is_found_by_nnunet", lambda trainer="nnUNetTrainerFVAE": True)
    clone.write_dataset_json(clone.dataset_json | {"channel_names": {"CT": "CT", "PET": "CT"}})
    for path in sorted((clone.raw / "imagesTr").iterdir()):
        pet = path.with_name(path.name.replace("_0000", "_0001"))
        pet.write_bytes(path.read_bytes())
        _rewrite(pet, lambda hu: np.abs(hu / 100).astype(np.float32))
    _scale_fingerprint(clone, "1")
    plans = clone.plans
    del plans["configurations"]["3d_fullres"]
    plans["configurations"]["2d"] |= {
        "normalization_schemes": ["CTNormalization"] * 2,
        "use_mask_for_norm": [False] * 2,
    }
    clone.write_plans(plans)
    clone.preprocess("2d")
    command = [clone.id, "--vae", "control:identity", "-np", "0"]
    assert preprocess.main(command) == 1
    said = capsys.readouterr()
    assert said.out.startswith("channels reconstructed: 0 (CT), 1 (CT); copied: none\n")
    assert "channel 1 (CT) cannot be in HU" in said.err and "(--channels, with the numbers of the others)" in said.err
    assert preprocess.main([*command, "--channels", "0"]) == 0
    assert capsys.readouterr().out.startswith("channels reconstructed: 0 (CT); copied: 1 (CT)\n")
    record = json.loads((clone.preprocessed / "nnUNetPlans_2d__fvae_control-identity" / "manifest.json").read_text())
    assert record["settings"]["ct_channels"] == [0] and record["made_with"]["parameters"]["channels"] == [0]


def test_reconstruct_refuses_what_is_no_hu_and_does_the_rest(tmp_path, capsys):
    hu = make_phantom("pancreas", seed=0, shape=(12, 32, 32))[0]
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name, array in (("a.nii.gz", hu), ("b.mha", hu + np.int16(1024)), ("c.nrrd", hu.astype(np.float32) / 1000)):
        sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / name))
    command = ["-i", str(folder), "-o", str(output), "--vae", "control:identity", "-np", "0"]
    assert reconstruct.main(command) == 1
    err = capsys.readouterr().err
    assert f"{folder / 'b.mha'} cannot be in HU" in err and f"{folder / 'c.nrrd'} cannot be in HU" in err
    assert sorted(path.name for path in output.iterdir() if path.is_file()) == ["a.nii.gz"]
    assert reconstruct.main([*command, "--hu-as-is"]) == 0
    assert {"b.mha", "c.nrrd"} < {path.name for path in output.iterdir()}


def test_patches_of_plans_that_are_no_hu_are_refused_unless_the_trainer_takes_them(clone):
    _scale_fingerprint(clone)
    with pytest.raises(UserError, match=r"channel 0 \(CT\) cannot be in HU.*hu_as_is = True in a subclass"):
        CTPatches.of_plans(clone.plans, "3d_fullres", clone.dataset_json)
    (channel,) = CTPatches.of_plans(clone.plans, "3d_fullres", clone.dataset_json, hu_as_is=True).channels
    assert channel.upper_hu < 1


@pytest.mark.slow
def test_synthesis_refuses_images_and_fingerprints_that_are_no_hu(clone, capsys):
    case = open_source_dataset(clone.id).cases[0]
    image = clone.raw / "imagesTr" / f"{case}_0000.nii.gz"
    _rewrite(image, lambda hu: hu + np.int16(1024))
    with pytest.raises(UserError, match="offset of 1000 or 1024"):
        open_source_dataset(clone.id).read(case)
    assert open_source_dataset(clone.id, hu_as_is=True).read(case).volume_hu.min() > -200
    _scale_fingerprint(clone)
    with pytest.raises(UserError, match=r"channel 0 \(CT\) cannot be in HU"):
        open_source_dataset(clone.id)
    assert train_ldm.main([clone.id, "--vae", "tiny", "-device", "cpu"]) == 1
    assert "channel 0 (CT) cannot be in HU" in capsys.readouterr().err
    clone.write_dataset_json(clone.dataset_json | {"channel_names": {"a": "CT", "b": "CT"}})
    with pytest.raises(UserError, match=r"2 CT channels .* choose it with `channels=0`"):
        open_source_dataset(clone.id, hu_as_is=True)
    assert open_source_dataset(clone.id, hu_as_is=True, channels=[0]).ct_channel == 0
