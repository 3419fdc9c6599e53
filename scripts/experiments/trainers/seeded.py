"""nnU-Net's and our trainers with a seed and a short schedule from the environment; see the Snakefile of experiments.

The seed determines the initialisation and, if data are loaded in this process (``nnUNet_n_proc_DA=0``), all random
choices of data loading. A training that resumes from a checkpoint draws new random numbers.
"""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from fvae_nnunet.trainers import nnUNetTrainerFVAE, nnUNetTrainerFVAEBlend, nnUNetTrainerFVAEReconOnly

_Trainer = nnUNetTrainer if TYPE_CHECKING else object


class Seeded(_Trainer):
    """Trainer that reads ``EXPERIMENT_SEED``, ``EXPERIMENT_EPOCHS`` and ``EXPERIMENT_ITERATIONS`` (per epoch); with
    ``EXPERIMENT_MIRRORED=False``, cases are predicted without mirroring."""

    def initialize(self) -> None:
        for draw in (random.seed, np.random.seed, torch.manual_seed):
            draw(1000 * int(os.environ["EXPERIMENT_SEED"]) + self.fold)
        self.num_epochs = int(os.environ["EXPERIMENT_EPOCHS"])
        self.num_iterations_per_epoch = int(os.environ["EXPERIMENT_ITERATIONS"])
        self.num_val_iterations_per_epoch = 1
        self.save_every = max(1, self.num_epochs // 10)
        if self.device.type == "cpu":
            # nnUNetv2_train would use all cores, even if other processes need them
            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        super().initialize()

    def on_epoch_end(self) -> None:
        """Draw the progress only when a checkpoint is written: with short epochs it takes a fifth of the time."""
        draw, done = self.logger.plot_progress_png, self.current_epoch + 1
        if done % self.save_every and done < self.num_epochs:
            self.logger.plot_progress_png = lambda output_folder: None
        super().on_epoch_end()
        self.logger.plot_progress_png = draw

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> Any:
        found = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if os.environ["EXPERIMENT_MIRRORED"] == "False":
            self.inference_allowed_mirroring_axes = None
        return found


class nnUNetTrainerNoise(nnUNetTrainer):
    """Simple alternative to views: white noise on half of the samples, with a standard deviation of 0 to 1 after
    nnU-Net's normalisation, instead of nnU-Net's own noise (a tenth of the samples, 0 to 0.1)."""

    @staticmethod
    def get_training_transforms(*arguments: Any, **keywords: Any) -> Any:
        composed = nnUNetTrainer.get_training_transforms(*arguments, **keywords)
        (noise,) = [
            one
            for one in composed.transforms
            if isinstance(one, RandomTransform) and isinstance(one.transform, GaussianNoiseTransform)
        ]
        noise.apply_probability, noise.transform.noise_variance = 0.5, (0, 1)
        return composed


class nnUNetTrainerSeeded(Seeded, nnUNetTrainer):
    pass


class nnUNetTrainerFVAESeeded(Seeded, nnUNetTrainerFVAE):
    pass


class nnUNetTrainerFVAEReconOnlySeeded(Seeded, nnUNetTrainerFVAEReconOnly):
    pass


class nnUNetTrainerFVAEBlendSeeded(Seeded, nnUNetTrainerFVAEBlend):
    pass


class nnUNetTrainerNoiseSeeded(Seeded, nnUNetTrainerNoise):
    pass
