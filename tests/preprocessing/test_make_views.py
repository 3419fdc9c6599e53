import re
import shutil
from pathlib import Path

import blosc2
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from datasets_for_tests import Dataset
from identity_vae import IdentityVAE
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from preprocessing_for_tests import arrays, assert_view_is_nnunets_own
from views_for_tests import WIDE_HU_WINDOW, BrighterVAE, make_view

from fvae_nnunet.ct.files import find_images
from fvae_nnunet.errors import UserError
from fvae_nnunet.jobs.manifest import Manifest
from fvae_nnunet.jobs.pipeline import StageSeconds
from fvae_nnunet.nnunet.ct_channels import find_ct_channels
from fvae_nnunet.preprocessing.dataset import open_preprocessed_dataset
from fvae_nnunet.preprocessing.make_views import files_by_name
from fvae_nnunet.reconstruction.folder import reconstruct_folder
from fvae_nnunet.reconstruction.settings import ReconstructionSettings


def test_an_identity_vae_gives_nnunets_own_arrays_for_every_configuration(clone):
    folders = make_view(clone)
    assert_view_is_nnunets_own(folders, clone)
    taken = sum(path.stat().st_size for folder in folders.values() for path in folder.glob("*.b2nd"))
    assert taken == pytest.approx(open_preprocessed_dataset(clone.id).view_bytes, rel=0.02)


def pad_with_zeros(dataset):
    for path in (dataset.raw / "imagesTr").iterdir():
        image = sitk.GetArrayFromImage(source := sitk.ReadImage(str(path)))
        image[:4], image[:, -9:] = 0, 0
        changed = sitk.GetImageFromArray(image)
        changed.CopyInformation(source)
        sitk.WriteImage(changed, str(path))


@pytest.mark.slow
def test_resampled_transposed_and_cropped_cases_too(clone):
    plans = clone.plans
    plans["transpose_forward"], plans["transpose_backward"] = [1, 0, 2], [1, 0, 2]
    plans["configurations"]["3d_fullres"]["spacing"] = [1.7, 3.5, 2.2]
    clone.write_plans(plans)
    pad_with_zeros(clone)
    clone.preprocess("3d_fullres")
    folders = make_view(clone, configurations=["3d_fullres"])
    shape = next(iter(arrays(folders["3d_fullres"]).values())).shape
    assert shape == (1, round(39 * 2 / 1.7), round(20 * 3 / 3.5), round(48 * 2 / 2.2))
    assert_view_is_nnunets_own(folders, clone)


@pytest.mark.slow
def test_nnunet_preprocesses_reconstructed_images_to_the_view_also_if_zeros_are_cropped(clone, tmp_path):
    pad_with_zeros(clone)
    clone.preprocess("3d_fullres")
    vae = BrighterVAE()
    view = arrays(make_view(clone, vae, configurations=["3d_fullres"])["3d_fullres"])
    settings = ReconstructionSettings.for_vae(vae.spec, hu_window=WIDE_HU_WINDOW)
    images = find_images(clone.raw / "imagesTr")
    outcomes = reconstruct_folder(
        images, tmp_path, vae, settings=settings, workers=0, seconds=StageSeconds(), made_with={}
    )
    assert not [outcome.error for outcome in outcomes if outcome.error]
    manager = PlansManager(clone.plans)
    configuration = manager.get_configuration("3d_fullres")
    for name, array in view.items():
        file = str(tmp_path / f"{name.removesuffix('.b2nd')}_0000.nii.gz")
        data, _, properties = configuration.preprocessor_class(verbose=False).run_case(
            [file], None, manager, configuration, clone.dataset_json
        )
        assert np.array_equal(data, array) and properties["bbox_used_for_cropping"][0][0] == 4


@pytest.mark.slow
def test_a_second_channel_normalised_inside_its_mask_is_copied(clone):
    content = clone.dataset_json
    content["channel_names"] = {"0": "MR", "1": "CT"}
    clone.write_dataset_json(content)
    for path in sorted((clone.raw / "imagesTr").glob("*_0000.nii.gz")):
        image = sitk.ReadImage(str(path))
        shutil.copy(path, str(path).replace("_0000", "_0001"))
        changed = sitk.Cast(image > 0, sitk.sitkInt16) * 7 + image
        sitk.WriteImage(changed, str(path))
    plans = clone.plans
    conf = plans["configurations"]["3d_fullres"]
    conf["normalization_schemes"], conf["use_mask_for_norm"] = ["ZScoreNormalization", "CTNormalization"], [True, False]
    intensities = plans["foreground_intensity_properties_per_channel"]
    intensities["1"] = intensities["0"]
    del plans["configurations"]["2d"]
    clone.write_plans(plans)
    clone.preprocess("3d_fullres")
    assert open_preprocessed_dataset(clone.id, configurations=["3d_fullres"]).ct_channels == [1]
    assert_view_is_nnunets_own(make_view(clone, configurations=["3d_fullres"]), clone)

    brighter = arrays(make_view(clone, BrighterVAE(), view="brighter", configurations=["3d_fullres"])["3d_fullres"])
    for name, raw in arrays(clone.preprocessed / "nnUNetPlans_3d_fullres").items():
        assert np.array_equal(brighter[name][0], raw[0])
        assert (brighter[name][1] >= raw[1]).all()
        assert (brighter[name][1] > raw[1]).any()


def test_the_view_is_brighter_by_the_hu_that_the_vae_adds(clone):
    # CTNormalization divides by the foreground's sd, so 60 HU more are 60 / sd more where nothing is clipped
    folder = make_view(clone, BrighterVAE(), configurations=["3d_fullres"])["3d_fullres"]
    foreground = clone.plans["foreground_intensity_properties_per_channel"]["0"]
    low, high = (
        (foreground[key] - foreground["mean"]) / foreground["std"] for key in ("percentile_00_5", "percentile_99_5")
    )
    for name, raw in arrays(clone.preprocessed / "nnUNetPlans_3d_fullres").items():
        view = arrays(folder)[name]
        inside = (raw > low + 1e-3) & (view < high - 1e-3)
        assert inside.sum() > 100
        np.testing.assert_allclose((view - raw)[inside], 60 / foreground["std"], atol=1e-3)


@pytest.mark.slow
def test_a_non_axial_first_image_is_reconstructed_in_axial_slices(clone):
    path = sorted((clone.raw / "imagesTr").iterdir())[0]
    for folder in ("imagesTr", "labelsTr"):
        for file in (clone.raw / folder).iterdir():
            sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(file)), "LIP"), str(file))
    clone.preprocess("3d_fullres")
    vae = IdentityVAE()
    make_view(clone, vae, configurations=["3d_fullres"])
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(path))).shape == (48, 24, 48)
    assert {window[3:] for window in vae.windows} == {(48, 48)}


@pytest.mark.slow
def test_a_sheared_dataset_is_read_with_the_reader_of_its_plans(clone):
    clone.write_plans(clone.plans | {"image_reader_writer": "NibabelIO"})
    for path in [*(clone.raw / "imagesTr").iterdir(), *(clone.raw / "labelsTr").iterdir()]:
        image = nibabel.load(path)
        affine = image.affine.copy()
        affine[1, 2] += 0.4
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), affine), path)
    clone.preprocess("3d_fullres")
    assert_view_is_nnunets_own(make_view(clone, configurations=["3d_fullres"]), clone)


@pytest.mark.slow
def test_images_and_labels_that_nnunet_misreads_or_passes_over_are_named(clone):
    images, labels = (sorted((clone.raw / folder).iterdir()) for folder in ("imagesTr", "labelsTr"))
    for path in (images[0], labels[1]):
        array = np.asarray(nibabel.load(path).dataobj).astype(np.float32)
        array[0, 0, 0] = np.nan
        nibabel.save(nibabel.Nifti1Image(array, nibabel.load(path).affine), path)
    for path in (images[0], labels[1]):
        with pytest.raises(UserError, match=f"{re.escape(str(path))}: 1 of 55296 voxels are not finite"):
            make_view(clone, configurations=["3d_fullres"])
        shutil.copy(labels[2] if path in labels else images[2], path)
    link = clone.raw / "imagesTr" / "late_0000.nii.gz"
    link.symlink_to("/nowhere.nii.gz")
    with pytest.raises(UserError, match=r"late_0000\.nii\.gz is a broken link"):
        open_preprocessed_dataset(clone.name)
    link.rename(clone.raw / "imagesTr" / "late_0000.NII.GZ")
    with pytest.raises(UserError, match=r"would be left out: late_0000\.NII\.GZ"):
        open_preprocessed_dataset(clone.name)


@pytest.mark.slow
def test_finished_cases_are_left_alone_and_damaged_or_changed_ones_made_again(clone):
    folder = make_view(clone, configurations=["3d_fullres"])["3d_fullres"]
    whole = {path.name: path.read_bytes() for path in folder.glob("*.b2nd")}
    cut, gone, changed, untouched = sorted(folder.glob("*.b2nd"))[:4]
    cut.write_bytes(cut.read_bytes()[:-1])
    gone.unlink()
    image_path = clone.raw / "imagesTr" / f"{changed.stem}_0000.nii.gz"
    image = sitk.ReadImage(str(image_path))
    sitk.WriteImage(image + 5, str(image_path))
    stamp = untouched.stat().st_mtime_ns
    vae = IdentityVAE(slice_stride=4, slice_offset=1, window_slices=9, causal=True)
    make_view(clone, vae, configurations=["3d_fullres"])
    assert len({window[0] for window in vae.windows}) == 1
    assert untouched.stat().st_mtime_ns == stamp
    assert {cut.read_bytes(), gone.read_bytes()} == {whole[cut.name], whole[gone.name]}
    assert changed.read_bytes() != whole[changed.name]


def test_channel_files_of_equal_names_are_told_apart(tmp_path):
    ct, mr = tmp_path / "ct" / "a.nii.gz", tmp_path / "mr" / "a.nii.gz"
    assert files_by_name([ct, mr]) == {"channel 0: a.nii.gz": ct, "channel 1: a.nii.gz": mr}
    assert files_by_name([ct, mr.with_name("b.nii.gz")]) == {"a.nii.gz": ct, "b.nii.gz": mr.with_name("b.nii.gz")}


@pytest.mark.slow
def test_workers_make_the_same_bytes_as_one_process(clone):
    alone = make_view(clone, view="alone")
    together = make_view(clone, view="together", workers=2)
    for configuration in alone:
        files = {path.relative_to(alone[configuration]) for path in alone[configuration].rglob("*") if path.is_file()}
        assert files == {
            path.relative_to(together[configuration]) for path in together[configuration].rglob("*") if path.is_file()
        }
        for file in files - {Path("manifest.json")}:
            assert (alone[configuration] / file).read_bytes() == (together[configuration] / file).read_bytes()


@pytest.mark.slow
def test_other_settings_for_the_same_view_are_refused_by_name_and_overwrite_makes_it_anew(clone):
    folder = make_view(clone, configurations=["3d_fullres"])["3d_fullres"]
    with pytest.raises(UserError, match=r"hu_window: \[-3000\.0, 3000\.0\], now \[-160\.0, 240\.0\]"):
        make_view(clone, configurations=["3d_fullres"], hu_window=(-160, 240))
    with pytest.raises(UserError, match="was made with other settings"):
        make_view(clone, hu_window=(-160, 240))
    assert not list(clone.preprocessed.glob("nnUNetPlans_2d__fvae_*")), "all views begin, or none"
    make_view(clone, configurations=["3d_fullres"], hu_window=(-160, 240), overwrite=True)
    assert Manifest(folder).read()["settings"]["hu_window"] == [-160.0, 240.0]


@pytest.mark.slow
def test_cascade_and_fullres_share_one_view(clone):
    plans = clone.plans
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    clone.write_plans(plans)
    assert list(open_preprocessed_dataset(clone.id).data_folders) == ["2d", "3d_fullres"]
    assert list(open_preprocessed_dataset(clone.id, configurations=["3d_cascade_fullres"]).data_folders) == [
        "3d_cascade_fullres"
    ]


def test_ct_channels_by_name_or_by_normalisation():
    plans = {"configurations": {"2d": {"normalization_schemes": ["ZScoreNormalization", "CTNormalization"]}}}
    assert find_ct_channels({"channel_names": {"0": "ct", "1": "PET"}}, plans) == [0, 1]
    assert find_ct_channels({"modality": {"0": "MR", "1": "low dose"}}, plans) == [1]
    with pytest.raises(UserError, match="no channel is CT"):
        find_ct_channels(
            {"channel_names": {"0": "T1"}}, {"configurations": {"2d": {"normalization_schemes": ["noNorm"]}}}
        )


@pytest.mark.slow
def test_what_is_missing_is_said_with_the_command_that_makes_it(clone, monkeypatch):
    def error(*arguments, **keywords):
        with pytest.raises(UserError) as raised:
            open_preprocessed_dataset(*arguments, **keywords)
        return str(raised.value)

    of_other_plans = error(clone.id, plans_name="nnUNetResEncUNetLPlans")
    assert "existing plans: nnUNetPlans. Choose one with `plans_name`" in of_other_plans
    assert "configurations: 2d, 3d_fullres" in error(clone.id, configurations=["3d_lowres"])
    assert "no dataset 899" in error("899")
    assert "neither a dataset id" in error("Pancreas")
    next((clone.preprocessed / "nnUNetPlans_2d").glob("*.pkl")).unlink()
    assert "not preprocessed" in error(clone.id)
    shutil.rmtree(clone.preprocessed / "nnUNetPlans_2d")
    assert list(open_preprocessed_dataset(clone.id).data_folders) == ["3d_fullres"]
    assert "nnUNetv2_preprocess" in error(clone.id, configurations=["2d"])
    removed = next((clone.raw / "imagesTr").iterdir())
    removed.unlink()
    assert "without a raw image" in error(clone.id)
    (clone.preprocessed / "nnUNetPlans.json").unlink()
    assert "run first: nnUNetv2_plan_and_preprocess" in error(clone.id)
    monkeypatch.delenv("nnUNet_raw")
    assert "export nnUNet_raw=" in error(clone.id)
    monkeypatch.setenv("nnUNet_raw", str(clone.raw / "nowhere"))
    assert "which is not a folder" in error(clone.id)


def test_an_ambiguous_id_is_refused(clone):
    other = Dataset(f"Dataset{int(clone.id):03d}_Twin")
    other.raw.mkdir()
    with pytest.raises(UserError, match="could be"):
        open_preprocessed_dataset(clone.id)
    assert open_preprocessed_dataset(clone.name).name == clone.name
    other.raw.rmdir()


def test_another_preprocessor_is_refused(clone):
    plans = clone.plans
    plans["configurations"]["3d_fullres"]["preprocessor_name"] = "SomebodysPreprocessor"
    clone.write_plans(plans)
    with pytest.raises(UserError, match="SomebodysPreprocessor"):
        open_preprocessed_dataset(clone.id, configurations=["3d_fullres"])


def test_a_raw_array_of_another_shape_is_noticed(clone):
    array = sorted((clone.preprocessed / "nnUNetPlans_3d_fullres").glob("*[0-9].b2nd"))[0]
    raw = blosc2.open(str(array), mode="r")[:, :-1]
    array.unlink()
    blosc2.asarray(np.ascontiguousarray(raw), urlpath=str(array))
    with pytest.raises(UserError, match="preprocess the dataset again"):
        make_view(clone, configurations=["3d_fullres"])
