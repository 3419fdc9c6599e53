"""Models as nnU-Net leaves them after training, with random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from batchgenerators.utilities.file_and_folder_operations import save_json
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from trainers_for_tests import trainer_of


def save_model(base, dataset, configuration="3d_fullres", *, fold=0, view=None):
    """A model folder as after training, with random weights; ``view`` instead of the settings of the dataset's view."""
    torch.manual_seed(fold)
    trainer = trainer_of(base, dataset, configuration, fold)
    folder = Path(trainer.output_folder)
    if view is not None:
        trainer.view_settings = view
    elif base is not nnUNetTrainer:
        trainer.get_tr_and_val_datasets()
    save_json(trainer.plans_manager.plans, str(folder.parent / "plans.json"), sort_keys=False)
    save_json(dataset.dataset_json, str(folder.parent / "dataset.json"), sort_keys=False)
    trainer.save_checkpoint(str(folder / "checkpoint_final.pth"))
    return folder.parent
