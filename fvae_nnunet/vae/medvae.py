"""MedVAE (arXiv:2502.14753; github.com/StanfordMIMI/MedVAE, MIT), its model ``medvae_4_1_3d`` for CT and MR volumes.

The autoencoder of latent diffusion (arXiv:2112.10752) with convolutions in 3D: every axis is compressed by 4 into one
latent channel. It is written anew here under the parameter names of the released file. The authors' package ``medvae``
asks for some forty others, downloads in the constructor of its inference class, and holds all pairs of latent voxels
at once in its attention.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from fvae_nnunet.errors import UserError
from fvae_nnunet.vae.base import VAESpec
from fvae_nnunet.vae.module_vae import ModuleVAE, drawn
from fvae_nnunet.vae.wanted import Wanted
from fvae_nnunet.vae.weights import first_difference

HUB_ID = "stanfordmimi/MedVAE"
HUB_FILE = "model_weights/vae_4x_1c_3D.ckpt"
STRIDE = 4
NORM_GROUPS = 32
WINDOW_SLICES = 16
"""512 x 512 x 16 voxels are as many as the authors' largest tile has (160^3, which bounds what the norms and the
attention see at once), and 256 channels of them 2^30 values; torch's 3D kernels end below 2^31."""

QUERIES_AT_ONCE = 4096
UNUSED = ("channel_ds.", "channel_proj.")  # a second latent of the training, for classifiers; decoding does not use it

_FIRST = "encoder.conv_in.weight"


def _named(**modules: nn.Module) -> nn.Sequential:
    """The modules one after the other, under these names."""
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
    """One head over all latent voxels of the window, a few queries at a time."""

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
    """Residual blocks at one resolution, and the way to the next."""
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
    up = {  # numbered from the highest resolution on
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
    """Grey volumes (B, 1, x, y, z) in [-1, 1] and latents (B, latent_channels, x / 4, y / 4, z / 4).

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


class MedVAE(ModuleVAE):
    """Sees all slices of a window at once. Its authors' CT, like ours, is -1000 to 1000 HU as [-1, 1].

    Its authors feed the axes as (x, y, z), and so does this wrapper.
    """

    def __init__(
        self,
        network: MedVAENetwork,
        *,
        name: str,
        source: str,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        spec = VAESpec(
            name=name,
            inplane_stride=STRIDE,
            latent_channels=network.post_quant_conv.in_channels,
            slice_stride=STRIDE,
            window_slices=WINDOW_SLICES,
        )
        width = len(network.get_parameter(_FIRST))
        super().__init__(network, spec, source=source, device=device, dtype=dtype, features_per_voxel=2 * width)
        self._network = network

    def _encode(self, volume: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        mean, std = self._network.encode(_swap_x_and_z(volume))
        return _swap_x_and_z(drawn(mean, std, generator))

    def _decode(self, latent: torch.Tensor) -> torch.Tensor:
        return _swap_x_and_z(self._network.decode(_swap_x_and_z(latent))).float()


def load_medvae(wanted: Wanted) -> MedVAE:
    """MedVAE from its authors' file.

    Args:
        wanted: weights: ``vae_4x_1c_3D.ckpt``.

    Raises:
        UserError: not given, not found, not readable, or the weights of another model.
    """
    name = wanted.name
    weights = wanted.file(
        f"get its weights (644 MB, MIT) with `hf download {HUB_ID} {HUB_FILE} --local-dir .` and give the file with "
        "--weights"
    )
    state = {key: value for key, value in wanted.read_state_dict(weights).items() if not key.startswith(UNUSED)}
    for key in (_FIRST, "post_quant_conv.weight"):
        if key not in state or state[key].ndim != 5:
            raise UserError(
                f"{name}: {weights} is not a MedVAE for volumes ({Path(HUB_FILE).name}): it has no {key} of five "
                "dimensions"
            )
    width, latent_channels = len(state[_FIRST]), state["post_quant_conv.weight"].shape[1]
    if width % NORM_GROUPS:
        raise UserError(
            f"{name}: {weights} is not a MedVAE: {_FIRST} has {width} channels, not a multiple of {NORM_GROUPS}"
        )
    with torch.device("meta"):
        network = MedVAENetwork(width, latent_channels)
    difference = first_difference(network.state_dict(), state)
    if difference is not None:
        raise UserError(f"{name}: {weights} does not fit medvae_4_1_3d ({Path(HUB_FILE).name}): {difference}")
    network.load_state_dict({key: value.float() for key, value in state.items()}, assign=True)
    return MedVAE(network, name=name, source=str(weights), device=wanted.device, dtype=wanted.dtype)


def _swap_x_and_z(volume: torch.Tensor) -> torch.Tensor:
    """(B, C, z, y, x) to (B, C, x, y, z), and back."""
    return volume.transpose(2, 4).contiguous()
