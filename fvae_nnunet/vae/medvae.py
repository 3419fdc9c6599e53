"""MedVAE (arXiv:2502.14753; github.com/StanfordMIMI/MedVAE, MIT): the model ``medvae_4_1_3d`` for CT and MR volumes.

The autoencoder of latent diffusion (arXiv:2112.10752) with 3D convolutions: every axis is compressed by 4 into one
latent channel. It is reimplemented here with the parameter names of the released file. The authors' package ``medvae``
requires about forty others, downloads in the constructor of its inference class, and computes attention over all pairs
of latent voxels at once.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from fvae_nnunet.vae.module_vae import Placement
from fvae_nnunet.vae.volume_vae import NORM_GROUPS, VolumeVAE, network_of_width
from fvae_nnunet.vae.wanted import Wanted

if TYPE_CHECKING:
    from typing_extensions import Unpack

HUB_ID = "stanfordmimi/MedVAE"
HUB_FILE = "model_weights/vae_4x_1c_3D.ckpt"
WINDOW_SLICES = 16
"""512 x 512 x 16 voxels are as many as in the authors' largest tile (160^3, which bounds what the norms and the
attention see at once); with 256 channels they are 2^30 values, and torch's 3D kernels need less than 2^31."""

QUERIES_AT_ONCE = 4096
UNUSED = ("channel_ds.", "channel_proj.")  # a second latent from training, for classifiers; decoding does not use it

_FIRST = "encoder.conv_in.weight"


def _named(**modules: nn.Module) -> nn.Sequential:
    """A sequence of modules with these names."""
    return nn.Sequential(OrderedDict(modules))


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(NORM_GROUPS, channels, eps=1e-6)


def _conv(channels_in: int, channels_out: int) -> nn.Conv3d:
    return nn.Conv3d(channels_in, channels_out, 3, padding=1)


def _pointwise(channels_in: int, channels_out: int) -> nn.Conv3d:
    return nn.Conv3d(channels_in, channels_out, 1)


class _Residual(nn.Module):
    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1 = _norm(channels_in)
        self.conv1 = _conv(channels_in, channels_out)
        self.norm2 = _norm(channels_out)
        self.conv2 = _conv(channels_out, channels_out)
        self.nin_shortcut = nn.Identity() if channels_in == channels_out else _pointwise(channels_in, channels_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class _Attention(nn.Module):
    """Single-head attention over all latent voxels of the window, ``QUERIES_AT_ONCE`` queries at a time."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (_pointwise(channels, channels) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        # (B, 1 head, voxels, C)
        query, key, value = (part(h).flatten(2).transpose(1, 2)[:, None] for part in (self.q, self.k, self.v))
        parts = query.split(QUERIES_AT_ONCE, dim=2)
        h = torch.cat([F.scaled_dot_product_attention(part, key, value) for part in parts], dim=2)
        return x + self.proj_out(h[:, 0].transpose(1, 2).reshape(x.shape))


def _middle(channels: int) -> nn.Sequential:
    return _named(
        block_1=_Residual(channels, channels), attn_1=_Attention(channels), block_2=_Residual(channels, channels)
    )


def _level(channels_in: int, channels: int, blocks: int, **way_on: nn.Module) -> nn.Sequential:
    """Residual blocks at one resolution, and the change to the next one."""
    residuals = (_Residual(channels if index else channels_in, channels) for index in range(blocks))
    return _named(block=nn.Sequential(*residuals), **way_on)


def _halving(channels: int) -> nn.Sequential:
    return _named(pad=nn.ConstantPad3d((0, 1) * 3, 0.0), conv=nn.Conv3d(channels, channels, 3, stride=2))


def _doubling(channels: int) -> nn.Sequential:
    return _named(repeat=nn.Upsample(scale_factor=2.0, mode="nearest"), conv=_conv(channels, channels))


def _encoder(width: int, latent_channels: int) -> nn.Sequential:
    down = (
        _level(width, width, 2, downsample=_halving(width)),
        _level(width, 2 * width, 2, downsample=_halving(2 * width)),
        _level(2 * width, 4 * width, 2),
    )
    return _named(
        conv_in=_conv(1, width),
        down=nn.Sequential(*down),
        mid=_middle(4 * width),
        norm_out=_norm(4 * width),
        activation=nn.SiLU(),
        conv_out=_conv(4 * width, 2 * latent_channels),
    )


def _decoder(width: int, latent_channels: int) -> nn.Sequential:
    up = {  # numbered from the highest resolution
        "2": _level(4 * width, 4 * width, 3, upsample=_doubling(4 * width)),
        "1": _level(4 * width, 2 * width, 3, upsample=_doubling(2 * width)),
        "0": _level(2 * width, width, 3),
    }
    return _named(
        conv_in=_conv(latent_channels, 4 * width),
        mid=_middle(4 * width),
        up=_named(**up),
        norm_out=_norm(width),
        activation=nn.SiLU(),
        conv_out=_conv(width, 1),
    )


class MedVAENetwork(nn.Module):
    """Maps grey volumes (B, 1, x, y, z) in [-1, 1] to latents (B, latent_channels, x / 4, y / 4, z / 4) and back.

    Args:
        width: channels at full resolution, a multiple of 32 (the groups of the norms); 128 in the released model.
        latent_channels: 1 in the released model.
    """

    def __init__(self, width: int, latent_channels: int) -> None:
        super().__init__()
        self.encoder = _encoder(width, latent_channels)
        self.decoder = _decoder(width, latent_channels)
        self.quant_conv = _pointwise(2 * latent_channels, 2 * latent_channels)
        self.post_quant_conv = _pointwise(latent_channels, latent_channels)

    def encode(self, volume: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the posterior."""
        mean, log_variance = self.quant_conv(self.encoder(volume)).chunk(2, dim=1)
        return mean, torch.exp(log_variance.clamp(-30, 20) / 2)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.post_quant_conv(latent))


class MedVAE(VolumeVAE):
    """MedVAE; the authors map -1000 to 1000 HU to [-1, 1], as we do."""

    def __init__(self, network: MedVAENetwork, *, name: str, **placement: Unpack[Placement]) -> None:
        super().__init__(
            network,
            name=name,
            width=len(network.get_parameter(_FIRST)),
            latent_channels=network.post_quant_conv.in_channels,
            window_slices=WINDOW_SLICES,
            **placement,
        )


def load_medvae(wanted: Wanted) -> MedVAE:
    """Load MedVAE from the authors' file.

    Args:
        wanted: request whose weights are ``vae_4x_1c_3D.ckpt``.

    Raises:
        UserError: the weights are not given, not found, not readable, or those of another model.
    """
    name = wanted.name
    weights = wanted.downloaded_file(HUB_ID, HUB_FILE, "644 MB, MIT")
    state = {key: value for key, value in wanted.read_state_dict(weights).items() if not key.startswith(UNUSED)}
    misfit = f"{name}: {weights} is not the MedVAE for volumes ({Path(HUB_FILE).name})"
    network = network_of_width(MedVAENetwork, state, first=_FIRST, latent=("post_quant_conv.weight", 1), misfit=misfit)
    return MedVAE(network, name=name, **wanted.placement(weights))
