"""IV-VAE, a video VAE (github.com/ali-vilab/iv-vae, MIT); the slices of a CT are its frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fvae_nnunet.device.memory import CallSize
from fvae_nnunet.vae.base import VAESpec
from fvae_nnunet.vae.ivvae.layers import Past
from fvae_nnunet.vae.ivvae.network import GROUP_SLICES, IVVAENetwork
from fvae_nnunet.vae.module_vae import Placement, drawn, grey
from fvae_nnunet.vae.streams import StreamingVAE
from fvae_nnunet.vae.wanted import Wanted
from fvae_nnunet.vae.weights import StateDict, filled

if TYPE_CHECKING:
    from typing_extensions import Unpack

# By (latent channels, dim); from upstream's models/vae3d.py, where the latent is scale * (latent - shift)
_SHIFT_AND_SCALE = {
    (4, 64): (0.1250, 1.3196),
    (8, 64): (-0.0322, 1.0940),
    (16, 64): (-0.1553, 0.9697),
    (16, 96): (-0.0483, 0.7619),
}


def published_statistics(latent_channels: int, dim: int) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
    """Mean and standard deviation of the latent (latent_channels,) of a published model; None for other sizes."""
    if (latent_channels, dim) not in _SHIFT_AND_SCALE:
        return None, None
    shift, scale = _SHIFT_AND_SCALE[latent_channels, dim]
    return torch.full((latent_channels,), shift), torch.full((latent_channels,), 1 / scale)


class IVVAE(StreamingVAE):
    """Latent slice 0 codes slice 0; latent slice k codes slices 4k-3 to 4k, which see each other and earlier slices.

    The latent is the authors' without shift and scale, which they undo before decoding. Each convolution along the
    slices keeps the contribution of the last slice to the next.
    """

    def __init__(self, network: IVVAENetwork, *, name: str = "iv-vae", **placement: Unpack[Placement]) -> None:
        super().__init__(network, VAESpec.of_video(name, network.latent_channels, causal=True), **placement)
        self._network = network.lay_out()
        self._encoder_chunks, self._decoder_chunks = CallSize(f"{name}: encoding"), CallSize(f"{name}: decoding")
        self.latent_mean, self.latent_std = published_statistics(network.latent_channels, network.dim)

    def _encode(
        self, volume: torch.Tensor, generator: torch.Generator | None, past: Past | None = None
    ) -> torch.Tensor:
        colours = volume.expand(-1, 3, -1, -1, -1)
        mean, log_variance = self._network.encode(colours, past, calls=self._encoder_chunks)
        return drawn(mean, torch.exp(log_variance / 2), generator)

    def _decode(self, latent: torch.Tensor, past: Past | None = None) -> torch.Tensor:
        return grey(self._network.decode(latent, past, calls=self._decoder_chunks))

    def _encode_next(
        self, volume: torch.Tensor, before: Past | None, generator: torch.Generator | None
    ) -> tuple[torch.Tensor, Past]:
        past = Past() if before is None else before
        return self._encode(volume, generator, past), past

    def _decode_next(self, latent: torch.Tensor, before: Past | None) -> tuple[torch.Tensor, Past]:
        past = Past() if before is None else before
        return self._decode(latent, past), past

    def _least_slices(self, slices: int) -> int:
        return GROUP_SLICES


def load_ivvae(wanted: Wanted) -> IVVAE:
    """Load IV-VAE of any width and number of latent channels from the authors' file.

    Args:
        wanted: request whose weights are a published ``ivvae_z*_dim*.pth``; sizes are read from its tensors.

    Raises:
        UserError: the weights are not given, not found, not readable, or those of another model.
    """
    name = wanted.name
    weights = wanted.file(
        "give its .pth file as `weights`; the README of github.com/ali-vilab/iv-vae has the link (the paper used "
        "ivvae_z16_dim96.pth)"
    )
    state = wanted.read_state_dict(weights)
    with wanted.sizes_in(f"{weights} is not an IV-VAE"):
        network = filled(lambda: _network_of_sizes(state), state, f"{name}: {weights} does not fit IV-VAE")
    return IVVAE(network, name=name, **wanted.placement(weights))


def _network_of_sizes(state: StateDict) -> IVVAENetwork:
    """The network for these tensors; KeyError with the name of a missing parameter that determines a size."""
    dim = state["encoder.conv1.conv_2d.weight"].shape[0]
    return IVVAENetwork(dim, latent_channels=2 * state["conv2.conv_2d.weight"].shape[0])
