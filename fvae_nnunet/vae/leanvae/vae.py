"""LeanVAE, a small video VAE (github.com/westlake-repl/LeanVAE, MIT); the slices of a CT are its frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fvae_nnunet.vae.base import VAESpec
from fvae_nnunet.vae.leanvae.layers import Memory
from fvae_nnunet.vae.leanvae.network import LeanVAENetwork, Sizes
from fvae_nnunet.vae.module_vae import Placement, place
from fvae_nnunet.vae.streams import StreamingVAE
from fvae_nnunet.vae.wanted import Wanted
from fvae_nnunet.vae.weights import StateDict, filled

if TYPE_CHECKING:
    from typing_extensions import Unpack

_PARTS = ("encoder.", "decoder.", "latent_bottleneck.", "std_layer.")
_PREFIX_IN_TRAINING = "autoencoder."


class LeanVAE(StreamingVAE):
    """LeanVAE, causal along the slices: latent slice 0 codes slice 0, latent slice k codes slices 4k-3 to 4k.

    The three input colours are equal. Each output colour is clamped to [-1, 1] before averaging, as in the script
    released with the paper. A pass keeps the last two latent slices before each convolution.

    Args:
        state: weights under the authors' names, without those of other models.

    Raises:
        KeyError: a parameter that determines a size is missing; the error holds its name.
        UserError: the weights belong to another model.
    """

    def __init__(self, state: StateDict, *, name: str = "leanvae", **placement: Unpack[Placement]) -> None:
        sizes = Sizes.of(state)
        network = filled(lambda: LeanVAENetwork(sizes), state, f"{name}: {placement['source']} does not fit LeanVAE")
        spec = VAESpec.of_video(name, sizes.latent_channels, causal=True)
        super().__init__(network, spec, source=placement["source"])
        place(network.fold(), placement.get("device", "cpu"), placement.get("dtype", torch.float32))
        self._network = network

    def _encode(
        self, volume: torch.Tensor, generator: torch.Generator | None, memory: Memory | None = None
    ) -> torch.Tensor:
        return self._network.encode(volume, generator, memory)

    def _decode(self, latent: torch.Tensor, memory: Memory | None = None) -> torch.Tensor:
        return self._network.decode(latent, memory)

    def _encode_next(
        self, volume: torch.Tensor, before: Memory | None, generator: torch.Generator | None
    ) -> tuple[torch.Tensor, Memory]:
        memory = {} if before is None else before
        return self._encode(volume, generator, memory), memory

    def _decode_next(self, latent: torch.Tensor, before: Memory | None) -> tuple[torch.Tensor, Memory]:
        memory = {} if before is None else before
        return self._decode(latent, memory), memory


def load_leanvae(wanted: Wanted) -> LeanVAE:
    """Load LeanVAE from the authors' checkpoint.

    Args:
        wanted: request whose weights are the published ``.ckpt`` (``args`` and ``state_dict``; 4 or 16 latent
            channels), one written in training (names begin with ``autoencoder.``; discriminator and perceptual loss
            are ignored), or a file with only the state dict. Sizes are read from the tensors.

    Raises:
        UserError: the weights are not given, not found, not readable, or those of another model.
    """
    name = wanted.name
    weights = wanted.file(
        "give its checkpoint as `weights`; the README of github.com/westlake-repl/LeanVAE has the links (the paper "
        "used LeanVAE-4ch)"
    )
    state = _own_weights(wanted.read_checkpoint(weights))
    with wanted.sizes_in(f"{weights} is not a LeanVAE"):
        Sizes.of(state)
    return LeanVAE(state, name=name, **wanted.placement(weights))


def _own_weights(content: dict) -> StateDict:
    """The tensors of the VAE itself under the authors' names; empty if there are none."""
    state = content.get("state_dict", content)
    if not isinstance(state, dict):
        return {}
    if any(key.startswith(_PREFIX_IN_TRAINING) for key in state):
        state = {
            key.removeprefix(_PREFIX_IN_TRAINING): value
            for key, value in state.items()
            if key.startswith(_PREFIX_IN_TRAINING)
        }
    return {key: value for key, value in state.items() if key.startswith(_PARTS) and isinstance(value, torch.Tensor)}
