"""What all VAEs that are a torch module have in common: frozen weights, precision, checks of the input."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import nn

from fvae_nnunet.vae.base import FrozenVAE, VAESpec
from fvae_nnunet.vae.weights import state_dict_sha256


class ModuleVAE(FrozenVAE):
    """A frozen VAE around one module.

    Subclasses code tensors that are already checked, on the device and in the precision of the module; gradients and
    autocast are off there.

    Args:
        module: the model with its weights in the precision of their source; it is hashed, frozen and then cast.
        spec: strides, latent channels and admissible sizes.
        source: where the weights came from, in words a user understands.
        device, dtype: where and in what precision to compute.
    """

    def __init__(
        self, module: nn.Module, spec: VAESpec, *, source: str, device: str | torch.device, dtype: torch.dtype
    ) -> None:
        self.spec = spec
        self.weights_source = source
        self.weights_sha256 = state_dict_sha256(module.state_dict())
        # not diffusers' own `to`, which warns about modules to keep in float32 even where there are none
        self._module = nn.Module.to(module.eval().requires_grad_(False), device, dtype)

    @property
    def device(self) -> torch.device:
        return next(self._module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self._module.parameters()).dtype

    @torch.no_grad()
    def encode(self, volume: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        self.check_volume(volume)
        with torch.autocast(self.device.type, enabled=False):
            return self._encode(volume.to(self.device, self.dtype), generator)

    @torch.no_grad()
    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        if latent.ndim != 5 or latent.shape[1] != self.spec.latent_channels:
            raise ValueError(
                f"{self.spec.name}: expected (B, {self.spec.latent_channels}, d, h, w), got {tuple(latent.shape)}"
            )
        with torch.autocast(self.device.type, enabled=False):
            return self._decode(latent.to(self.device, self.dtype))

    @abstractmethod
    def _encode(self, volume: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """(B, 1, D, H, W) to (B, latent_channels, d, h, w)."""

    @abstractmethod
    def _decode(self, latent: torch.Tensor) -> torch.Tensor:
        """(B, latent_channels, d, h, w) to (B, 1, D, H, W) float32."""


def drawn(mean: torch.Tensor, std: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """The mode of a normal distribution, or a draw from it if there is a generator."""
    if generator is None:
        return mean
    noise = torch.randn(mean.shape, generator=generator, device=generator.device, dtype=mean.dtype)
    return mean + std * noise.to(mean.device)


def slices_as_batch(volume: torch.Tensor, channels: int) -> torch.Tensor:
    """(B, 1, D, H, W) to (B * D, channels, H, W), the channels all equal."""
    batch, _, slices, height, width = volume.shape
    return volume.reshape(batch * slices, 1, height, width).expand(-1, channels, -1, -1)


def batch_as_slices(images: torch.Tensor, batch: int) -> torch.Tensor:
    """(B * D, C, H, W) to (B, C, D, H, W)."""
    return images.unflatten(0, (batch, -1)).transpose(1, 2)


def grey(images: torch.Tensor, *, dim: int = 1) -> torch.Tensor:
    """The mean over the colour channels, kept as one channel, float32."""
    return images.float().mean(dim, keepdim=True)
