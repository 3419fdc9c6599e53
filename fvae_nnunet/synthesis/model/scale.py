"""Standardise latents to zero mean and unit variance per channel, and back.

The paper multiplies all channels by one factor (1.52 for its VAE). Because the channels of a VAE differ more than that,
each one has its own mean and standard deviation here, measured on the training data.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def standardise(latent: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """``(latent - mean) / std`` per channel: (B, C, d, h, w), any float dtype, becomes float32; C means and stds."""
    return (latent.float() - _of_channels(mean, latent)) / _of_channels(std, latent)


def unstandardise(latent: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """The inverse of ``standardise``, float32."""
    return latent.float() * _of_channels(std, latent) + _of_channels(mean, latent)


def _of_channels(values: Sequence[float], latent: torch.Tensor) -> torch.Tensor:
    if len(values) != latent.shape[1]:
        raise ValueError(f"statistics of {len(values)} channels for a latent with {latent.shape[1]}")
    return torch.tensor(values, dtype=torch.float32, device=latent.device).view(1, -1, 1, 1, 1)
