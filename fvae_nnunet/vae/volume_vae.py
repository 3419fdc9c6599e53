"""What MedVAE and MAISI have in common: all slices of a window are seen at once, every axis is compressed by 4."""

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
    """A network whose ``encode`` gives mean and standard deviation of the posterior, and ``decode`` the grey volume.

    Its authors feed the axes as (x, y, z), and so does this wrapper.

    Args:
        network: with its weights.
        name: in the registry.
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
    """The network of a state dict, with its weights.

    Args:
        build: makes it of its width and its latent channels.
        state: the weights.
        first: the convolution at full resolution, whose outputs are the width.
        latent: a convolution, and which of its dimensions the latent channels are.
        misfit: what to say, before the reason, where these are other weights.

    Raises:
        UserError: they are.
    """
    for key in (first, latent[0]):
        if key not in state or state[key].ndim != 5:
            raise UserError(f"{misfit}: it has no {key} of five dimensions")
    width, latent_channels = len(state[first]), state[latent[0]].shape[latent[1]]
    if width % NORM_GROUPS:
        raise UserError(f"{misfit}: {first} has {width} channels, not a multiple of {NORM_GROUPS}")
    return filled(lambda: build(width, latent_channels), state, misfit)


def _swap_x_and_z(volume: torch.Tensor) -> torch.Tensor:
    """(B, C, z, y, x) to (B, C, x, y, z), and back."""
    return volume.transpose(2, 4).contiguous()
