"""Lesion details at latent resolution: outline and appearance.

The outline is the lesion mask at full resolution, with the voxels of a latent cell as its channels (space to depth).
The share of a lesion in a cell alone does not tell a network where the edge is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from fvae_nnunet.synthesis.model.layout import APPEARANCE, Layout
from fvae_nnunet.synthesis.model.mask_conditions import share_of_cells
from fvae_nnunet.vae.base import VAESpec

MOST_SDS = 3.0


@dataclass(frozen=True)
class AppearanceScale:
    """Mean and standard deviation in HU of each of ``layout.APPEARANCE`` over the training lesions."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, appearances_hu: Sequence[Sequence[float]]) -> AppearanceScale:
        """Compute from the known appearances of lesions, (n, 2), NaN where unknown; the standard deviation is 1 HU if
        there is no variation."""
        known = [hu for hu in appearances_hu if not any(map(math.isnan, hu))]
        if not known:
            return cls((0.0,) * len(APPEARANCE), (1.0,) * len(APPEARANCE))
        values = torch.tensor(known, dtype=torch.float64)
        std = values.std(dim=0, correction=0)
        return cls(tuple(values.mean(dim=0).tolist()), tuple(torch.where(std > 0, std, 1.0).tolist()))

    def scaled(self, appearance_hu: torch.Tensor) -> torch.Tensor:
        """Convert (B, 2, d, h, w) from HU to float32 standard deviations from the mean; NaN becomes 0.

        Limited to `MOST_SDS`: beyond what the training has shown, a network cannot know what to do, and the draft holds
        the requested brightness anyway.
        """
        mean, std = (torch.tensor(of, device=appearance_hu.device).view(-1, 1, 1, 1) for of in (self.mean, self.std))
        return torch.nan_to_num(((appearance_hu.float() - mean) / std).clamp(-MOST_SDS, MOST_SDS))


def appearance_of_cells(layout: Layout, spec: VAESpec) -> torch.Tensor:
    """``APPEARANCE`` of the lesion in each latent cell: float32 (1, 2, d, h, w) in HU.

    It is NaN in cells without lesion or with unknown appearance. A cell with several lesions has the mean over its
    lesion voxels.

    Args:
        layout: layout whose numbers of slices and pixels the VAE accepts.
        spec: specification of the VAE.
    """
    numbers = torch.from_numpy(layout.lesion_numbers.astype("int32"))[None]
    table = torch.cat([torch.zeros(1, len(APPEARANCE)), torch.from_numpy(layout.appearances_hu)])
    share = share_of_cells((numbers > 0).float(), spec)
    sums = [share_of_cells(table[numbers, column], spec) for column in range(len(APPEARANCE))]
    return torch.stack([total / share for total in sums], dim=1)  # 0 / 0 is NaN


def outline_channels(spec: VAESpec) -> int:
    """Number of voxels in a latent cell."""
    return spec.slice_stride * spec.inplane_stride**2


def packed_outline(lesion: torch.Tensor, spec: VAESpec) -> torch.Tensor:
    """Pack a lesion mask, bool (B, D, H, W) of a size valid for the VAE, to uint8 (B, n, d, h, w).

    The voxels of each latent cell are stored in the order (z, y, x), eight per byte, the first in the highest bit. If
    the first latent slice codes fewer slices than the others (Wan: one instead of four), its first slice is repeated.
    """
    if spec.slice_offset:
        before = lesion[:, :1].expand(-1, spec.slice_stride - spec.slice_offset, -1, -1)
        lesion = torch.cat([before, lesion], dim=1)
    stride = spec.inplane_stride
    cells = lesion.unflatten(3, (-1, stride)).unflatten(2, (-1, stride)).unflatten(1, (-1, spec.slice_stride))
    voxels = cells.permute(0, 2, 4, 6, 1, 3, 5).flatten(1, 3).to(torch.uint8)  # (B, z * y * x, d, h, w)
    voxels = F.pad(voxels, (0, 0, 0, 0, 0, 0, 0, -voxels.shape[1] % 8)).unflatten(1, (-1, 8))
    return (voxels << _bits(voxels.device)).sum(dim=2, dtype=torch.uint8)


def unpacked_outline(packed: torch.Tensor, voxels: int) -> torch.Tensor:
    """The inverse of ``packed_outline``: float32 (B, voxels, d, h, w), 0 or 1."""
    return ((packed[:, :, None] >> _bits(packed.device)) & 1).flatten(1, 2)[:, :voxels].float()


def _bits(device: torch.device) -> torch.Tensor:
    return torch.arange(7, -1, -1, dtype=torch.uint8, device=device).view(1, 1, 8, 1, 1, 1)
