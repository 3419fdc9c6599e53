"""Trainers that are reproducible and short, and their batches."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def reproducible(monkeypatch):
    """One process, and no choice by timing: nnU-Net's blur uses the FFT or not, whichever was faster just before."""
    from batchgeneratorsv2.transforms.noise import gaussian_blur

    def without_fft(self, image, sigma, axis):
        return gaussian_blur.blur_dimension(image, sigma, axis, force_use_fft=False)

    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setattr(gaussian_blur.GaussianBlurTransform, "_benchmark_wrapper", without_fft)


def short(base):
    """``base`` with two iterations and one epoch."""

    class Short(base):
        def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cpu")):  # noqa: B008
            super().__init__(plans, configuration, fold, dataset_json, device)
            self.num_iterations_per_epoch = 2
            self.num_val_iterations_per_epoch = 1
            self.num_epochs = 1

    Short.__name__ = base.__name__
    return Short


def trainer_of(base, dataset, configuration="3d_fullres", fold=0, *, continue_training=False):
    trainer = short(base)(
        plans=dataset.plans | {"continue_training": continue_training},
        configuration=configuration,
        fold=fold,
        dataset_json=dataset.dataset_json,
        device=torch.device("cpu"),
    )
    trainer.initialize()
    return trainer


def batches(base, dataset, configuration="3d_fullres", number=3, *, augmented=True):
    """Batches of a trainer's training and validation loader after seeding every generator that nnU-Net draws from."""
    trainer = trainer_of(base, dataset, configuration)
    trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()
    if not augmented:
        for loader in (trainer.dataloader_train, trainer.dataloader_val):
            loader.data_loader.transforms = None
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    drawn = [next(loader) for loader in (trainer.dataloader_train, trainer.dataloader_val) for _ in range(number)]
    # without transforms, nnU-Net 2.6 hands out arrays
    for batch in drawn:
        batch |= {key: torch.as_tensor(batch[key]) for key in ("data", "target") if isinstance(batch[key], np.ndarray)}
    return drawn
