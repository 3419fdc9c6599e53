"""A VAE that encodes in float32 and decodes in bfloat16."""

from __future__ import annotations

import torch

from fvae_nnunet.vae.base import FrozenVAE, VAEStream
from fvae_nnunet.vae.streams import OnePass, StreamingVAE

MIXED = "mixed"
DECODER_DTYPE = torch.bfloat16


class MixedPrecisionVAE(FrozenVAE):
    """A VAE that combines the encoder of one copy with the decoder of another.

    Args:
        encoder: the VAE in float32.
        decoder: the same weights in ``DECODER_DTYPE``.
    """

    def __init__(self, encoder: FrozenVAE, decoder: FrozenVAE) -> None:
        self.encoder, self.decoder = encoder, decoder
        self.spec = encoder.spec
        self.weights_sha256, self.weights_source = encoder.weights_sha256, encoder.weights_source
        self.latent_mean, self.latent_std = encoder.latent_mean, encoder.latent_std

    @property
    def kernels(self) -> str | None:
        return self.decoder.kernels

    @property
    def device(self) -> torch.device:
        return self.encoder.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the latents."""
        return self.encoder.dtype

    @property
    def precision(self) -> str:
        return MIXED

    @property
    def tf32(self) -> bool:
        return self.encoder.tf32

    def encode(self, volume: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        return self.encoder.encode(volume, generator)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        return self.decoder.decode(latent)

    def open_stream(self) -> VAEStream | None:
        if isinstance(self.encoder, StreamingVAE) and isinstance(self.decoder, StreamingVAE):
            return OnePass(self.encoder, self.decoder)
        return None
