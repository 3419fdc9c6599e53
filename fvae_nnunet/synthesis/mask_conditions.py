"""Organ and lesion masks as a condition at latent resolution."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from fvae_nnunet.vae.base import FrozenVAE, VAESpec

ENCODINGS = ("onehot", "vae")


def condition_channels(encoding: str, classes: int, latent_channels: int) -> int:
    """Channels of ``mask_condition``: one for each class and one for the background, or those of the latent."""
    if encoding not in ENCODINGS:
        raise ValueError(f"unknown mask encoding {encoding!r}; known are {', '.join(ENCODINGS)}")
    return classes + 1 if encoding == "onehot" else latent_channels


def mask_condition(
    class_maps: torch.Tensor, spec: VAESpec, *, encoding: str, classes: int, vae: FrozenVAE | None = None
) -> torch.Tensor:
    """The condition of class maps.

    Args:
        class_maps: uint8 (B, D, H, W), 0 background, 1 to ``classes``; D, H and W admissible for the VAE.
        spec: of the VAE whose latents are generated.
        encoding: ``onehot``: the share of the voxels of each latent cell that are in each class, the background first;
            it sums to 1. Of a VAE whose first latent slice codes fewer slices than the others (Wan: one instead of
            four), the first cell spans these alone. ``vae``: the map ``2 * class / classes - 1`` through the VAE, as
            the paper does; the paper's value is ``class / 300 - 0.5``, which puts neighbouring classes 0.003 apart,
            less than a VAE keeps. It is not standardised: pass it through ``latent_scale.standardise`` like a latent.
        classes: number of classes without the background.
        vae: needed for ``vae``.

    Returns:
        float32 (B, ``condition_channels``, d, h, w), on the class maps' device (``onehot``) or on the VAE's.

    Raises:
        ValueError: another dtype or rank, sizes that the VAE does not admit, or a class above ``classes``.
    """
    condition_channels(encoding, classes, spec.latent_channels)
    if class_maps.dtype != torch.uint8 or class_maps.ndim != 4:
        raise ValueError(f"class maps are uint8 (B, D, H, W), got {class_maps.dtype} {tuple(class_maps.shape)}")
    slices, height, width = class_maps.shape[1:]
    if slices != spec.padded_slices(slices) or height % spec.inplane_stride or width % spec.inplane_stride:
        raise ValueError(f"{spec.name} does not admit class maps of {slices} x {height} x {width} voxels")
    highest = int(class_maps.max())
    if highest > classes:
        raise ValueError(f"a class map holds {highest}, but there are only {classes} classes")
    if encoding == "onehot":
        shares = [_share_of_cells((class_maps == value).float(), spec) for value in range(classes + 1)]
        return torch.stack(shares, dim=1)
    if vae is None:
        raise ValueError("the encoding 'vae' needs the VAE")
    return vae.encode(class_maps[:, None].float() * (2 / classes) - 1).float()


def cells_of(region: torch.Tensor, spec: VAESpec) -> torch.Tensor:
    """The latent cells with a voxel in a region: bool (B, D, H, W), sizes admissible, becomes bool (B, d, h, w)."""
    return _share_of_cells(region.float(), spec) > 0


def _share_of_cells(voxels: torch.Tensor, spec: VAESpec) -> torch.Tensor:
    """The mean of each latent cell: float32 (B, D, H, W) becomes (B, d, h, w)."""
    rows = F.avg_pool2d(voxels, spec.inplane_stride)
    first, others = rows[:, : spec.slice_offset], rows[:, spec.slice_offset :]
    means = others.unflatten(1, (-1, spec.slice_stride)).mean(2) if others.shape[1] else others
    return torch.cat([first.mean(1, keepdim=True), means], dim=1) if spec.slice_offset else means
