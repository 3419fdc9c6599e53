"""A VAE without loss, for tests of everything that stands on the VAE contract."""

from __future__ import annotations

import torch

from fvae_nnunet.vae.base import FrozenVAE, VAESpec


class IdentityVAE(FrozenVAE):
    """Encode and decode return their input, yet sizes are refused as a VAE with these strides would refuse them.

    Attributes:
        windows: shape (B, 1, D, H, W) of every volume encoded so far, in order.
    """

    def __init__(
        self,
        *,
        slice_stride: int = 1,
        slice_offset: int = 0,
        inplane_stride: int = 8,
        window_slices: int = 8,
        causal: bool = False,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.spec = VAESpec(
            name="identity",
            inplane_stride=inplane_stride,
            latent_channels=1,
            slice_stride=slice_stride,
            slice_offset=slice_offset,
            window_slices=window_slices,
            causal=causal,
        )
        self.weights_sha256 = "0" * 64
        self.weights_source = "identity, no weights"
        self.windows: list[tuple[int, ...]] = []
        self._device = torch.device(device)
        self._dtype = dtype

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    def encode(self, volume: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        self.check_volume(volume)
        self.windows.append(tuple(volume.shape))
        return volume.detach().to(self._device, self._dtype)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        return latent.float()
