"""VAEs that code a volume piece by piece, with layers that keep state from earlier slices."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch

from fvae_nnunet.vae.base import VAEStream
from fvae_nnunet.vae.module_vae import ModuleVAE


class StreamingVAE(ModuleVAE):
    """A causal VAE that can code a volume in one pass of several calls.

    The state of its layers is None before the first slice, and an object of the subclass's choice afterwards.
    """

    def open_stream(self) -> VAEStream:
        return OnePass(self, self)

    @abstractmethod
    def _encode_next(self, volume: torch.Tensor, before: Any, generator: torch.Generator | None) -> tuple[Any, Any]:
        """``_encode`` for the next slices, with the state before; returns the latent and the new state."""

    @abstractmethod
    def _decode_next(self, latent: torch.Tensor, before: Any) -> tuple[Any, Any]:
        """``_decode`` for the next latent slices, with the state before; returns the volume and the new state."""


class OnePass(VAEStream):
    """A pass whose values equal those of coding the whole volume at once.

    Args:
        encoder, decoder: one VAE, or the same VAE in two precisions.
    """

    def __init__(self, encoder: StreamingVAE, decoder: StreamingVAE) -> None:
        self._encoder, self._decoder = encoder, decoder
        self._encoder_kept: Any = None
        self._decoder_kept: Any = None

    @torch.no_grad()
    def reconstruct(self, volume: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        encoder, decoder, spec = self._encoder, self._decoder, self._encoder.spec
        encoder.check_volume(volume[:, :, :1])
        slices, offset = volume.shape[2], spec.slice_offset if self._encoder_kept is None else 0
        if (slices - offset) % spec.slice_stride:
            raise ValueError(f"{spec.name}: {slices} slices; needs {offset} + k * {spec.slice_stride} slices here")
        with encoder._computing(*volume.shape[2:]):
            volume = volume.to(encoder.device, encoder.dtype)
            latent, self._encoder_kept = encoder._encode_next(volume, self._encoder_kept, generator)
        with decoder._computing(*volume.shape[2:]):
            decoded, self._decoder_kept = decoder._decode_next(latent.to(decoder.dtype), self._decoder_kept)
        return decoded
