"""Settings of latent diffusion models for a VAE."""

from __future__ import annotations

from fvae_nnunet.synthesis.model.folder import ModelSettings
from fvae_nnunet.vae.base import FrozenVAE

HU_WINDOW = (-500.0, 500.0)


def settings_for(vae: FrozenVAE, *, inplane_pixels: int = 32, window_slices: int | None = None, **options):
    channels = vae.spec.latent_channels
    defaults = {
        "vae": vae.spec.name,
        "weights_sha256": vae.weights_sha256,
        "latent_channels": channels,
        "precision": "float32",
        "hu_window": HU_WINDOW,
        "window_slices": window_slices or vae.spec.window_slices,
        "inplane_pixels": inplane_pixels,
        "spacing_mm": None,
        "mask_encoding": "onehot",
        "class_names": ("liver", "tumour"),
        "latent_mean": tuple(0.1 * index for index in range(channels)),
        "latent_std": tuple(0.5 + 0.1 * index for index in range(channels)),
        "prediction": "epsilon",
        "text_encoder": None,
        "text_width": None,
        "organ": "label:liver",
    }
    return ModelSettings(**(defaults | options))
