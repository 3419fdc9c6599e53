"""Random weights of LeanVAE."""

from __future__ import annotations

import re

import torch

from fvae_nnunet.vae.leanvae.network import LeanVAENetwork, Sizes

SMALL = Sizes(low=5, high=18, latent_channels=4, separate_layers=1, fusion_layers=2, steps=3, step_layers=1)


def random_state(sizes: Sizes = SMALL, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights that keep the variance; a fifth of it in the decoder's last maps, so that few values are clamped."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in LeanVAENetwork(sizes).state_dict().items()}
    state = {}
    for key, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            values /= shape[1:].numel() ** 0.5
        elif "threshold" in key:
            values = 0.05 + 0 * values
        elif ".weights." in key:
            values = 0.7 + 0.1 * values
        elif key.endswith("weight"):
            values = 1 + 0.1 * values
        else:
            values *= 0.1
        state[key] = values * 0.2 if re.match(r"decoder.*_proj", key) else values
    return state
