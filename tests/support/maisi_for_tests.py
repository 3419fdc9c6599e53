"""MAISI's VAE as MONAI builds it."""

from __future__ import annotations

from typing import Any

import torch
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi

BUNDLE: dict[str, Any] = {  # autoencoder_def of configs/inference.json in MONAI's bundle maisi_ct_generative 1.0
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 1,
    "latent_channels": 4,
    "num_channels": [64, 128, 256],
    "num_res_blocks": [2, 2, 2],
    "norm_num_groups": 32,
    "norm_eps": 1e-06,
    "attention_levels": [False, False, False],
    "with_encoder_nonlocal_attn": False,
    "with_decoder_nonlocal_attn": False,
    "use_checkpointing": False,
    "use_convtranspose": False,
    "norm_float16": True,
    "num_splits": 2,
    "dim_split": 1,
}


def library_model(**options: Any) -> Any:
    """MONAI's class in float32 with random weights, norms included, and half of the bundle's channels."""
    exact: dict[str, Any] = {"num_channels": [32, 64, 128], "norm_float16": False, "num_splits": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoencoderKlMaisi(**(BUNDLE | exact | options)).eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter) / max(1, parameter[0].numel()) ** 0.5
    return model
