"""Random weights of IV-VAE."""

from __future__ import annotations

from functools import cache

import torch

from fvae_nnunet.vae.ivvae.network import IVVAENetwork


@cache
def tiny_state(seed: int = 0, *, dim: int = 4, latent_channels: int = 4) -> dict[str, torch.Tensor]:
    """Random weights that keep the variance, gammas around one."""
    with torch.device("meta"):
        expected = IVVAENetwork(dim, latent_channels).state_dict()
    generator = torch.Generator().manual_seed(seed)

    def values(key: str, size: torch.Size) -> torch.Tensor:
        normal = torch.randn(size, generator=generator)
        if key.endswith("gamma"):
            return 1 + 0.2 * normal
        return normal / size[1:].numel() ** 0.5 if key.endswith("weight") else 0.1 * normal

    return {key: values(key, value.shape) for key, value in expected.items()}
