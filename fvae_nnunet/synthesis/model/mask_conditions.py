"""Class maps at latent resolution: shares of classes in latent cells, or the paper's grey image through the VAE."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from fvae_nnunet.vae.base import FrozenVAE, VAESpec


def grey_condition(class_maps: torch.Tensor, vae: FrozenVAE, *, classes: int) -> torch.Tensor:
    """Encode the map ``2 * class / classes - 1`` with the VAE, like the paper.

    The paper's value is ``class / 300 - 0.5``, which separates neighbouring classes by 0.003, less than a VAE can keep.

    Args:
        class_maps: uint8 (B, D, H, W), 0 background, 1 to ``classes``; D, H and W valid for the VAE.
        vae: VAE whose latents are generated.
        classes: number of classes without the background.

    Returns:
        float32 (B, C, d, h, w), on the VAE's device; not standardised: pass it through ``model.scale.standardise``
        like a latent.

    Raises:
        ValueError: dtype or rank are wrong, the VAE does not accept the size, or a class is above ``classes``.
    """
    _check(class_maps, vae.spec, classes)
    return vae.encode(class_maps[:, None].float() * (2 / classes) - 1).float()


@dataclass(frozen=True)
class ClassShares:
    """Shares of classes in sparse form: a latent cell contains few of many classes.

    With 140 classes, cells of 4 x 8 x 8 voxels and at most k = 8 classes per cell, this takes 24 bytes per cell; all
    channels in float16 take 280.

    Attributes:
        classes: uint8 (B, k, d, h, w), classes of each cell, sorted by decreasing share; k is the largest number of
            classes in a cell. Unused entries are 0 with share 0.
        shares: float16 (B, k, d, h, w), share of the cell's voxels; exact if the number of voxels in a cell is a power
            of two of at most 2048.
    """

    classes: torch.Tensor
    shares: torch.Tensor

    def dense(self, classes: int) -> torch.Tensor:
        """float32 (B, classes + 1, d, h, w), on the same device."""
        batch, _, *cells = self.classes.shape
        dense = torch.zeros(batch, classes + 1, *cells, device=self.classes.device)
        return dense.scatter_add_(1, self.classes.long(), self.shares.float())


def class_shares(class_maps: torch.Tensor, spec: VAESpec, *, classes: int) -> ClassShares:
    """The share of each class, including the background, in the voxels of each latent cell; shares sum to 1.

    If the first latent slice of the VAE codes fewer slices than the others (Wan: one instead of four), the first cells
    span only these. A few slices are counted at a time, so extra memory does not grow with their number.

    Args:
        class_maps, classes: as for ``grey_condition``, whose errors also apply.
        spec: specification of the VAE.
    """
    _check(class_maps, spec, classes)
    slices = class_maps.shape[1]
    starts = [*([0] if spec.slice_offset else []), *range(spec.slice_offset, slices, spec.slice_stride)]
    ranked = []
    for start, stop in zip(starts, [*starts[1:], slices], strict=True):
        ranked.append(_ranked(class_maps[:, start:stop], spec.inplane_stride, classes))
    most = max(found.shape[1] for found, _ in ranked)
    padded = [
        [F.pad(part, (0, 0, 0, 0, 0, most - part.shape[1])) for part in found_and_shares] for found_and_shares in ranked
    ]
    found, shares = (torch.stack(parts, dim=2) for parts in zip(*padded, strict=True))
    return ClassShares(found, shares)


def _ranked(class_maps: torch.Tensor, stride: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One latent slice: uint8 (B, D, H, W) becomes classes and shares (B, k, h, w), the largest first."""
    batch, slices, height, width = class_maps.shape
    rows, columns, numbers = height // stride, width // stride, classes + 1
    cells = torch.arange(batch * rows * columns, device=class_maps.device).view(batch, 1, rows, 1, columns, 1)
    bins = cells * numbers + class_maps.view(batch, slices, rows, stride, columns, stride)
    counts = torch.bincount(bins.flatten(), minlength=batch * rows * columns * numbers).view(-1, numbers)
    most = int((counts > 0).sum(1).max())
    # the keys of a cell are distinct, so the order is the same on all devices: of equal shares the lower class first
    keys = counts * numbers + torch.arange(classes, -1, -1, device=counts.device)
    top = keys.topk(most, dim=1).values
    count = top // numbers
    found = torch.where(count > 0, classes - top % numbers, 0).to(torch.uint8)
    shares = (count / (slices * stride * stride)).to(torch.float16)
    return tuple(  # type: ignore[return-value]
        part.view(batch, rows, columns, most).permute(0, 3, 1, 2).contiguous() for part in (found, shares)
    )


def _check(class_maps: torch.Tensor, spec: VAESpec, classes: int) -> None:
    if class_maps.dtype != torch.uint8 or class_maps.ndim != 4:
        raise ValueError(f"class maps must be uint8 (B, D, H, W), got {class_maps.dtype} {tuple(class_maps.shape)}")
    slices, height, width = class_maps.shape[1:]
    if slices != spec.padded_slices(slices) or height % spec.inplane_stride or width % spec.inplane_stride:
        raise ValueError(f"{spec.name} does not accept class maps of {slices} x {height} x {width} voxels")
    highest = int(class_maps.max())
    if highest > classes:
        raise ValueError(f"a class map has class {highest}, but the highest class is {classes}")


def cells_of(region: torch.Tensor, spec: VAESpec) -> torch.Tensor:
    """The latent cells with a voxel in a region: bool (B, D, H, W), valid for the VAE, becomes bool (B, d, h, w)."""
    return share_of_cells(region.float(), spec) > 0


def share_of_cells(voxels: torch.Tensor, spec: VAESpec) -> torch.Tensor:
    """The mean of each latent cell: float32 (B, D, H, W) becomes (B, d, h, w)."""
    rows = F.avg_pool2d(voxels, spec.inplane_stride)
    first, others = rows[:, : spec.slice_offset], rows[:, spec.slice_offset :]
    means = others.unflatten(1, (-1, spec.slice_stride)).mean(2) if others.shape[1] else others
    return torch.cat([first.mean(1, keepdim=True), means], dim=1) if spec.slice_offset else means
