"""Common base of MedVAE and MAISI: all slices of a window are seen at once, and every axis is compressed by 4."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fvae_nnunet.errors import UserError
from fvae_nnunet.vae.base import VAESpec
from fvae_nnunet.vae.module_vae import ModuleVAE, Placement, drawn
from fvae_nnunet.vae.weights import Network, StateDict, filled

if TYPE_CHECKING:
    from typing_extensions import Unpack

STRIDE = 4
NORM_GROUPS = 32


class VolumeVAE(ModuleVAE):
    """A VAE around a network whose ``encode`` returns posterior mean and standard deviation, ``decode`` a grey volume.

    The authors pass axes as (x, y, z), and so does this wrapper.

    Args:
        network: the network with its weights.
        name: name in the registry.
        width: channels at full resolution.
        latent_channels, window_slices: as in ``VAESpec``.
        placement: as for ``ModuleVAE``.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        width: int,
        latent_channels: int,
        window_slices: int,
        **placement: Unpack[Placement],
    ) -> None:
        spec = VAESpec(
            name=name,
            inplane_stride=STRIDE,
            latent_channels=latent_channels,
            slice_stride=STRIDE,
            window_slices=window_slices,
        )
        super().__init__(network, spec, features_per_voxel=2 * width, **placement)
        self._network: Any = network

    def _encode(self, volume: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        mean, std = self._network.encode(_swap_x_and_z(volume))
        return _swap_x_and_z(drawn(mean, std, generator))

    def _decode(self, latent: torch.Tensor) -> torch.Tensor:
        return _swap_x_and_z(self._network.decode(_swap_x_and_z(latent))).float()


def network_of_width(
    build: Callable[[int, int], Network], state: StateDict, *, first: str, latent: tuple[str, int], misfit: str
) -> Network:
    """Build the network for a state dict and load the weights.

    Args:
        build: function of the width and the number of latent channels that returns the network.
        state: the weights.
        first: name of the convolution at full resolution, whose number of outputs is the width.
        latent: name of a convolution, and the dimension of its kernel that is the number of latent channels.
        misfit: beginning of the message, before the reason, if the weights do not fit.

    Raises:
        UserError: the weights do not fit.
    """
    for key in (first, latent[0]):
        if key not in state or state[key].ndim != 5:
            raise UserError(f"{misfit}: it has no {key} with five dimensions")
    width, latent_channels = len(state[first]), state[latent[0]].shape[latent[1]]
    if width % NORM_GROUPS:
        raise UserError(f"{misfit}: {first} has {width} channels, not a multiple of {NORM_GROUPS}")
    return filled(lambda: build(width, latent_channels), state, misfit)


def _swap_x_and_z(volume: torch.Tensor) -> torch.Tensor:
    """(B, C, z, y, x) to (B, C, x, y, z), and back."""
    return volume.transpose(2, 4).contiguous()
