"""The Haar wavelets of WF-VAE, with the kernels of the checkpoint (see ``wfvae/network.py``).

Channels hold the coefficients, wavelet by wavelet, low-pass first, with the three colours of each together. Along the
slices, the first slice is paired with a copy of itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from fvae_nnunet.vae.module_vae import batch_as_slices
from fvae_nnunet.vae.wfvae.layers import as_slices

COLOURS = 3
HAAR_3D = ("h", "g", "hh", "gh", "h_v", "g_v", "hh_v", "gh_v")
HAAR_2D = ("aa", "ad", "da", "dd")


class Haar3d(nn.Module):
    """(B, 3, 1 + 2k, H, W) to (B, 24, 1 + k, H / 2, W / 2): eight wavelets of three colours, the low-pass first."""

    def __init__(self) -> None:
        super().__init__()
        for name in HAAR_3D:
            wavelet = nn.Conv3d(1, 1, 2, stride=2, bias=False)
            self.add_module(f"{name}_conv", nn.ModuleDict({"conv": wavelet}))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernels = [self.get_parameter(f"{name}_conv.conv.weight") for name in HAAR_3D]
        return functional.conv3d(torch.cat([x[:, :, :1], x], dim=2), _for_each_colour(kernels), stride=2)


class InverseHaar3d(nn.Module):
    """(B, 24, 1 + k, H, W) to (B, 3, 1 + 2k, 2H, 2W)."""

    def __init__(self) -> None:
        super().__init__()
        for name in HAAR_3D:
            self.register_buffer(name, torch.empty(1, 1, 2, 2, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernels = [self.get_buffer(name) for name in HAAR_3D]
        return functional.conv_transpose3d(x, _for_each_colour(kernels), stride=2)[:, :, 1:]


class _SliceHaar(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name in HAAR_2D:
            self.register_buffer(name, torch.empty(1, 1, 2, 2))

    def kernel(self) -> torch.Tensor:
        return _for_each_colour([self.get_buffer(name) for name in HAAR_2D])


class Haar2d(_SliceHaar):
    """(B, 3, D, H, W) to (B, 12, D, H / 2, W / 2): four wavelets of three colours, the low-pass first."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return batch_as_slices(functional.conv2d(as_slices(x), self.kernel(), stride=2), x.shape[0])


class InverseHaar2d(_SliceHaar):
    """(B, 12, D, H, W) to (B, 3, D, 2H, 2W)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return batch_as_slices(functional.conv_transpose2d(as_slices(x), self.kernel(), stride=2), x.shape[0])


def _for_each_colour(kernels: Sequence[torch.Tensor]) -> torch.Tensor:
    """n kernels (1, 1, ...) as one (n * 3, 3, ...) that applies each to each colour."""
    wavelets = torch.stack(tuple(kernels))
    colours = torch.eye(COLOURS, dtype=wavelets.dtype, device=wavelets.device)
    return (wavelets * colours.reshape(COLOURS, COLOURS, *[1] * (wavelets.ndim - 3))).flatten(0, 1)
