"""LeanVAE, a small video VAE (github.com/westlake-repl/LeanVAE, MIT); the slices of a CT are the frames."""

from __future__ import annotations

import torch

from fvae_nnunet.errors import UserError
from fvae_nnunet.vae.base import VAESpec, VAEStream
from fvae_nnunet.vae.leanvae.layers import Memory
from fvae_nnunet.vae.leanvae.network import BLOCK, SLICES, LeanVAENetwork, Sizes
from fvae_nnunet.vae.module_vae import ModuleVAE, place
from fvae_nnunet.vae.wanted import Wanted
from fvae_nnunet.vae.weights import StateDict, first_difference

WINDOW_SLICES = 65  # 1 + 16 * 4, as in the reconstruction script released with the paper

_PARTS = ("encoder.", "decoder.", "latent_bottleneck.", "std_layer.")
_PREFIX_IN_TRAINING = "autoencoder."


class LeanVAE(ModuleVAE):
    """Causal along the slices: latent slice 0 codes slice 0 alone, latent slice k the slices 4k-3 to 4k.

    Its three colours are equal on the way in. On the way out each is clamped to [-1, 1] before their mean is taken, as
    in the script released with the paper.

    Args:
        state: weights under the authors' names, without those of other models.
    """

    def __init__(
        self,
        state: StateDict,
        *,
        name: str = "leanvae",
        source: str,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        sizes = Sizes.of(state)
        with torch.device("meta"):
            network = LeanVAENetwork(sizes)
        network.load_state_dict({key: value.float() for key, value in state.items()}, assign=True)
        spec = VAESpec(
            name=name,
            inplane_stride=BLOCK,
            latent_channels=sizes.latent_channels,
            slice_stride=SLICES,
            slice_offset=1,
            window_slices=WINDOW_SLICES,
            causal=True,
        )
        super().__init__(network, spec, source=source, device="cpu", dtype=torch.float32)
        place(network.fold(), device, dtype)
        self._network = network

    def open_stream(self) -> VAEStream:
        return _Stream(self)

    def _encode(
        self, volume: torch.Tensor, generator: torch.Generator | None, memory: Memory | None = None
    ) -> torch.Tensor:
        return self._network.encode(volume, generator, memory)

    def _decode(self, latent: torch.Tensor, memory: Memory | None = None) -> torch.Tensor:
        return self._network.decode(latent, memory)


class _Stream(VAEStream):
    """Keeps the last two latent slices before each convolution; the values are those of the whole volume at once."""

    def __init__(self, vae: LeanVAE) -> None:
        self._vae = vae
        self._encoder_memory: Memory = {}
        self._decoder_memory: Memory = {}

    @torch.no_grad()
    def reconstruct(self, volume: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        vae = self._vae
        vae.check_volume(volume[:, :, :1])
        offset = 0 if self._encoder_memory else 1
        if volume.shape[2] % SLICES != offset:
            raise ValueError(f"{vae.spec.name}: {volume.shape[2]} slices; needs {offset} + k * {SLICES} slices here")
        with vae._computing(*volume.shape[2:]):
            latent = vae._encode(volume.to(vae.device, vae.dtype), generator, self._encoder_memory)
            return vae._decode(latent, self._decoder_memory)


def load_leanvae(wanted: Wanted) -> LeanVAE:
    """LeanVAE from the authors' checkpoint.

    Args:
        wanted: weights: the published ``.ckpt`` (``args`` and ``state_dict``; 4 or 16 latent channels), one written in
            training (the names begin with ``autoencoder.``; discriminator and perceptual loss are left out), or a file
            with nothing but the state dict. The sizes are read from the tensors.

    Raises:
        UserError: not given, not found, not readable, or the weights of another model.
    """
    name = wanted.name
    weights = wanted.file(
        "give its checkpoint with --weights; the README of github.com/westlake-repl/LeanVAE has the links (the paper "
        "used LeanVAE-4ch)"
    )
    state = _own_weights(wanted.read_checkpoint(weights))
    try:
        with torch.device("meta"):
            expected = LeanVAENetwork(Sizes.of(state)).state_dict()
    except KeyError as error:
        raise UserError(f"{name}: {weights} is not a LeanVAE: {error.args[0]} is missing") from error
    difference = first_difference(expected, state)
    if difference is not None:
        raise UserError(f"{name}: {weights} does not fit LeanVAE: {difference}")
    return LeanVAE(state, name=name, source=str(weights), device=wanted.device, dtype=wanted.dtype)


def _own_weights(content: dict) -> StateDict:
    """The tensors of the VAE itself under the authors' names; empty where there are none."""
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
