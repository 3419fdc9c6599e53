"""What a checkpoint says it was trained with, what follows from it, and that nothing else goes on with --c."""

import shlex
import shutil
from pathlib import Path

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from synthetic_for_tests import preprocess, write_synthetic_folder
from trainers_for_tests import reproducible, trainer_of  # noqa: F401
from views_for_tests import BrighterVAE, make_view

from fvae_nnunet.cli import predict
from fvae_nnunet.errors import UserError
from fvae_nnunet.nnunet.trained_model import RECORD_KEY, read_record, saw_only_the_view
from fvae_nnunet.trainers import (
    nnUNetTrainerFVAE,
    nnUNetTrainerFVAEBlend,
    nnUNetTrainerFVAEOnline,
    nnUNetTrainerFVAEReconOnly,
    nnUNetTrainerFVAEReconOnly_5epochs,
    nnUNetTrainerFVAESynth,
    nnUNetTrainerFVAESynthRaw,
    with_epochs,
)


class Mine(nnUNetTrainerFVAEReconOnly):
    pass


class AllView(nnUNetTrainerFVAE):
    view_probability = 1.0


class SynthAllView(nnUNetTrainerFVAESynth):
    view_probability = 1.0


class OnlineAllView(nnUNetTrainerFVAEOnline):
    view_probability = 1.0


def saved(trainer, name="checkpoint_latest.pth"):
    path = Path(trainer.output_folder) / name
    trainer.save_checkpoint(str(path))
    return path


def going_on(base, dataset, checkpoint):
    trainer = trainer_of(base, dataset, continue_training=True)
    trainer.load_checkpoint(str(checkpoint))
    return trainer


def refusal(open_data):
    with pytest.raises(UserError) as raised:
        open_data()
    return str(raised.value)


def test_the_record_holds_shares_base_and_view(clone):
    make_view(clone, BrighterVAE(), configurations=["3d_fullres"])
    trainer = trainer_of(with_epochs(Mine, 5), clone)
    trainer.get_tr_and_val_datasets()
    record = read_record(saved(trainer))
    assert record["trainer"] == "Mine_5epochs"
    assert record["base"] == "nnUNetTrainerFVAEReconOnly"
    assert record["view_probability"] == 1 and record["view_blend"] == [1, 1] and record["view_in_validation"] is True
    assert record["synthetic_probability"] == 0
    assert record["view_name"] == "test" and record["view"]["vae"] == "identity"
    assert len(record["view_cases"]) == 5


@pytest.mark.parametrize(
    ("base", "only_the_view", "base_name"),
    [
        (Mine, True, "nnUNetTrainerFVAEReconOnly"),
        (nnUNetTrainerFVAEReconOnly_5epochs, True, "nnUNetTrainerFVAEReconOnly"),
        (with_epochs(nnUNetTrainerFVAEReconOnly, 300), True, "nnUNetTrainerFVAEReconOnly"),
        (AllView, True, "nnUNetTrainerFVAE"),
        (OnlineAllView, True, "nnUNetTrainerFVAEOnline"),
        (SynthAllView, False, "nnUNetTrainerFVAESynth"),
        (nnUNetTrainerFVAE, False, "nnUNetTrainerFVAE"),
        (nnUNetTrainerFVAEBlend, False, "nnUNetTrainerFVAEBlend"),
        (nnUNetTrainerFVAEOnline, False, "nnUNetTrainerFVAEOnline"),
        (nnUNetTrainerFVAESynthRaw, False, "nnUNetTrainerFVAESynthRaw"),
    ],
)
def test_the_record_says_what_was_seen_whatever_the_class_is_called(planned, base, only_the_view, base_name):
    trainer = trainer_of(base, planned)
    record = read_record(saved(trainer, f"{base.__name__}.pth"))
    assert saw_only_the_view(record) is only_the_view
    assert record["base"] == base_name


@pytest.mark.parametrize(
    ("record", "only_the_view"),
    [
        ({"trainer": "nnUNetTrainerFVAEReconOnly_50epochs", "view": {"vae": "tiny"}}, True),
        ({"trainer": "nnUNetTrainerFVAE_100epochs", "view": {"vae": "tiny"}}, False),
        ({"trainer": "nnUNetTrainerFVAESynthRaw", "view": None}, False),
        ({"trainer": "Q", "view": {}, "online": {"probability": 1, "blend": [1, 1]}}, True),
        ({"trainer": "Q", "view": {}, "online": {"probability": 0.5, "blend": [1, 1]}}, False),
        ({"trainer": "nnUNetTrainerQRecon", "view": {"vae": "tiny"}}, None),
        ({"trainer": "nnUNetTrainer", "view": None}, False),
    ],
)
def test_records_of_the_first_version_are_read_as_far_as_they_go(record, only_the_view):
    assert saw_only_the_view(record) is only_the_view


@pytest.mark.slow
def test_another_view_is_refused_with_the_variable_that_brings_back_the_first(clone, monkeypatch):
    make_view(clone, BrighterVAE(), configurations=["3d_fullres"])
    trainer = trainer_of(nnUNetTrainerFVAE, clone)
    trainer.get_tr_and_val_datasets()
    checkpoint = saved(trainer)
    make_view(clone, configurations=["3d_fullres"], view="other", hu_window=(-900.0, 900.0))
    monkeypatch.setenv("nnUNet_fvae_view", "other")
    message = refusal(going_on(nnUNetTrainerFVAE, clone, checkpoint).get_tr_and_val_datasets)
    assert 'view_name: "test", now "other"' in message
    assert "view.hu_window: [-3000.0, 3000.0], now [-900.0, 900.0]" in message
    assert "export nnUNet_fvae_view=test" in message and "-pretrained_weights" in message
    monkeypatch.setenv("nnUNet_fvae_view", "test")
    going_on(nnUNetTrainerFVAE, clone, checkpoint).get_tr_and_val_datasets()


@pytest.mark.slow
def test_a_view_made_anew_goes_on_if_its_arrays_are_the_same_and_is_refused_otherwise(clone):
    make_view(clone, BrighterVAE(), configurations=["3d_fullres"])
    trainer = trainer_of(nnUNetTrainerFVAE, clone)
    trainer.get_tr_and_val_datasets()
    checkpoint = saved(trainer)
    make_view(clone, BrighterVAE(), configurations=["3d_fullres"], overwrite=True)
    going_on(nnUNetTrainerFVAE, clone, checkpoint).get_tr_and_val_datasets()

    class BrighterStill(BrighterVAE):
        def decode(self, latent):
            return latent + 0.05

    make_view(clone, BrighterStill(), configurations=["3d_fullres"], overwrite=True)
    message = refusal(going_on(nnUNetTrainerFVAE, clone, checkpoint).get_tr_and_val_datasets)
    assert "the view 'test' was made again: 4 of 4 cases have changed (first: " in message
    assert message.count("\n  ") == 1, "settings are equal"


@pytest.mark.slow
def test_validation_on_another_view_than_trained_on_is_refused_too(clone):
    make_view(clone, BrighterVAE(), configurations=["3d_fullres"])
    trainer = trainer_of(nnUNetTrainerFVAEReconOnly, clone)
    trainer.get_tr_and_val_datasets()
    checkpoint = saved(trainer, "checkpoint_final.pth")
    make_view(clone, configurations=["3d_fullres"], hu_window=(-900.0, 900.0), overwrite=True)
    trainer = trainer_of(nnUNetTrainerFVAEReconOnly, clone)
    trainer.load_checkpoint(str(checkpoint))
    assert "view.hu_window" in refusal(lambda: trainer._open_views(trainer.do_split()[1]))


def test_other_attributes_of_the_class_are_refused_and_named(planned):
    class Never(nnUNetTrainerFVAE):
        view_probability = 0.0

    class Probable(nnUNetTrainerFVAE):
        view_probability = 0.25
        view_blend = (0.5, 1.0)

    checkpoint = saved(trainer_of(Never, planned), "never.pth")
    going_on(Never, planned, checkpoint).get_tr_and_val_datasets()
    message = refusal(going_on(Probable, planned, checkpoint).get_tr_and_val_datasets)
    assert "view_blend: [1.0, 1.0], now [0.5, 1.0]" in message
    assert "view_probability: 0.0, now 0.25" in message
    assert "Restore them in the class Probable" in message

    # nnU-Net's own checkpoints have no record
    checkpoint = saved(trainer_of(nnUNetTrainer, planned), "raw.pth")
    assert "view_probability: 0.0, now 0.25" in refusal(going_on(Probable, planned, checkpoint).get_tr_and_val_datasets)
    going_on(Never, planned, checkpoint).get_tr_and_val_datasets()


@pytest.mark.slow
def test_records_of_the_first_version_go_on_with_the_same_view_only(clone):
    make_view(clone, BrighterVAE(), configurations=["3d_fullres"])
    trainer = trainer_of(nnUNetTrainerFVAE, clone)
    trainer.get_tr_and_val_datasets()
    path = saved(trainer)
    checkpoint = torch.load(path, weights_only=False)
    checkpoint[RECORD_KEY] = {name: checkpoint[RECORD_KEY][name] for name in ("version", "trainer", "view")}
    torch.save(checkpoint, path)
    going_on(nnUNetTrainerFVAE, clone, path).get_tr_and_val_datasets()
    make_view(clone, BrighterVAE(), configurations=["3d_fullres"], hu_window=(-900.0, 900.0), overwrite=True)
    assert "view.hu_window" in refusal(going_on(nnUNetTrainerFVAE, clone, path).get_tr_and_val_datasets)


def test_the_online_trainer_goes_on_with_the_same_vae_and_draws_only(planned, monkeypatch):
    monkeypatch.setenv("nnUNet_fvae_vae", "tiny")
    trainer = trainer_of(nnUNetTrainerFVAEOnline, planned)
    trainer._load_reconstruction()
    checkpoint = saved(trainer, "online.pth")
    going_on(nnUNetTrainerFVAEOnline, planned, checkpoint)._load_reconstruction()

    class Narrow(nnUNetTrainerFVAEOnline):
        hu_window = (-160.0, 240.0)
        draw_seed = 3

    message = refusal(going_on(Narrow, planned, checkpoint)._load_reconstruction)
    assert "view.hu_window: [-1000.0, 1000.0], now [-160.0, 240.0]" in message
    assert "online.draw_seed: 0, now 3" in message


@pytest.mark.slow
def test_synthetic_cases_that_are_new_or_made_anew_are_refused(clone, tmp_path):
    cases = ["phantom_000", "phantom_001"]
    write_synthetic_folder(tmp_path / "few", clone, cases)
    preprocess(clone, tmp_path / "few")
    trainer = trainer_of(nnUNetTrainerFVAESynthRaw, clone, fold="all")
    trainer.get_tr_and_val_datasets()
    checkpoint = saved(trainer)

    def go_on():
        trainer = trainer_of(nnUNetTrainerFVAESynthRaw, clone, fold="all", continue_training=True)
        trainer.load_checkpoint(str(checkpoint))
        trainer.get_tr_and_val_datasets()

    go_on()
    for data in clone.preprocessed.glob("*__fvae_synthetic"):
        shutil.rmtree(data)
    write_synthetic_folder(tmp_path / "more", clone, [*cases, "phantom_002"])
    preprocess(clone, tmp_path / "more")
    assert "1 synthetic case added (first: synthetic_0002)" in refusal(go_on)


@pytest.mark.slow
def test_a_trainer_names_its_view_before_the_variable(clone, monkeypatch):
    class Second(nnUNetTrainerFVAE):
        view = "second"

    for view in ("first", "second"):
        make_view(clone, configurations=["3d_fullres"], view=view)
    monkeypatch.setenv("nnUNet_fvae_view", "first")
    training, _ = trainer_of(Second, clone).get_tr_and_val_datasets()
    assert [folder.name for folder in training.folders] == ["nnUNetPlans_3d_fullres__fvae_second"]
    Second.view = "third"
    assert "the trainer asks for the view 'third'" in refusal(trainer_of(Second, clone).get_tr_and_val_datasets)


@pytest.mark.parametrize(("base", "says_so"), [(Mine, True), (nnUNetTrainerFVAE, False)])
def test_the_log_of_a_model_that_saw_only_the_view_ends_with_the_command_for_it(planned, base, says_so, monkeypatch):
    monkeypatch.setattr(nnUNetTrainer, "perform_actual_validation", lambda self, save_probabilities: None)
    monkeypatch.setattr(base, "view_in_validation", False)
    trainer = trainer_of(base, planned)
    other_fold = Path(trainer.output_folder_base) / "fold_3"
    other_fold.mkdir(parents=True, exist_ok=True)
    (other_fold / "checkpoint_final.pth").touch()
    trainer.perform_actual_validation(False)
    log = Path(trainer.log_file).read_text()
    assert ("nnUNetv2_find_best_configuration" in log) == says_so
    if says_so:
        command = shlex.split(log.splitlines()[-1])
        assert command[0] == "fvae-predict"
        seen = []
        monkeypatch.setattr(predict, "run", lambda arguments: seen.append(arguments) or 0)
        assert predict.main(command[1:]) == 0
        (arguments,) = seen
        assert arguments.images == planned.raw / "imagesTs" and arguments.folds == [0, 3]
        assert predict._model_folder(arguments) == Path(trainer.output_folder_base)
    shutil.rmtree(trainer.output_folder_base)
