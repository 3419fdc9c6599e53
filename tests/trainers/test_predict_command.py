"""The command that a finished training prints for a model of views alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fvae_nnunet.trainers.recording_trainer import RecordingTrainer


@pytest.mark.parametrize(("fold", "expected"), [(2, "-f 0 2"), ("all", "-f all")])
def test_the_folds_are_those_of_the_model_and_no_backups(tmp_path, monkeypatch, fold, expected):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    for name in ("fold_0", "fold_0_old", "fold_0_1", "fold_all"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "checkpoint_final.pth").touch()
    plans = SimpleNamespace(dataset_name="Dataset007_Pancreas", plans_name="nnUNetPlans")
    trainer = SimpleNamespace(
        fold=fold, output_folder_base=str(tmp_path), plans_manager=plans, configuration_name="3d_fullres",
        configuration_manager=SimpleNamespace(previous_stage_name=None),
    )  # fmt: skip
    assert RecordingTrainer.predict_command(trainer).endswith(expected)
    trainer.configuration_manager.previous_stage_name = "3d_lowres"
    assert RecordingTrainer.predict_command(trainer).endswith("-prev_stage_predictions predictions_3d_lowres")
