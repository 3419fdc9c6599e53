"""Trainers for ``nnUNetv2_train``; nnU-Net finds them through a stub, see ``fvae_nnunet.nnunet.registration``."""

from __future__ import annotations

from fvae_nnunet.trainers.online_trainer import nnUNetTrainerFVAEOnline
from fvae_nnunet.trainers.recording_trainer import RecordingTrainer
from fvae_nnunet.trainers.synth_trainer import nnUNetTrainerFVAESynth, nnUNetTrainerFVAESynthRaw
from fvae_nnunet.trainers.view_trainers import (
    nnUNetTrainerFVAE,
    nnUNetTrainerFVAEBlend,
    nnUNetTrainerFVAEReconOnly,
    with_epochs,
)

EPOCHS = (1, 5, 10, 20, 50, 100, 250, 500, 750, 2000, 4000, 8000)
"""Training lengths that nnU-Net offers as variants of its own trainer."""


class nnUNetTrainerFVAEProbe(RecordingTrainer):
    """Trainer that only ``nnunet.registration`` looks up, so that no other module has its name."""


PROBE = nnUNetTrainerFVAEProbe

__all__ = [
    "EPOCHS",
    "nnUNetTrainerFVAE",
    "nnUNetTrainerFVAEBlend",
    "nnUNetTrainerFVAEOnline",
    "nnUNetTrainerFVAEReconOnly",
    "nnUNetTrainerFVAESynth",
    "nnUNetTrainerFVAESynthRaw",
    "with_epochs",
]

for _base in (
    nnUNetTrainerFVAE,
    nnUNetTrainerFVAEReconOnly,
    nnUNetTrainerFVAEBlend,
    nnUNetTrainerFVAEOnline,
    nnUNetTrainerFVAESynth,
    nnUNetTrainerFVAESynthRaw,
):
    for _epochs in EPOCHS:
        _variant = with_epochs(_base, _epochs)
        globals()[_variant.__name__] = _variant
        __all__.append(_variant.__name__)
