import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import blosc2
import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from trainers_for_tests import batches, reproducible, trainer_of  # noqa: F401
from views_for_tests import BrighterVAE, make_view

from fvae_nnunet import trainers
from fvae_nnunet.errors import UserError
from fvae_nnunet.trainers import EPOCHS, nnUNetTrainerFVAE, nnUNetTrainerFVAEBlend, nnUNetTrainerFVAEReconOnly


class Never(nnUNetTrainerFVAE):
    view_probability = 0.0


class Always(nnUNetTrainerFVAE):
    view_probability = 1.0


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_with_probability_zero_the_batches_are_nnunets_to_the_bit(planned, configuration):
    ours, nnunets = batches(Never, planned, configuration), batches(nnUNetTrainer, planned, configuration)
    for our, nnunet in zip(ours, nnunets, strict=True):
        assert torch.equal(our["data"], nnunet["data"])
        assert all(torch.equal(a, b) for a, b in zip(our["target"], nnunet["target"], strict=True))
        assert list(our["keys"]) == list(nnunet["keys"])


@pytest.mark.slow
def test_the_views_samples_differ_in_the_image_only_and_validation_stays_raw(clone):
    make_view(clone, BrighterVAE(), configurations=["3d_fullres"])
    ours, nnunets = batches(Always, clone), batches(nnUNetTrainer, clone)
    for our, nnunet in zip(ours[:3], nnunets[:3], strict=True):
        assert not torch.equal(our["data"], nnunet["data"])
        assert all(torch.equal(a, b) for a, b in zip(our["target"], nnunet["target"], strict=True))
    for our, nnunet in zip(ours[3:], nnunets[3:], strict=True):
        assert torch.equal(our["data"], nnunet["data"])


def test_recon_only_validates_on_the_view_too(clone):
    folder = make_view(clone, BrighterVAE(), configurations=["3d_fullres"])["3d_fullres"]
    trainer = trainer_of(nnUNetTrainerFVAEReconOnly, clone)
    for dataset in trainer.get_tr_and_val_datasets():
        case = dataset.identifiers[0]
        view = blosc2.open(str(folder / f"{case}.b2nd"), mode="r")[:]
        assert np.array_equal(dataset.load_case(case)[0][:], view)


@pytest.mark.slow
def test_several_views_are_drawn_recorded_and_those_of_before_are_needed_to_go_on(clone, monkeypatch, capsys):
    make_view(clone, BrighterVAE(), view="bright", configurations=["3d_fullres"])
    make_view(clone, view="same", configurations=["3d_fullres"])
    monkeypatch.setenv("nnUNet_fvae_view", "bright:3,same")
    trainer = trainer_of(nnUNetTrainerFVAE, clone)
    training, _ = trainer.get_tr_and_val_datasets()
    assert [folder.name.split("__fvae_")[1] for folder in training.folders] == ["bright", "same"]
    assert training.shares.tolist() == [0.75, 0.25]
    said = capsys.readouterr().out
    assert "view 'bright'" in said and "probability 0.375" in said and "probability 0.125" in said
    record = trainer.training_record()
    assert record["view_name"] == "bright:3,same:1" and record["view"] is None
    assert record["views"].keys() == {"bright", "same"}
    assert len(record["view_cases"]) == 2 * len(training.identifiers)
    path = Path(trainer.output_folder) / "checkpoint.pth"
    trainer.save_checkpoint(str(path))
    again = trainer_of(nnUNetTrainerFVAE, clone)
    again.load_checkpoint(str(path))
    again.get_tr_and_val_datasets()
    monkeypatch.setenv("nnUNet_fvae_view", "bright,same")
    other = trainer_of(nnUNetTrainerFVAE, clone)
    other.load_checkpoint(str(path))
    with pytest.raises(UserError, match=r"view_name: .bright:3,same:1., now .bright:1,same:1.[^$]*export"):
        other.get_tr_and_val_datasets()
    with pytest.raises(UserError, match="validates on the view, so it takes only one, not bright, same"):
        trainer_of(nnUNetTrainerFVAEReconOnly, clone).get_tr_and_val_datasets()


def test_fold_all_and_2d_find_their_view(clone):
    make_view(clone, BrighterVAE())
    training, validation = trainer_of(nnUNetTrainerFVAEBlend, clone, "2d", "all").get_tr_and_val_datasets()
    assert training.identifiers == validation.identifiers
    assert len(training.identifiers) == 5
    assert training.blend == (0.0, 1.0)
    assert not hasattr(validation, "blend")


@pytest.mark.slow
def test_a_view_that_is_missing_incomplete_stale_or_of_other_plans_stops_with_the_command(clone):
    def error():
        with pytest.raises(UserError) as raised:
            trainer_of(nnUNetTrainerFVAE, clone).get_tr_and_val_datasets()
        return str(raised.value)

    command = f"fvae-preprocess {clone.id} -c 3d_fullres -p nnUNetPlans"
    assert f"no reconstructed view. Make it with: {command}" in error()
    folder = make_view(clone, configurations=["3d_fullres"])["3d_fullres"]
    trainer_of(nnUNetTrainerFVAE, clone).get_tr_and_val_datasets()

    training = trainer_of(nnUNetTrainer, clone).get_tr_and_val_datasets()[0].identifiers
    array = folder / f"{training[0]}.b2nd"
    whole = array.read_bytes()
    array.write_bytes(whole[:-1])
    message = error()
    assert f"1 of 4 cases are missing or incomplete (first: {training[0]})" in message
    assert f"Complete it with: {command} --vae identity --view test" in message
    array.write_bytes(whole)

    plans = clone.plans
    plans["foreground_intensity_properties_per_channel"]["0"]["mean"] += 1
    clone.write_plans(plans)
    message = error()
    assert "preprocessing.foreground_intensity" in message or "foreground_intensity.0.mean" in message
    assert message.endswith("--overwrite")
    plans["foreground_intensity_properties_per_channel"]["0"]["mean"] -= 1
    clone.write_plans(plans)

    image = next((clone.raw / "imagesTr").glob(f"{training[1]}_*"))
    import SimpleITK as sitk

    sitk.WriteImage(sitk.ReadImage(str(image)) + 7, str(image))
    clone.preprocess("3d_fullres")
    assert f"1 of 4 cases are older than nnU-Net's preprocessed data (first: {training[1]})" in error()


def test_no_view_is_needed_with_probability_zero(planned):
    trainer_of(Never, planned).get_tr_and_val_datasets()


@pytest.mark.slow
def test_training_validation_resume_and_prediction_without_the_plugin(clone):
    make_view(clone, BrighterVAE(), configurations=["3d_fullres"])
    trainer = trainer_of(nnUNetTrainerFVAEReconOnly, clone)
    trainer.run_training()
    predicted_on = trainer.dataset_class
    trainer.perform_actual_validation()
    assert trainer.dataset_class is predicted_on
    output = type(clone.results)(trainer.output_folder)
    assert output.parent.name == "nnUNetTrainerFVAEReconOnly__nnUNetPlans__3d_fullres"
    assert (output / "validation" / "summary.json").is_file()
    log = next(output.glob("training_log*")).read_text()
    assert "with view 'test'" in log
    assert log.count("fvae_nnunet 0") == 1

    checkpoint = torch.load(output / "checkpoint_final.pth", map_location="cpu", weights_only=False)
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    assert checkpoint["fvae_nnunet"]["trainer"] == "nnUNetTrainerFVAEReconOnly"
    assert checkpoint["fvae_nnunet"]["view"]["vae"] == "identity"
    network = trainer.network.state_dict()
    assert checkpoint["network_weights"].keys() == network.keys()
    assert all(torch.equal(checkpoint["network_weights"][key], network[key].cpu()) for key in network)
    assert not list(output.glob(".*"))

    again = trainer_of(nnUNetTrainerFVAEReconOnly, clone, continue_training=True)
    again.num_epochs = 2
    again.optimizer, again.lr_scheduler = again.configure_optimizers()
    again.load_checkpoint(str(output / "checkpoint_final.pth"))
    assert again.current_epoch == 1
    assert all(torch.equal(again.network.state_dict()[key], network[key]) for key in network)
    again.run_training()
    continued = torch.load(output / "checkpoint_final.pth", map_location="cpu", weights_only=False)
    assert continued["current_epoch"] == 2
    assert any(not torch.equal(continued["network_weights"][key], network[key]) for key in network)

    predictions = output / "predictions"
    hide = "import sys; sys.modules['fvae_nnunet'] = None; from nnunetv2.inference.predict_from_raw_data import *; "
    arguments = [
        "-i", clone.raw / "imagesTs", "-o", predictions, "-d", clone.id, "-c", "3d_fullres", "-f", "0",
        "-device", "cpu", "-tr", "nnUNetTrainerFVAEReconOnly", "-npp", "1", "-nps", "1", "--disable_tta",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", f"{hide} sys.argv[1:] = {[str(a) for a in arguments]!r}; predict_entry_point()"],
        capture_output=True, text=True, check=False, env=os.environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(predictions.glob("*.nii.gz"))) == 1


@pytest.mark.slow
def test_recon_only_predicts_its_validation_cases_from_the_view(clone, monkeypatch):
    folder = make_view(clone, BrighterVAE(), configurations=["3d_fullres"])["3d_fullres"]
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as module

    seen = []

    class Stop(Exception):
        pass

    class Predictor(module.nnUNetPredictor):
        def predict_sliding_window_return_logits(self, data):
            seen.append(data.numpy())
            raise Stop

    monkeypatch.setattr(module, "nnUNetPredictor", Predictor)
    recon_only = nnUNetTrainerFVAEReconOnly
    for base, fold, is_view in ((recon_only, 0, True), (recon_only, "all", True), (nnUNetTrainerFVAE, 0, False)):
        trainer = trainer_of(base, clone, "3d_fullres", fold)
        with pytest.raises(Stop):
            trainer.perform_actual_validation()
        case = min(trainer.do_split()[1])
        source = folder if is_view else clone.preprocessed / "nnUNetPlans_3d_fullres"
        assert np.array_equal(seen.pop(), blosc2.open(str(source / f"{case}.b2nd"), mode="r")[:])


def test_a_case_that_no_fold_has_needs_no_view_in_validation(clone, monkeypatch):
    training, validation = trainer_of(nnUNetTrainer, clone).do_split()
    (clone.preprocessed / "splits_final.json").write_text(json.dumps([{"train": training[:-1], "val": validation}]))
    folder = make_view(clone, BrighterVAE(), configurations=["3d_fullres"])["3d_fullres"]
    (folder / "cases" / f"{training[-1]}.json").unlink()
    trainer = trainer_of(nnUNetTrainerFVAEReconOnly, clone)
    trainer.get_tr_and_val_datasets()
    monkeypatch.setattr(
        nnUNetTrainer,
        "perform_actual_validation",
        lambda self, _: self.dataset_class(self.preprocessed_dataset_folder, self.do_split()[1]),
    )
    trainer.perform_actual_validation()


def test_a_subclass_with_its_own_network_keeps_its_name_in_the_checkpoint(clone):
    trainer = trainer_of(Never, clone)
    type(trainer).build_network_architecture = staticmethod(lambda *arguments: None)
    path = clone.preprocessed / "checkpoint.pth"
    trainer.save_checkpoint(str(path))
    assert torch.load(path, weights_only=False)["trainer_name"] == "Never"


def test_lengths_are_nnunets_and_names_too():
    from nnunetv2.training.nnUNetTrainer.variants.training_length import nnUNetTrainer_Xepochs

    lengths = {
        name.removeprefix("nnUNetTrainer")
        for name, found in inspect.getmembers(nnUNetTrainer_Xepochs, inspect.isclass)
        if name.startswith("nnUNetTrainer_") and name.endswith(("epoch", "epochs"))
    }
    assert {f"_{epochs}epoch{'s' if epochs > 1 else ''}" for epochs in EPOCHS} >= lengths
    for base in (
        "nnUNetTrainerFVAE", "nnUNetTrainerFVAEReconOnly", "nnUNetTrainerFVAEBlend", "nnUNetTrainerFVAEOnline",
        "nnUNetTrainerFVAESynth", "nnUNetTrainerFVAESynthRaw",
    ):  # fmt: skip
        for suffix in lengths:
            assert issubclass(getattr(trainers, base + suffix), getattr(trainers, base))


def test_a_variant_trains_its_number_of_epochs(planned):
    variant = trainers.nnUNetTrainerFVAE_5epochs(
        planned.plans | {"continue_training": False}, "3d_fullres", 0, planned.dataset_json, torch.device("cpu")
    )
    assert variant.num_epochs == 5
    assert variant.my_init_kwargs.keys() == {"plans", "configuration", "fold", "dataset_json", "device"}


@pytest.mark.slow
def test_in_a_cascade_only_the_image_channel_changes(clone):
    clone.write_cascade_plans()
    make_view(clone, BrighterVAE(), configurations=["3d_cascade_fullres"])
    data_folder = clone.preprocessed / "nnUNetPlans_3d_fullres"
    for base in (Always, nnUNetTrainer):
        lowres = clone.results / f"{base.__name__}__nnUNetPlans__3d_lowres"
        previous = lowres / "predicted_next_stage" / "3d_cascade_fullres"
        previous.mkdir(parents=True)
        for seg in data_folder.glob("*_seg.b2nd"):
            blosc2.asarray(blosc2.open(str(seg), mode="r")[0], urlpath=str(previous / seg.name.replace("_seg", "")))
    ours, nnunets = (batches(base, clone, "3d_cascade_fullres", augmented=False) for base in (Always, nnUNetTrainer))
    for our, nnunet in zip(ours[:3], nnunets[:3], strict=True):
        assert not torch.equal(our["data"], nnunet["data"])
        assert torch.equal(our["target"], nnunet["target"])
        assert our["target"].shape[1] == 2, "segmentation and that of the previous stage"
        assert our["target"][:, 1].any()
    (augmented,) = batches(Always, clone, "3d_cascade_fullres", number=1)[:1]
    assert augmented["data"].shape[1] == 3, "image and two labels of the previous stage"


@pytest.mark.slow
def test_regions_and_ignore_label_keep_their_targets(clone):
    clone.write_dataset_json(
        clone.dataset_json
        | {"labels": {"background": 0, "pancreas": [1, 2], "tumour": 2, "ignore": 3}, "regions_class_order": [1, 2]}
    )
    clone.preprocess("3d_fullres")
    make_view(clone, BrighterVAE(), configurations=["3d_fullres"])
    ours, nnunets = batches(Always, clone), batches(nnUNetTrainer, clone)
    for our, nnunet in zip(ours[:3], nnunets[:3], strict=True):
        assert our["target"][0].shape[1] == 3
        assert not torch.equal(our["data"], nnunet["data"])
        assert all(torch.equal(a, b) for a, b in zip(our["target"], nnunet["target"], strict=True))
