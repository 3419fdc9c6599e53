"""Views made in this process with VAEs that tests can calculate with."""

from __future__ import annotations

from pathlib import Path

import torch
from identity_vae import IdentityVAE

from fvae_nnunet.jobs.pipeline import StageSeconds
from fvae_nnunet.preprocessing.dataset import open_preprocessed_dataset
from fvae_nnunet.preprocessing.make_views import make_views, open_views
from fvae_nnunet.reconstruction.settings import ReconstructionSettings

WIDE_HU_WINDOW = (-3000.0, 3000.0)


class BrighterVAE(IdentityVAE):
    """Adds 60 HU in the window of -3000 to 3000 HU."""

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        return latent + 0.02


def make_view(
    dataset,
    vae=None,
    *,
    view="test",
    configurations=None,
    hu_window=WIDE_HU_WINDOW,
    workers=0,
    overwrite=False,
    **passes,
) -> dict[str, Path]:
    """Make a view of every case; fails where one case failed. Returns the folders."""
    vae = vae or IdentityVAE(slice_stride=4, slice_offset=1, window_slices=9, causal=True)
    found = open_preprocessed_dataset(dataset.id, configurations=configurations)
    settings = ReconstructionSettings.for_vae(vae.spec, hu_window=hu_window, **passes)
    made_with = {"parameters": {"vae": "identity", "view": view}}
    folders = open_views(found, vae, view=view, settings=settings, made_with=made_with, overwrite=overwrite)
    for outcome in make_views(
        found, vae, folders, settings=settings, cases=found.cases, workers=workers, seconds=StageSeconds()
    ):
        if outcome.error:
            raise outcome.error
    return folders
