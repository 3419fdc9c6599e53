"""Conditions of the network at latent resolution, in one format for training and synthesis.

=========== ==========================================================================================================
encoding    channels of the condition
=========== ==========================================================================================================
``outline`` the share of background and of each class in a latent cell; the outline of the lesions (``lesion_detail``);
            the appearance of the lesion in the cell; log2 of the spacing in mm (z, y, x)
``onehot``  the shares only
``vae``     the class map as a grey image through the VAE, like the paper
=========== ==========================================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fvae_nnunet.synthesis.model.layout import APPEARANCE, Layout
from fvae_nnunet.synthesis.model.lesion_detail import (
    AppearanceScale,
    appearance_of_cells,
    outline_channels,
    packed_outline,
    unpacked_outline,
)
from fvae_nnunet.synthesis.model.mask_conditions import ClassShares, class_shares, grey_condition
from fvae_nnunet.synthesis.model.scale import standardise
from fvae_nnunet.vae.base import FrozenVAE, VAESpec

ENCODINGS = ("outline", "onehot", "vae")
_STORED = {
    "outline": ("classes", "shares", "outline", "appearance_hu"),
    "onehot": ("classes", "shares"),
    "vae": ("condition",),
}

SPACING_AXES = 3


def detail_channels(encoding: str, spec: VAESpec) -> int:
    """Number of channels of the condition that are neither shares nor a grey map."""
    return outline_channels(spec) + len(APPEARANCE) + SPACING_AXES if encoding == "outline" else 0


def packed_condition(layout: Layout, vae: FrozenVAE, *, encoding: str, classes: int) -> dict[str, torch.Tensor]:
    """The condition of a layout in its compact stored form, by name.

    Args:
        layout: layout whose numbers of slices and pixels the VAE accepts.
        vae: VAE whose latents are generated.
        encoding: one of ``ENCODINGS``.
        classes: number of classes without the background.

    Returns:
        ``classes`` uint8 and ``shares`` float16, see ``ClassShares``; ``outline`` uint8, see ``packed_outline``;
        ``appearance_hu`` float16, see ``appearance_of_cells``; or ``condition`` float32, see ``grey_condition``: each
        (1, channels, d, h, w).

    Raises:
        ValueError: a class is above ``classes``, or the VAE does not accept the size.
    """
    class_maps = torch.from_numpy(np.ascontiguousarray(layout.class_map))[None]
    if encoding == "vae":
        return {"condition": grey_condition(class_maps, vae, classes=classes)}
    shares = class_shares(class_maps, vae.spec, classes=classes)
    packed = {"classes": shares.classes, "shares": shares.shares}
    if encoding == "outline":
        lesion = torch.from_numpy(layout.lesion_numbers > 0)[None]
        packed["outline"] = packed_outline(lesion, vae.spec)
        packed["appearance_hu"] = appearance_of_cells(layout, vae.spec).half()
    return packed


@dataclass(frozen=True)
class ConditionFormat:
    """Convert stored conditions to the input of the network.

    Attributes:
        encoding: one of ``ENCODINGS``.
        classes: number of classes without the background.
        spec: specification of the VAE.
        latent_mean, latent_std: statistics of each latent channel.
        appearance: scale of the training lesions' appearance, for ``outline``.
    """

    encoding: str
    classes: int
    spec: VAESpec
    latent_mean: Sequence[float]
    latent_std: Sequence[float]
    appearance: AppearanceScale | None

    @property
    def stored(self) -> tuple[str, ...]:
        """The names of the stored tensors."""
        return _STORED[self.encoding]

    def dense(self, packed: Mapping[str, torch.Tensor], spacing_mm: Sequence[float]) -> torch.Tensor:
        """The condition of any latent cells: float32 (B, channels, d, h, w).

        Args:
            packed: output of ``packed_condition``, or any part of its cells.
            spacing_mm: voxel size (z, y, x).
        """
        if self.encoding == "vae":
            return standardise(packed["condition"], self.latent_mean, self.latent_std)
        shares = ClassShares(packed["classes"], packed["shares"]).dense(self.classes)
        if self.encoding == "onehot":
            return shares
        assert self.appearance is not None
        outline = unpacked_outline(packed["outline"], outline_channels(self.spec))
        appearance = self.appearance.scaled(packed["appearance_hu"])
        logs = torch.tensor(spacing_mm, dtype=torch.float32, device=shares.device).log2().view(1, -1, 1, 1, 1)
        spacing = logs.expand(len(shares), -1, *shares.shape[2:])
        return torch.cat([shares, outline, appearance, spacing], dim=1)
