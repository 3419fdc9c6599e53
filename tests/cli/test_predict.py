"""fvae-predict against the two-step use of fvae-reconstruct and nnU-Net's own commands, to the bit.

Networks have random weights; nnU-Net runs without processes (-npp 0 -nps 0) where the test is not marked slow.
"""

import json
import multiprocessing.dummy
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from batchgenerators.utilities.file_and_folder_operations import load_pickle
from datasets_for_tests import clone_of
from nnunetv2.ensembling import ensemble
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from prediction_for_tests import save_model
from views_for_tests import make_view

from fvae_nnunet.cli import command, predict, reconstruct
from fvae_nnunet.ct.files import read_volume
from fvae_nnunet.nnunet import predictor
from fvae_nnunet.nnunet.trained_model import open_model
from fvae_nnunet.reconstruction import folder as folder_reconstruction
from fvae_nnunet.reconstruction.noise_reduction import denoised_to, noise_of_image_hu
from fvae_nnunet.reconstruction.settings import ReconstructionSettings
from fvae_nnunet.trainers import (
    nnUNetTrainerFVAE,
    nnUNetTrainerFVAEReconOnly,
    nnUNetTrainerFVAEReconOnly_5epochs,
)
from fvae_nnunet.training import image_noise
from fvae_nnunet.vae import load_vae
from fvae_nnunet.vae.registry import TINY_FOLDER

HERE = ["-npp", "0", "-nps", "0", "-device", "cpu", "--disable_tta", "-f", "0"]
ARGUMENTS = predictor.ARGUMENTS_FILE
NNUNET = tuple(map(int, version("nnunetv2").split(".")[:2]))


@pytest.fixture(scope="module")
def dataset(planned):
    """A dataset with a view of the embedded VAE."""
    dataset = clone_of(planned)
    make_view(dataset, load_vae("tiny"), configurations=["3d_fullres"], hu_window=(-1000.0, 1000.0))
    return dataset


@pytest.fixture(scope="module")
def recon_only(dataset):
    return save_model(nnUNetTrainerFVAEReconOnly, dataset)


@pytest.fixture(scope="module")
def mixed(dataset):
    return save_model(nnUNetTrainerFVAE, dataset)


@pytest.fixture
def images(dataset, tmp_path):
    """Two cases."""
    folder = tmp_path / "images"
    folder.mkdir()
    for path in [*(dataset.raw / "imagesTs").iterdir(), *sorted((dataset.raw / "imagesTr").iterdir())[:1]]:
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def two_steps(monkeypatch):
    """nnU-Net's own commands in this process."""

    def call(entry_point, *arguments):
        threads = torch.get_num_threads()
        monkeypatch.setattr(sys, "argv", ["nnUNetv2", *map(str, arguments)])
        entry_point()
        torch.set_num_threads(threads)

    threads_for_processes = SimpleNamespace(get_context=lambda kind: multiprocessing.dummy)
    monkeypatch.setattr(ensemble, "multiprocessing", threads_for_processes)
    return SimpleNamespace(
        predict=lambda model, *arguments: call(
            predict_from_raw_data.predict_entry_point, *model_options(model), *HERE, *arguments
        ),
        ensemble=lambda *arguments: call(ensemble.entry_point_ensemble_folders, *arguments),
    )


def model_options(model):
    trainer, plans, configuration = model.name.split("__")
    return ["-d", model.parent.name, "-tr", trainer, "-p", plans, "-c", configuration]


def run(model, images, output, *arguments):
    return predict.main(["-m", str(model), "-i", str(images), "-o", str(output), *HERE, *map(str, arguments)])


def reconstruct_by_hand(images, output, *arguments):
    assert reconstruct.main(["-i", str(images), "-o", str(output), "--vae", "tiny", "-np", "0", *arguments]) == 0


def contents(folder):
    """File contents by name; of ``.npz`` and ``.pkl`` what they hold, since nnU-Net's bytes differ from run to run."""
    found = {}
    for path in folder.iterdir():
        if path.suffix == ".npz":
            found[path.name] = np.load(path)["probabilities"].tobytes()
        elif path.suffix == ".pkl":
            found[path.name] = repr(load_pickle(str(path)))
        elif path.name != ARGUMENTS:
            found[path.name] = path.read_bytes()
    return found


def labels(folder):
    return {path.name: sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in sorted(folder.glob("*.nii.gz"))}


def voxels_apart(folder, other):
    return sum(int((labels(folder)[name] != labels(other)[name]).sum()) for name in labels(folder))


def is_clean(output):
    return not [path for path in output.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_a_model_of_recon_only_predicts_from_the_view_as_in_two_steps(recon_only, images, tmp_path, two_steps):
    assert run(recon_only, images, tmp_path / "ours", "--save_probabilities") == 0
    reconstruct_by_hand(images, tmp_path / "view")
    theirs = tmp_path / "theirs"
    two_steps.predict(recon_only, "-i", tmp_path / "view", "-o", theirs, "--save_probabilities")
    assert contents(tmp_path / "ours") == contents(theirs)
    assert len(contents(theirs)) == 2 * 3 + 2
    ours, nnunets = (json.loads((folder / ARGUMENTS).read_text()) for folder in (tmp_path / "ours", theirs))
    record = ours.pop("fvae_nnunet")
    assert record["inputs"] == ["view"]
    assert record["view"]["vae"] == "tiny"
    assert ours.pop("list_of_lists_or_source_folder") == str(images)
    assert nnunets.pop("list_of_lists_or_source_folder") == str(tmp_path / "view")
    assert ours.pop("output_folder_or_list_of_truncated_output_files") == str(tmp_path / "ours")
    del nnunets["output_folder_or_list_of_truncated_output_files"]
    assert ours == nnunets

    two_steps.predict(recon_only, "-i", images, "-o", tmp_path / "raw")
    assert voxels_apart(tmp_path / "raw", theirs) > 0, "the comparison above could not have failed"


@pytest.mark.slow
def test_raw_and_view_are_averaged_as_nnunets_ensemble_does(mixed, images, tmp_path, two_steps, monkeypatch):
    monkeypatch.setattr(predictor, "MEAN_CASES", 1)
    reconstruct_by_hand(images, tmp_path / "images_view")
    for name, folder in (("raw", images), ("view", tmp_path / "images_view")):
        two_steps.predict(mixed, "-i", folder, "-o", tmp_path / name, "--save_probabilities")
    for extra, theirs_extra in (["--save_probabilities"], ["--save_npz"]), ([], []):
        ours, theirs = tmp_path / f"ours{len(extra)}", tmp_path / f"theirs{len(extra)}"
        assert run(mixed, images, ours, "--tta", "raw,view", *extra) == 0
        two_steps.ensemble("-i", tmp_path / "raw", tmp_path / "view", "-o", theirs, "-np", "1", *theirs_extra)
        expected = contents(theirs)
        assert len(expected) == 2 * (3 if extra else 1) + 1
        assert contents(ours) == expected | {"plans.json": (tmp_path / "raw" / "plans.json").read_bytes()}
        assert json.loads((ours / ARGUMENTS).read_text())["fvae_nnunet"]["inputs"] == ["raw", "view"]
        for other in ("raw", "view"):
            assert voxels_apart(ours, tmp_path / other) > 0


def test_other_models_predict_from_raw_as_nnunet_and_load_no_vae(mixed, images, tmp_path, two_steps, monkeypatch):
    monkeypatch.setattr(command, "load", lambda arguments: pytest.fail("loaded a VAE"))
    output = tmp_path / "out"
    two_steps.predict(mixed, "-i", images, "-o", output)
    theirs, arguments = contents(output), (output / ARGUMENTS).read_bytes()
    shutil.rmtree(output)
    assert run(mixed, images, output) == 0
    assert contents(output) == theirs
    assert (output / ARGUMENTS).read_bytes() == arguments


def test_recon_only_on_raw_is_possible_with_a_warning(recon_only, images, tmp_path, two_steps, capsys):
    assert run(recon_only, images, tmp_path / "ours", "--tta", "raw") == 0
    assert "warning: the model has seen only the view (nnUNetTrainerFVAEReconOnly)" in capsys.readouterr().err
    two_steps.predict(recon_only, "-i", images, "-o", tmp_path / "theirs")
    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")


@pytest.fixture
def of_nnunet(dataset, images):
    """A model of nnU-Net's own trainer; one of the two images has noise of 60 HU."""
    path = sorted(images.iterdir())[0]
    image = sitk.ReadImage(str(path))
    noise_hu = np.random.default_rng(0).normal(0, 60, image.GetSize()[::-1])
    noisy = sitk.GetImageFromArray(np.rint(sitk.GetArrayFromImage(image) + noise_hu).astype(np.int16))
    noisy.CopyInformation(image)
    sitk.WriteImage(noisy, str(path))
    model = save_model(nnUNetTrainer, dataset)
    (model / image_noise.NOISE_FILE).unlink(missing_ok=True)
    return model


def test_images_noisier_than_those_of_the_training_are_denoised_to_their_noise(
    of_nnunet, dataset, images, tmp_path, two_steps, capsys, monkeypatch
):
    assert run(of_nnunet, images, tmp_path / "ours", "--tta", "denoised") == 0
    noisy, _ = sorted(path.name for path in images.iterdir())
    training = {
        path.name.removesuffix("_0000.nii.gz"): {
            "bytes": path.stat().st_size,
            "noise_hu": noise_of_image_hu(*read_volume(path)),
        }
        for path in (dataset.raw / "imagesTr").iterdir()
    }
    assert json.loads((of_nnunet / image_noise.NOISE_FILE).read_text()) == {"channels": {"0": training}}
    median_hu = float(np.median([of_case["noise_hu"] for of_case in training.values()]))
    said = capsys.readouterr().out
    assert f"denoised: 1 of 2 images, to the noise of the training ({median_hu:.1f} HU)" in said
    assert f"{noisy}: noise 6" in said
    by_hand = tmp_path / "by_hand"
    shutil.copytree(images, by_hand)
    image = sitk.ReadImage(str(by_hand / noisy))
    denoised = sitk.GetImageFromArray(denoised_to(sitk.GetArrayFromImage(image), median_hu).volume_hu)
    denoised.CopyInformation(image)
    sitk.WriteImage(denoised, str(by_hand / noisy))
    two_steps.predict(of_nnunet, "-i", by_hand, "-o", tmp_path / "theirs")
    assert labels(tmp_path / "ours").keys() == labels(tmp_path / "theirs").keys()
    assert voxels_apart(tmp_path / "ours", tmp_path / "theirs") == 0
    record = json.loads((tmp_path / "ours" / ARGUMENTS).read_text())["fvae_nnunet"]
    assert record["inputs"] == ["denoised"] and record["denoised"]["training_noise_hu"] == [median_hu]
    two_steps.predict(of_nnunet, "-i", images, "-o", tmp_path / "raw")
    assert voxels_apart(tmp_path / "raw", tmp_path / "theirs") > 0, "the comparison above could not have failed"

    assert list(record["denoised"]["noise_hu"]) == [noisy]
    err = error_of(capsys, of_nnunet, images, tmp_path / "ours", "--continue_prediction")
    assert "has predictions on denoised; --continue_prediction would add some on raw. Give --tta denoised" in err

    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    assert run(of_nnunet, images, tmp_path / "again", "--tta", "denoised") == 0
    assert labels(tmp_path / "again").keys() == labels(tmp_path / "ours").keys()
    assert voxels_apart(tmp_path / "again", tmp_path / "ours") == 0
    (of_nnunet / image_noise.NOISE_FILE).unlink()
    err = error_of(capsys, of_nnunet, images, tmp_path / "other", "--tta", "denoised")
    assert f"is not known: {tmp_path / dataset.raw.name} does not exist" in err
    assert f"copy {image_noise.NOISE_FILE} from the folder of this model" in err
    monkeypatch.delenv("nnUNet_raw")
    err = error_of(capsys, of_nnunet, images, tmp_path / "other", "--tta", "denoised")
    assert "the environment variable nnUNet_raw is not set" in err and "or copy" in err


def test_only_new_training_images_are_measured_and_damaged_ones_are_named(planned):
    dataset = clone_of(planned)
    model = save_model(nnUNetTrainer, dataset)
    first, second, *_ = sorted((dataset.raw / "imagesTr").iterdir())
    cases = [path.name.removesuffix("_0000.nii.gz") for path in (first, second)]
    kept = {cases[0]: {"bytes": first.stat().st_size, "noise_hu": 50.0}}
    kept |= {case: {"bytes": 1, "noise_hu": 1e6} for case in (cases[1], "gone")}
    (model / image_noise.NOISE_FILE).write_text(json.dumps({"channels": {"0": kept}}))
    second.write_bytes(second.read_bytes()[:-2000])
    said = []
    of_model = open_model(model, (0,), "checkpoint_final.pth")
    found_hu = image_noise.training_noise_hu(of_model, [0], workers=0, say=said.append)
    now = json.loads((model / image_noise.NOISE_FILE).read_text())["channels"]["0"]
    assert now[cases[0]]["noise_hu"] == 50.0 and cases[1] not in now and "gone" not in now
    assert len(said) == 1 and f"cannot be measured: {cases[1]}, channel 0: {second}" in said[0]
    assert found_hu == {0: float(np.median([of_case["noise_hu"] for of_case in now.values()]))}


def test_an_image_that_cannot_be_denoised_has_no_result(of_nnunet, images, tmp_path, capsys):
    noisy, other = sorted(images.iterdir())
    image = sitk.ReadImage(str(noisy))
    sitk.WriteImage(sitk.Cast(sitk.Clamp(image + 1024, lowerBound=0), sitk.sitkUInt16), str(noisy))
    assert run(of_nnunet, images, tmp_path / "out", "--tta", "raw,denoised") == 1
    err = capsys.readouterr().err
    assert f"FAILED: {noisy} cannot be in HU" in err and "(not denoised)" in err
    assert list(labels(tmp_path / "out")) == [other.name.replace("_0000", "")]
    assert run(of_nnunet, images, tmp_path / "out", "--tta", "raw,denoised", "--hu-as-is") == 0
    assert len(labels(tmp_path / "out")) == 2
    assert is_clean(tmp_path / "out")


def test_a_model_in_a_folder_of_someone_else_has_its_noise_measured_each_time(
    of_nnunet, images, tmp_path, capsys, monkeypatch
):
    def not_permitted(target, content):
        raise PermissionError(13, "Permission denied", str(target))

    monkeypatch.setattr(image_noise, "write_shared", not_permitted)
    assert run(of_nnunet, images, tmp_path / "out", "--tta", "denoised", "-num_parts", "2") == 0
    assert f"cannot be kept in {of_nnunet / image_noise.NOISE_FILE} and will be" in capsys.readouterr().err


def test_training_images_without_noise_give_none_to_denoise_to(of_nnunet, images, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    for noise_hu in (None, 0.0):
        of_case = {"a": {"bytes": 1, "noise_hu": noise_hu}}
        (of_nnunet / image_noise.NOISE_FILE).write_text(json.dumps({"channels": {"0": of_case}}))
        said = error_of(capsys, of_nnunet, images, tmp_path / "out", "--tta", "denoised")
        assert "show no noise in soft tissue in channel 0" in said
    (of_nnunet / image_noise.NOISE_FILE).write_text("{}")
    said = error_of(capsys, of_nnunet, images, tmp_path / "out", "--tta", "denoised")
    assert f"{of_nnunet / image_noise.NOISE_FILE} is damaged" in said and "Remove it to measure the noise again" in said


class nnUNetTrainerQRecon(nnUNetTrainerFVAEReconOnly):
    pass


def test_a_subclass_of_any_name_predicts_on_what_its_record_says(dataset, images, tmp_path, capsys):
    model = save_model(nnUNetTrainerQRecon, dataset)
    assert run(model, images, tmp_path / "out", "-num_parts", "2") == 0
    assert "1 case predicted on view" in capsys.readouterr().out
    assert run(model, images, tmp_path / "raw", "--tta", "raw", "-num_parts", "2") == 0
    assert "warning: the model has seen only the view (nnUNetTrainerQRecon)" in capsys.readouterr().err

    path = model / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    del checkpoint["fvae_nnunet"]["view_probability"]
    torch.save(checkpoint, path)
    assert run(model, images, tmp_path / "old", "-num_parts", "2") == 0
    out, err = capsys.readouterr()
    assert "predicted on raw" in out
    assert "do not record whether the model has also seen raw images" in err and "use --tta view" in err


@pytest.mark.slow
def test_the_folder_by_name_and_by_path_are_one_model(recon_only, images, tmp_path):
    assert run(recon_only, images, tmp_path / "path") == 0
    arguments = [*model_options(recon_only), "-i", str(images), "-o", str(tmp_path / "name"), *HERE]
    assert predict.main(arguments) == 0
    assert contents(tmp_path / "path") == contents(tmp_path / "name")


@pytest.mark.slow
def test_parts_do_their_own_cases_as_nnunet_splits_them(recon_only, images, tmp_path, capsys):
    assert run(recon_only, images, tmp_path / "whole") == 0
    cases = sorted(path.name[: -len("_0000.nii.gz")] for path in images.iterdir())
    for part in (0, 1):
        capsys.readouterr()
        assert run(recon_only, images, tmp_path / "parts", "-num_parts", 2, "-part_id", part) == 0
        out = capsys.readouterr().out
        assert [case for case in cases if f"{case}_0000: PSNR" in out] == cases[part::2]
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert json.loads((tmp_path / "parts" / ARGUMENTS).read_text())["fvae_nnunet"]["inputs"] == ["view"]


def test_a_record_that_another_part_is_writing_is_read_when_it_is_whole(mixed, images, tmp_path, monkeypatch, capsys):
    output, whole = tmp_path / "out", []

    def is_being_written(self, *arguments, **keywords):
        errors = predict_of_ours(self, *arguments, **keywords)
        whole.append((output / ARGUMENTS).read_text())
        (output / ARGUMENTS).write_text("")
        return errors

    def looked_again(seconds):
        (output / ARGUMENTS).write_text(whole[0])

    predict_of_ours = predictor.Predictor.predict
    monkeypatch.setattr(predictor.Predictor, "predict", is_being_written)
    monkeypatch.setattr(predict, "time", SimpleNamespace(sleep=looked_again, monotonic=time.monotonic))
    assert run(mixed, images, output) == 0
    assert json.loads((output / ARGUMENTS).read_text())["list_of_lists_or_source_folder"] == str(images)
    monkeypatch.setattr(predict, "WRITTEN_WITHIN_S", 0)
    assert f"{output / ARGUMENTS} is not valid JSON" in error_of(capsys, mixed, images, output)


@pytest.mark.slow
def test_continue_leaves_predicted_cases_alone(recon_only, images, tmp_path, capsys, monkeypatch):
    output = tmp_path / "out"
    assert run(recon_only, images, output) == 0
    whole = contents(output)
    first, second = sorted(output.glob("*.nii.gz"))
    sitk.WriteImage(sitk.ReadImage(str(first)) * 0, str(first))
    somebodys = first.read_bytes()
    second.write_bytes(whole[second.name][:-20])  # of a process that was killed
    capsys.readouterr()
    assert run(recon_only, images, output, "--continue_prediction") == 0
    assert capsys.readouterr().out.count(": PSNR") == 1
    assert contents(output) == whole | {first.name: somebodys}
    monkeypatch.setattr(command, "load", lambda arguments: pytest.fail("loaded a VAE"))
    assert run(recon_only, images, output, "--c") == 0
    assert "0 cases predicted on view, 2 already complete" in capsys.readouterr().out
    assert second.read_bytes() == whole[second.name]


@pytest.mark.parametrize("tta", ["raw", "view", "raw,view"])
def test_a_damaged_image_is_named_and_has_no_result_and_the_others_are_done(
    recon_only, images, tmp_path, capsys, two_steps, tta
):
    broken, *others = sorted(images.iterdir())
    case = broken.name[: -len("_0000.nii.gz")]
    broken.write_bytes(broken.read_bytes()[:-2000])
    output = tmp_path / "out"
    output.mkdir()
    (output / f"{case}.nii.gz").write_bytes(b"of an earlier run")
    assert run(recon_only, images, output, "--tta", tta) == 1
    err = capsys.readouterr().err
    assert f"{broken} is truncated" in err or f"{broken} cannot be read" in err
    assert f"1 of 2 cases failed, see above: {case}" in err
    assert "nnU-Net stopped" not in err
    assert sorted(labels(output)) == [f"{path.name[: -len('_0000.nii.gz')]}.nii.gz" for path in others]
    assert is_clean(output)


@pytest.mark.parametrize("reader", ["NibabelIO", "NibabelIOWithReorient"])
def test_sheared_images_are_predicted_on_the_view_by_models_of_nibabels_readers(recon_only, images, tmp_path, reader):
    model = tmp_path / recon_only.parent.name / recon_only.name
    shutil.copytree(recon_only, model)
    plans = json.loads((model / "plans.json").read_text())
    (model / "plans.json").write_text(json.dumps(plans | {"image_reader_writer": reader}))
    affines = {}
    for path in images.iterdir():
        image = nibabel.load(path)
        affine = image.affine.copy()
        affine[1, 2] += 0.4
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), affine), path)
        affines[path.name.replace("_0000", "")] = affine
    assert run(model, images, tmp_path / "out") == 0
    for name, affine in affines.items():
        np.testing.assert_allclose(nibabel.load(tmp_path / "out" / name).affine, affine, atol=1e-5)


@pytest.mark.parametrize("tta", ["raw", "view"])
def test_what_is_no_image_is_named_and_the_others_are_done(recon_only, images, tmp_path, capsys, tta):
    nans = nibabel.Nifti1Image(np.full((48, 48, 24), np.nan, np.float32), np.diag([2, 2, 3, 1]))
    nibabel.save(nans, images / "nan_0000.nii.gz")
    os.mkfifo(images / "pipe_0000.nii.gz")
    (images / "link_0000.nii.gz").symlink_to("/nowhere/image.nii.gz")
    assert run(recon_only, images, tmp_path / "out", "--tta", tta) == 1
    err = capsys.readouterr().err
    assert f"{images / 'nan_0000.nii.gz'}: 55296 of 55296 voxels are not finite" in err
    assert f"{images / 'pipe_0000.nii.gz'} is a pipe" in err
    assert f"{images / 'link_0000.nii.gz'} is a broken link (to /nowhere/image.nii.gz)" in err
    assert "3 of 5 cases failed" in err
    assert len(labels(tmp_path / "out")) == 2
    first = sorted(images.iterdir())[-1]
    first.rename(images / first.name.upper())
    assert run(recon_only, images, tmp_path / "out", "--tta", tta) == 1
    assert f"would be left out: {first.name.upper()}" in capsys.readouterr().err


def test_what_the_models_reader_does_not_read_is_said_before_nnunet_tries(recon_only, images, tmp_path, capsys):
    path = sorted(images.iterdir())[0]
    nibabel.save(nibabel.Nifti2Image(np.asarray(nibabel.load(path).dataobj), np.diag([2, 2, 3, 1])), path)
    assert run(recon_only, images, tmp_path / "out", "--tta", "raw") == 1
    err = capsys.readouterr().err
    assert "nnU-Net's NibabelIO can read it" in err
    assert "nnU-Net stopped" not in err
    assert len(labels(tmp_path / "out")) == 1


def test_where_nnunet_stops_at_an_image_the_others_are_done(mixed, images, tmp_path, capsys):
    assert run(mixed, images, tmp_path / "whole") == 0
    whole = contents(tmp_path / "whole")
    broken = sorted(images.iterdir())[1]
    case = broken.name[: -len("_0000.nii.gz")]
    volume = sitk.ReadImage(str(broken))
    sitk.WriteImage(sitk.JoinSeries([volume, volume]), str(broken))
    assert run(mixed, images, tmp_path / "out") == 1
    err = capsys.readouterr().err
    assert "nnU-Net stopped" in err
    assert f"{case}: FAILED" in err
    assert f"1 of 2 cases failed, see above: {case} (no prediction)" in err
    del whole[f"{case}.nii.gz"]
    assert contents(tmp_path / "out") == whole


def test_a_full_disk_stops_everything_at_once(mixed, images, tmp_path, capsys, monkeypatch):
    calls = []

    def stop(*arguments, **keywords):
        calls.append(arguments)
        raise RuntimeError("ITK cannot write")

    monkeypatch.setattr(predict_from_raw_data.nnUNetPredictor, "predict_from_files_sequential", stop)
    monkeypatch.setattr(predictor.shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    assert run(mixed, images, tmp_path / "out") == 1
    assert "No space left on device" in capsys.readouterr().err
    assert len(calls) == 1


def test_if_no_image_can_be_read_nothing_is_predicted(recon_only, images, tmp_path):
    for path in images.iterdir():
        path.write_bytes(b"no image")
    assert run(recon_only, images, tmp_path / "out") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("interrupt", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 128 + signal.SIGTERM)],
)
@pytest.mark.parametrize("at", ["reconstruction", "prediction"])
def test_nothing_temporary_is_left_after_an_interruption(
    recon_only, images, tmp_path, monkeypatch, interrupt, status, at
):
    output = tmp_path / "out"
    output.mkdir()
    seen = []

    def interrupted(*arguments, **keywords):
        seen.extend(path.name for path in output.iterdir() if path.name.startswith(".fvae-predict-"))
        os.kill(os.getpid(), interrupt)

    if at == "reconstruction":
        monkeypatch.setattr(folder_reconstruction, "write_volume", interrupted)
    else:
        monkeypatch.setattr(predict_from_raw_data.nnUNetPredictor, "predict_from_files_sequential", interrupted)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert run(recon_only, images, output) == status
    except SystemExit as end:
        assert end.code == status
    assert len(seen) == 1
    assert not list(output.iterdir())
    assert signal.getsignal(signal.SIGTERM) == before


def with_record(model, tmp_path, **changed):
    """A copy of a model whose recorded view is changed."""
    copy = tmp_path / "models" / model.name
    shutil.copytree(model, copy)
    path = copy / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    if changed:
        checkpoint["fvae_nnunet"]["view"] |= changed
    else:
        del checkpoint["fvae_nnunet"]
    torch.save(checkpoint, path)
    return copy


def error_of(capsys, *arguments):
    assert run(*arguments) == 1
    return capsys.readouterr().err


def test_another_vae_or_setting_than_recorded_is_refused_with_its_name(recon_only, images, tmp_path, capsys):
    output = tmp_path / "out"
    err = error_of(capsys, recon_only, images, output, "--hu-window", -160, 240, "--vae", "wan2.1")
    assert "hu_windows: [[-1000.0, 1000.0]], now [[-160.0, 240.0]]" in err
    assert 'vae: "tiny", now "wan2.1"' in err
    assert "Leave out these options" in err
    other = with_record(recon_only, tmp_path, weights_sha256="1" * 64)
    err = error_of(capsys, other, images, output)
    assert 'weights_sha256: "11111' in err
    assert "--weights" in err
    assert not output.exists()


def test_options_that_confirm_the_record_are_taken(recon_only, images, tmp_path):
    assert run(recon_only, images, tmp_path / "out", "--vae", "tiny", "--hu-window", -1000, 1000) == 0


def test_a_vae_from_a_folder_is_found_by_weights_or_by_its_path_from_any_folder(
    recon_only, images, tmp_path, capsys, monkeypatch
):
    folder = TINY_FOLDER.absolute()
    model = with_record(recon_only, tmp_path, vae=f"diffusers:{folder.name}")
    monkeypatch.chdir(tmp_path)
    err = error_of(capsys, model, images, tmp_path / "out")
    assert f"{folder.name!r} is neither a local folder nor a hub id" in err and "as --weights" in err
    options = [["--weights", folder], ["--vae", f"diffusers:{folder}"]]
    for number, given in enumerate(options):
        assert run(model, images, tmp_path / f"out{number}", *given) == 0
    monkeypatch.chdir(folder.parent)
    assert run(model, images, tmp_path / "beside", "--weights", folder) == 0
    assert 'vae: "diffusers:tiny"' in error_of(capsys, model, images, tmp_path / "other", "--vae", "taef2")


def test_a_view_made_in_tf32_is_predicted_from_on_any_device(recon_only, images, tmp_path):
    assert run(with_record(recon_only, tmp_path, tf32=True), images, tmp_path / "out") == 0


def test_of_several_views_one_is_to_be_named_and_all_folds_have_seen_the_same(recon_only, images, tmp_path, capsys):
    model = with_record(recon_only, tmp_path, vae="tiny")
    shutil.copytree(model / "fold_0", model / "fold_1")
    for fold, weights in ((0, "a,b"), (1, "a:3,b")):
        path = model / f"fold_{fold}" / "checkpoint_final.pth"
        checkpoint = torch.load(path, weights_only=False)
        settings = checkpoint["fvae_nnunet"]["view"]
        checkpoint["fvae_nnunet"] |= {"view": None, "views": {"a": settings, "b": settings}, "view_name": weights}
        torch.save(checkpoint, path)
    err = error_of(capsys, model, images, tmp_path / "out")
    assert (
        "was trained on several views (a, b); give --vae and the other options with which one of them was made" in err
    )
    assert run(model, images, tmp_path / "out", "--vae", "tiny") == 0
    arguments = ["-m", model, "-i", images, "-o", tmp_path / "both", "-device", "cpu", "-f", "0", "1"]
    assert predict.main([str(argument) for argument in arguments]) == 1
    assert 'view_name: "a,b", now "a:3,b"' in capsys.readouterr().err


@pytest.mark.slow
def test_the_recorded_settings_are_used(recon_only, images, tmp_path, two_steps):
    other = with_record(recon_only, tmp_path, hu_window=[-160.0, 240.0], posterior_seed=3)
    assert run(other, images, tmp_path / "ours") == 0
    reconstruct_by_hand(images, tmp_path / "view", "--hu-window", "-160", "240", "--sample-posterior", "3")
    two_steps.predict(recon_only, "-i", tmp_path / "view", "-o", tmp_path / "theirs")
    assert labels(tmp_path / "ours").keys() == labels(tmp_path / "theirs").keys()
    assert voxels_apart(tmp_path / "ours", tmp_path / "theirs") == 0


@pytest.mark.slow
def test_the_recorded_passes_are_used_and_others_refused(recon_only, images, tmp_path, two_steps, capsys):
    other = with_record(recon_only, tmp_path, inner_windows=[[-200.0, 300.0]], pixel_mm=1.5, average=2)
    assert run(other, images, tmp_path / "ours", "--windows", "soft", "--average", 2) == 0
    reconstruct_by_hand(images, tmp_path / "view", "--windows", "soft", "--pixel-mm", "1.5", "--average", "2")
    two_steps.predict(recon_only, "-i", tmp_path / "view", "-o", tmp_path / "theirs")
    assert voxels_apart(tmp_path / "ours", tmp_path / "theirs") == 0
    assert "hu_windows" in error_of(capsys, other, images, tmp_path / "out", "--hu-window", -1000, 1000)
    assert "average: 2, now 3" in error_of(capsys, other, images, tmp_path / "out", "--average", 3)
    for option, value, said in (("--average", 3, "average: 1, now 3"), ("--enlarge", 2, "enlarge: 1.0, now 2.0")):
        assert said in error_of(capsys, recon_only, images, tmp_path / "out", option, value)


@pytest.mark.slow
def test_a_model_trained_on_a_plain_denoisers_view_predicts_from_it(dataset, images, tmp_path, two_steps, capsys):
    control = load_vae("control:gaussian", strength=1.5)
    view = ReconstructionSettings.for_vae(control.spec).recorded_with(control) | {"ct_channels": [0]}
    model = save_model(nnUNetTrainerFVAEReconOnly_5epochs, dataset, view=view)
    assert run(model, images, tmp_path / "ours") == 0
    options = ["--vae", "control:gaussian", "--strength", "1.5"]
    assert reconstruct.main(["-i", str(images), "-o", str(tmp_path / "view"), "-np", "0", *options]) == 0
    two_steps.predict(model, "-i", tmp_path / "view", "-o", tmp_path / "theirs")
    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")
    err = error_of(capsys, model, images, tmp_path / "other", "--vae", "control:gaussian", "--strength", 1)
    assert "strength: 1.5, now 1.0" in err


@pytest.mark.slow
def test_without_a_record_the_options_are_needed_and_used(recon_only, images, tmp_path, capsys, two_steps):
    other = with_record(recon_only, tmp_path)
    assert "do not record the view" in error_of(capsys, other, images, tmp_path / "ours")
    assert run(other, images, tmp_path / "ours", "--vae", "tiny", "--hu-window", -160, 240) == 0
    reconstruct_by_hand(images, tmp_path / "view", "--hu-window", "-160", "240")
    two_steps.predict(recon_only, "-i", tmp_path / "view", "-o", tmp_path / "theirs")
    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")


def test_folds_that_were_trained_with_different_views_are_refused(recon_only, dataset, images, tmp_path, capsys):
    view = load_vae("tiny")
    settings = ReconstructionSettings.for_vae(view.spec, hu_window=(-160.0, 240.0)).recorded_with(view)
    trainer = save_model(nnUNetTrainerFVAEReconOnly, dataset, fold=1, view=settings)
    assert trainer == recon_only
    arguments = ["-m", str(recon_only), "-i", str(images), "-o", str(tmp_path / "out"), "-device", "cpu"]
    assert predict.main([*arguments, "-f", "0", "1"]) == 1
    err = capsys.readouterr().err
    assert "fold 0 and fold 1" in err
    assert "view.hu_window: [-1000.0, 1000.0], now [-160.0, 240.0]" in err
    assert predict.main([*arguments, "-f", "0", "4"]) == 1
    assert "folds with a checkpoint_final.pth: 0, 1. Choose them with -f" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--vae", "tiny"], "the input is raw, so no VAE is used"),
        (["--vae", "tiny", "--tta", "raw,denoised"], "the input is raw and denoised, so no VAE is used"),
        (["--hu-as-is"], "the input is raw, so no VAE is used"),
        (["--channels", "0"], "the input is raw, so no channel is reconstructed or denoised"),
        (["-num_parts", "2", "-part_id", "2"], "-part_id must be at least 0"),
        (["-npp", "0", "-nps", "1"], "-npp and -nps must be at least 1, or both 0"),
        (["-prev_stage_predictions", "x"], "-prev_stage_predictions is for the second stage"),
        (["-d", "7"], "leave out -d, -c, -tr and -p"),
        (["-chk", "checkpoint_best.pth"], "folds with a checkpoint_best.pth: none"),
        (["-m", "nowhere"], "nowhere is not the folder of a trained model"),
        (["-i", "nowhere"], "nowhere is not a folder"),
    ],
)
def test_impossible_options_are_one_message_and_status_1(mixed, images, tmp_path, capsys, extra, message):
    err = error_of(capsys, mixed, images, tmp_path / "out", *extra)
    assert message in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tta", ["raw,raw", "both", "raw;view", "denoised,raw,denoised", ""])
def test_unknown_inputs_are_a_usage_error(tta):
    with pytest.raises(SystemExit) as end:
        predict.main(["-i", "a", "-o", "b", "-m", "c", "--tta", tta])
    assert end.value.code == 2


def test_images_that_are_not_named_as_nnunet_wants_are_refused_before_any_work(mixed, images, tmp_path, capsys):
    first, second = sorted(images.iterdir())
    first.rename(images / "case.nii.gz")
    assert "no channel number: case.nii.gz" in error_of(capsys, mixed, images, tmp_path / "out")
    (images / "case.nii.gz").rename(first)
    shutil.copy(second, second.with_name(second.name.replace("_0000", "_0001")))
    assert f"{second.name[: -len('_0000.nii.gz')]} needs" in error_of(capsys, mixed, images, tmp_path / "out")


def test_an_image_that_is_no_hu_has_no_result_unless_it_is_taken_as_it_is(recon_only, images, tmp_path, capsys):
    first, second = sorted(images.iterdir())
    image = sitk.ReadImage(str(first))
    sitk.WriteImage(sitk.Cast(sitk.Clamp(image + 1024, lowerBound=0), sitk.sitkUInt16), str(first))
    assert run(recon_only, images, tmp_path / "out") == 1
    said = capsys.readouterr()
    assert "channels reconstructed: 0 (CT); copied: none" in said.out
    assert f"FAILED: {first} cannot be in HU" in said.err and "offset of 1000 or 1024" in said.err
    assert list(labels(tmp_path / "out")) == [second.name.replace("_0000", "")]
    assert run(recon_only, images, tmp_path / "out", "--continue_prediction", "--hu-as-is") == 0
    assert len(labels(tmp_path / "out")) == 2


def test_jobs_would_keep_results_and_so_do_not_begin(mixed, images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(predict, "submit", lambda arguments, **how: 0)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / next(images.iterdir()).name.replace("_0000", "")).touch()
    said = error_of(capsys, mixed, images, tmp_path / "out", "--submit", "local")
    assert "has results of 1 of 2 cases, which jobs would keep; remove them, or give --continue_prediction" in said
    assert run(mixed, images, tmp_path / "out", "--submit", "local", "--continue_prediction") == 0


def test_no_file_of_an_earlier_run_stays_beside_a_new_result(mixed, images, tmp_path):
    first, _ = sorted(images.iterdir())
    output = tmp_path / "out"
    output.mkdir()
    for ending in (".npz", ".pkl"):
        (output / first.name.replace("_0000.nii.gz", ending)).touch()
    assert run(mixed, images, output) == 0
    assert not [path.name for path in output.iterdir() if path.suffix in (".npz", ".pkl")]


def test_jobs_on_gpus_are_submitted_from_a_machine_without_one(mixed, images, tmp_path, monkeypatch, capsys):
    submitted = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(predict, "submit", lambda arguments, **how: submitted.append(how["complete"]()) or 0)
    assert run(mixed, images, tmp_path / "out", "-device", "cuda", "--submit", "slurm") == 0
    assert submitted == [0]
    assert "no CUDA GPU is visible" in error_of(capsys, mixed, images, tmp_path / "out", "-device", "cuda")


def test_a_model_whose_view_was_made_of_images_as_they_are_takes_them_too(clone, images, tmp_path, capsys):
    (folder,) = make_view(clone, load_vae("tiny"), configurations=["3d_fullres"], hu_window=(-1000.0, 1000.0)).values()
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"view": "test"', '"hu_as_is": true, "view": "test"'))
    model = save_model(nnUNetTrainerFVAEReconOnly, clone)
    no_hu = str(sorted(images.iterdir())[0])
    sitk.WriteImage(sitk.Cast(sitk.Clamp(sitk.ReadImage(no_hu) + 1024, lowerBound=0), sitk.sitkUInt16), no_hu)
    assert run(model, images, tmp_path / "out") == 0
    assert len(labels(tmp_path / "out")) == 2
    record = json.loads((tmp_path / "out" / ARGUMENTS).read_text())["fvae_nnunet"]["view"]
    assert record["made_with"]["parameters"]["hu_as_is"] is True

    path = model / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    assert checkpoint["fvae_nnunet"].pop("view_hu_as_is") is True
    torch.save(checkpoint, path)
    assert "cannot be in HU" in error_of(capsys, model, images, tmp_path / "old")
    assert run(model, images, tmp_path / "old", "--hu-as-is") == 0


@pytest.mark.slow
def test_only_the_recorded_channels_are_reconstructed(clone, images, tmp_path, two_steps, capsys):
    clone.write_dataset_json(clone.dataset_json | {"channel_names": {"0": "PET", "1": "CT"}})
    plans = clone.plans
    plans["foreground_intensity_properties_per_channel"]["1"] = plans["foreground_intensity_properties_per_channel"][
        "0"
    ]
    for configuration in plans["configurations"].values():
        if "normalization_schemes" in configuration:
            configuration |= {"normalization_schemes": ["CTNormalization"] * 2, "use_mask_for_norm": [False] * 2}
    clone.write_plans(plans)
    vae = load_vae("tiny")
    view = ReconstructionSettings.for_vae(vae.spec).recorded_with(vae) | {"ct_channels": [1]}
    model = save_model(nnUNetTrainerFVAEReconOnly, clone, view=view)
    for path in sorted(images.iterdir()):
        shutil.copy(path, path.with_name(path.name.replace("_0000", "_0001")))

    assert run(model, images, tmp_path / "ours") == 0
    assert "_0000: PSNR" not in capsys.readouterr().out
    ct, mixed_channels = tmp_path / "ct", tmp_path / "mixed"
    ct.mkdir()
    for path in images.glob("*_0001.nii.gz"):
        shutil.copy(path, ct)
    reconstruct_by_hand(ct, mixed_channels)
    for path in images.glob("*_0000.nii.gz"):
        shutil.copy(path, mixed_channels)
    two_steps.predict(model, "-i", mixed_channels, "-o", tmp_path / "theirs")
    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")
    reconstruct_by_hand(images, tmp_path / "both")
    two_steps.predict(model, "-i", tmp_path / "both", "-o", tmp_path / "wrong")
    assert voxels_apart(tmp_path / "ours", tmp_path / "wrong") > 0

    broken = sorted(images.glob("*_0000.nii.gz"))[0]
    broken.write_bytes(broken.read_bytes()[:-2000])
    err = error_of(capsys, model, images, tmp_path / "partly")
    assert f"{broken.name[: -len('_0000.nii.gz')]} (damaged image)" in err
    assert len(labels(tmp_path / "partly")) == 1


@pytest.mark.slow
def test_regions_are_averaged_as_nnunet_averages_them(clone, images, tmp_path, two_steps):
    clone.write_dataset_json(
        clone.dataset_json
        | {"labels": {"background": 0, "pancreas": [1, 2], "tumour": 2}, "regions_class_order": [1, 2]}
    )
    vae = load_vae("tiny")
    view = ReconstructionSettings.for_vae(vae.spec).recorded_with(vae) | {"ct_channels": [0]}
    model = save_model(nnUNetTrainerFVAE, clone, view=view)
    if NNUNET < (2, 7):
        assert run(model, images, tmp_path / "ours", "--tta", "raw,view") == 1
        return
    assert run(model, images, tmp_path / "ours", "--tta", "raw,view") == 0
    reconstruct_by_hand(images, tmp_path / "images_view")
    for name, folder in (("raw", images), ("view", tmp_path / "images_view")):
        two_steps.predict(model, "-i", folder, "-o", tmp_path / name, "--save_probabilities")
    two_steps.ensemble("-i", tmp_path / "raw", tmp_path / "view", "-o", tmp_path / "theirs", "-np", "1")
    assert labels(tmp_path / "ours").keys() == labels(tmp_path / "theirs").keys()
    assert voxels_apart(tmp_path / "ours", tmp_path / "theirs") == 0


@pytest.mark.slow
def test_the_second_stage_of_a_cascade_gets_the_first_ones_predictions(clone, images, tmp_path, two_steps, capsys):
    plans = clone.plans
    configurations = plans["configurations"]
    configurations["3d_lowres"] = configurations["3d_fullres"] | {"next_stage": "3d_cascade_fullres"}
    configurations["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    clone.write_plans(plans)
    vae = load_vae("tiny")
    view = ReconstructionSettings.for_vae(vae.spec).recorded_with(vae) | {"ct_channels": [0]}
    first, second = (
        save_model(nnUNetTrainerFVAEReconOnly, clone, name, view=view) for name in ("3d_lowres", "3d_cascade_fullres")
    )
    assert run(first, images, tmp_path / "lowres") == 0
    assert "predict with 3d_lowres first" in error_of(capsys, second, images, tmp_path / "ours")
    previous = ["-prev_stage_predictions", tmp_path / "lowres"]
    if NNUNET < (2, 8):
        assert run(second, images, tmp_path / "ours", *previous) == 1
        return
    assert run(second, images, tmp_path / "ours", *previous) == 0
    reconstruct_by_hand(images, tmp_path / "view")
    two_steps.predict(second, "-i", tmp_path / "view", "-o", tmp_path / "theirs", *previous)
    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")


@pytest.mark.slow
def test_the_command_with_its_processes_gives_equal_files(mixed, images, tmp_path, two_steps):
    for path in sorted(images.iterdir())[1:]:
        path.unlink()
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    main = "from fvae_nnunet.cli.predict import main; raise SystemExit(main())"
    command = [sys.executable, "-c", main, "-i", images, "-o", ours, *model_options(mixed)]
    command += ["--tta", "raw,view", "--save_probabilities", *HERE, "-npp", "1", "-nps", "1"]
    # from a folder that has no fvae_nnunet: the one in the repository lacks the rooms beside it
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, cwd=sys.prefix)
    assert done.returncode == 0, done.stdout + done.stderr
    reconstruct_by_hand(images, tmp_path / "images_view")
    for name, folder in (("raw", images), ("view", tmp_path / "images_view")):
        two_steps.predict(mixed, "-i", folder, "-o", tmp_path / name, "--save_probabilities")
    two_steps.ensemble("-i", tmp_path / "raw", tmp_path / "view", "-o", theirs, "-np", "1", "--save_npz")
    assert contents(ours) == contents(theirs) | {"plans.json": (tmp_path / "raw" / "plans.json").read_bytes()}
    assert len(labels(ours)) == 1
    assert is_clean(ours)
