"""IV-VAE, a video VAE (github.com/ali-vilab/iv-vae, MIT); the slices of a CT are the frames."""

from __future__ import annotations

import torch

from fvae_nnunet.device.memory import CallSize
from fvae_nnunet.errors import UserError
from fvae_nnunet.vae.base import VAESpec, VAEStream
from fvae_nnunet.vae.ivvae.layers import Past
from fvae_nnunet.vae.ivvae.network import GROUP_SLICES, INPLANE_STRIDE, IVVAENetwork
from fvae_nnunet.vae.module_vae import ModuleVAE, drawn, grey
from fvae_nnunet.vae.wanted import Wanted
from fvae_nnunet.vae.weights import StateDict, first_difference

WINDOW_SLICES = 65  # 1 + 16 * 4, as in the reconstruction script released with the paper

# By (latent channels, dim); upstream's models/vae3d.py: their latent is scale * (latent - shift)
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


class IVVAE(ModuleVAE):
    """Latent slice 0 codes slice 0 alone, latent slice k the slices 4k-3 to 4k, which see each other and those before.

    The latent is not the authors', but theirs without shift and scale, which they take back before they decode.
    """

    def __init__(
        self,
        network: IVVAENetwork,
        *,
        name: str = "iv-vae",
        source: str,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        spec = VAESpec(
            name=name,
            inplane_stride=INPLANE_STRIDE,
            latent_channels=network.latent_channels,
            slice_stride=GROUP_SLICES,
            slice_offset=1,
            window_slices=WINDOW_SLICES,
            causal=True,
        )
        super().__init__(network, spec, source=source, device=device, dtype=dtype)
        self._network = network.lay_out()
        self._encoder_chunks, self._decoder_chunks = CallSize(f"{name}: encoding"), CallSize(f"{name}: decoding")
        self.latent_mean, self.latent_std = published_statistics(network.latent_channels, network.dim)

    def open_stream(self) -> VAEStream:
        return _Stream(self)

    def _encode(
        self, volume: torch.Tensor, generator: torch.Generator | None, past: Past | None = None
    ) -> torch.Tensor:
        colours = volume.expand(-1, 3, -1, -1, -1)
        mean, log_variance = self._network.encode(colours, past, calls=self._encoder_chunks)
        return drawn(mean, torch.exp(log_variance / 2), generator)

    def _decode(self, latent: torch.Tensor, past: Past | None = None) -> torch.Tensor:
        return grey(self._network.decode(latent, past, calls=self._decoder_chunks))

    def _least_slices(self, slices: int) -> int:
        return GROUP_SLICES


class _Stream(VAEStream):
    """Each convolution along the slices keeps what the last slice adds to the next; the rest is per group."""

    def __init__(self, vae: IVVAE) -> None:
        self._vae = vae
        self._encoder_past, self._decoder_past = Past(), Past()

    @torch.no_grad()
    def reconstruct(self, volume: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        vae, offset = self._vae, self._encoder_past.leading
        vae.check_volume(volume[:, :, :1])
        slices = volume.shape[2]
        if slices % GROUP_SLICES != offset:
            raise ValueError(f"{vae.spec.name}: {slices} slices; needs {offset} + k * {GROUP_SLICES} slices here")
        with vae._computing(*volume.shape[2:]):
            latent = vae._encode(volume.to(vae.device, vae.dtype), generator, self._encoder_past)
            return vae._decode(latent, self._decoder_past)


def load_ivvae(wanted: Wanted) -> IVVAE:
    """IV-VAE of any width and number of latent channels, from the authors' file.

    Args:
        wanted: weights: a published ``ivvae_z*_dim*.pth``; the sizes are read from its tensors.

    Raises:
        UserError: not given, not found, not readable, or the weights of another model.
    """
    name = wanted.name
    weights = wanted.file(
        "give its .pth file with --weights; the readme of github.com/ali-vilab/iv-vae has the link (the paper used "
        "ivvae_z16_dim96.pth)"
    )
    state = wanted.read_state_dict(weights)
    try:
        with torch.device("meta"):
            network = _network_of_sizes(state)
    except KeyError as error:
        raise UserError(f"{name}: {weights} is not an IV-VAE: {error.args[0]} is missing") from error
    difference = first_difference(network.state_dict(), state)
    if difference is not None:
        raise UserError(f"{name}: {weights} does not fit IV-VAE: {difference}")
    network.load_state_dict({key: value.float() for key, value in state.items()}, assign=True)
    return IVVAE(network, name=name, source=str(weights), device=wanted.device, dtype=wanted.dtype)


def _network_of_sizes(state: StateDict) -> IVVAENetwork:
    """Raises KeyError with the name of a parameter that tells a size and is missing."""
    dim = state["encoder.conv1.conv_2d.weight"].shape[0]
    return IVVAENetwork(dim, latent_channels=2 * state["conv2.conv_2d.weight"].shape[0])
