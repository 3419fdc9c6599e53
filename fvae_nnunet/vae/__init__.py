"""Frozen VAEs, loaded by name, behind one small interface."""

from fvae_nnunet.vae.base import FrozenVAE, VAESpec
from fvae_nnunet.vae.known import KnownVAE, known_vaes
from fvae_nnunet.vae.registry import is_available_offline, load_vae

__all__ = ["FrozenVAE", "KnownVAE", "VAESpec", "is_available_offline", "known_vaes", "load_vae"]
