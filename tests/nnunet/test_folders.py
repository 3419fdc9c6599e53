"""Folders of nnU-Net: files above a folder that is a link, and the files of training cases."""

import json
from types import SimpleNamespace

import pytest
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from fvae_nnunet.cli.reconstruct import _reader
from fvae_nnunet.errors import UserError
from fvae_nnunet.nnunet.folders import folders_above, training_files
from fvae_nnunet.nnunet.labels import dataset_json_near
from fvae_nnunet.report.case_images import ct_channel
from fvae_nnunet.report.training_section import load_trainings

READER = "NibabelIOWithReorient"


@pytest.fixture
def link(tmp_path):
    """A link in one folder to a folder in another."""
    (tmp_path / "disk" / "images").mkdir(parents=True)
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "imagesTs").symlink_to(tmp_path / "disk" / "images")
    return tmp_path / "dataset" / "imagesTs"


def test_the_folders_above_are_those_of_the_path_and_of_the_link(link, monkeypatch):
    dataset = link.parent
    assert folders_above(link) == [dataset, dataset.parent / "disk"]
    assert folders_above(dataset) == folders_above(dataset / "x" / "..") == [dataset.parent]
    monkeypatch.chdir(dataset)
    assert folders_above(type(link)(".")) == [dataset.parent]


@pytest.mark.parametrize("place", ["dataset", "disk"])
def test_a_dataset_json_above_a_link_is_found(link, tmp_path, place):
    path = tmp_path / place / "dataset.json"
    content = {"channel_names": {"0": "PET", "1": "CT"}, "labels": {}, "file_ending": ".nii.gz"}
    path.write_text(json.dumps(content | {"overwrite_image_reader_writer": READER}))
    assert _reader(link) == READER
    assert dataset_json_near(link, tmp_path / "predictions") == path
    assert ct_channel(link) == 1


@pytest.mark.parametrize("place", ["dataset", "disk"])
def test_logs_above_a_link_to_predictions_are_found(link, tmp_path, place):
    epoch = ("Epoch 0", "train_loss 0.5", "val_loss 0.4", "Pseudo dice [0.1]")
    lines = [f"2026-01-01 10:00:00.000000: {line}" for line in epoch]
    (tmp_path / place / "training_log_2026_1_1_10_00_00.txt").write_text("\n".join(lines))
    results = SimpleNamespace(content={"models": [{"name": "m"}]}, full_names={"m": "model"}, prediction_folders=[link])
    assert load_trainings([], [results])["model"][place].val_loss == {0: 0.4}


def test_a_log_without_an_epoch_is_an_error_only_if_its_folder_was_given(tmp_path):
    """nnUNetv2_train --val writes such a log."""
    (tmp_path / "training_log_2026_1_1_10_00_00.txt").write_text("2026-01-01 10:00:00.000000: predicting case")
    results = SimpleNamespace(content={"models": [{"name": "m"}]}, full_names={"m": "m"}, prediction_folders=[tmp_path])
    assert load_trainings([], [results]) == {}
    with pytest.raises(UserError, match="has no training log with a completed epoch"):
        load_trainings([("m", tmp_path)], [])


def test_models_of_one_name_keep_all_their_curves(tmp_path):
    folds = [
        tmp_path / dataset / fold for dataset, fold in (("Lung", "fold_0"), ("Lung", "fold_1"), ("Liver", "fold_0"))
    ]
    for number, fold in enumerate(folds):
        epoch = ("Epoch 0", "train_loss 0.5", f"val_loss 0.{number}", "Pseudo dice [0.1]")
        fold.mkdir(parents=True)
        lines = [f"2026-01-01 10:00:00.000000: {line}" for line in epoch]
        (fold / "training_log_2026_1_1_10_00_00.txt").write_text("\n".join(lines))
    every = [
        SimpleNamespace(content={"models": [{"name": "m"}]}, full_names={"m": "raw"}, prediction_folders=[fold])
        for fold in (*folds, folds[0])
    ]
    curves = load_trainings([], every)["raw"]
    assert {fold: curve.val_loss[0] for fold, curve in curves.items()} == {
        "fold_0": 0.0, "fold_1": 0.1, f"fold_0 of {tmp_path / 'Liver'}": 0.2,
    }  # fmt: skip


def test_training_files_are_those_that_nnunet_finds(tmp_path):
    (tmp_path / "imagesTr").mkdir()
    names = [f"case_{number}_{channel:04d}.nii.gz" for number in (10, 9) for channel in (1, 0)]
    for name in (*names, "case_9a_0000.nii.gz", "unnumbered.nii.gz"):
        (tmp_path / "imagesTr" / name).touch()
    dataset_json = {"file_ending": ".nii.gz", "channel_names": {"0": "CT", "1": "CT"}}
    theirs = get_filenames_of_train_images_and_targets(str(tmp_path), dataset_json)
    assert training_files(tmp_path, dataset_json) == {str(case): files for case, files in theirs.items()}
    assert len(theirs) == 4


def test_a_dataset_without_training_images_is_named(tmp_path):
    (tmp_path / "imagesTr").mkdir()
    with pytest.raises(UserError, match="holds no training images"):
        training_files(tmp_path, {"file_ending": ".nii.gz"})
