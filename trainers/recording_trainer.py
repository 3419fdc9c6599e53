"""Checkpoints that predict without this package and yet say which trainer and view made them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from fvae_nnunet import __version__
from fvae_nnunet.manifest import atomic_write
from fvae_nnunet.nnunet_folders import dataset_id


class RecordingTrainer(nnUNetTrainer):
    """What our trainers have in common.

    Attributes:
        view_settings: what the view is made with, as in a view's manifest; None as long as there is none.
    """

    view_settings: dict[str, Any] | None = None

    def training_record(self) -> dict[str, Any]:
        """What a checkpoint holds under ``fvae_nnunet``."""
        return {"version": __version__, "trainer": type(self).__name__, "view": self.view_settings}

    def repair_command(self) -> str:
        """Start of the command that makes a view of the data in use."""
        return (
            f"fvae-preprocess {dataset_id(self.plans_manager.dataset_name)} "
            f"-c {self.configuration_name} -p {self.plans_manager.plans_name}"
        )

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's checkpoint, under the name of nnU-Net's own trainer, so that it predicts without this package.

        Which trainer and view made it stands under the key ``fvae_nnunet``. A subclass that builds a network of its
        own keeps its name. Written atomically.
        """
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        buffer = io.BytesIO()
        super().save_checkpoint(buffer)  # type: ignore[arg-type]
        buffer.seek(0)
        checkpoint = torch.load(buffer, map_location="cpu", weights_only=False)
        checkpoint["fvae_nnunet"] = self.training_record()
        if type(self).build_network_architecture is nnUNetTrainer.build_network_architecture:
            checkpoint["trainer_name"] = nnUNetTrainer.__name__
        with atomic_write(Path(filename)) as temporary:
            torch.save(checkpoint, temporary)
