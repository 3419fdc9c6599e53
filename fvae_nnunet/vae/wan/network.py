"""Encoder and decoder of the Wan 2.1 and 2.2 VAEs between grey volumes and latents, chunk by chunk.

Architecture and parameter names are those of diffusers' ``AutoencoderKLWan`` (Apache-2.0); see ``wan.layers`` for
differences in the layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise, product
from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fvae_nnunet.vae.wan.layers import (
    CausalConv,
    Downsample,
    MiddleBlock,
    Past,
    ResidualBlock,
    RMSNorm,
    Upsample,
    mix_channels,
)

COLOURS = 3
Before = Sequence[torch.Tensor] | None


@dataclass(frozen=True)
class WanSizes:
    """The entries of ``config.json`` that determine the architecture, with diffusers' names and defaults."""

    base_dim: int = 96
    decoder_base_dim: int | None = None
    z_dim: int = 16
    dim_mult: Sequence[int] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attn_scales: Sequence[float] = ()
    temperal_downsample: Sequence[bool] = (False, True, True)
    is_residual: bool = False
    in_channels: int = COLOURS
    out_channels: int = COLOURS
    patch_size: int | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> WanSizes:
        """The sizes in a configuration; other entries are ignored.

        Raises:
            ValueError: an architecture that no published Wan VAE has.
        """
        names = {field.name for field in fields(cls)}
        sizes = cls(**{name: value for name, value in config.items() if name in names})
        if sizes.attn_scales:
            raise ValueError(f"attn_scales {list(sizes.attn_scales)}; attention is supported only in the middle block")
        for name in ("in_channels", "out_channels"):
            channels = getattr(sizes, name)
            if channels != COLOURS * sizes.patch**2:
                raise ValueError(f"{name} {channels}; three colours in patches of {sizes.patch} are expected")
        return sizes

    @property
    def patch(self) -> int:
        """Pixels along y and x that the first layer sees as channels."""
        return self.patch_size or 1

    @property
    def live_values_per_pixel(self) -> int:
        """Values in memory per pixel of a slice at the decoder's peak, which is above the encoder's.

        Counted (``tests/device/test_memory.py``): five feature maps at full resolution in Wan 2.1; in Wan 2.2 three of
        the last upsampling, which has the width of the level below.
        """
        base = self.decoder_base_dim or self.base_dim
        if self.is_residual:
            return 3 * base * self.dim_mult[1] // self.patch**2
        return 5 * base * self.dim_mult[0] // self.patch**2

    @property
    def slice_stride(self) -> int:
        return 2 ** sum(self.temperal_downsample)

    @property
    def inplane_stride(self) -> int:
        return self.patch * 2 ** (len(self.dim_mult) - 1)


class _Up(nn.Module):
    """A level of the decoder of Wan 2.1."""

    def __init__(self, channels_in: int, channels_out: int, blocks: int, *, plane: bool, slices: bool) -> None:
        super().__init__()
        self.resnets = _residual_blocks(channels_in, channels_out, blocks)
        self.upsamplers = nn.ModuleList()
        if plane:
            self.upsamplers.append(Upsample(channels_out, channels_out // 2, slices=slices))

    def forward(self, x: torch.Tensor, past: Past) -> torch.Tensor:
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x, past)
        return x


class _ResidualDown(nn.Module):
    """A level of the encoder of Wan 2.2: the averaged input is added to the output."""

    def __init__(self, channels_in: int, channels_out: int, blocks: int, *, plane: bool, slices: bool) -> None:
        super().__init__()
        self.resnets = _residual_blocks(channels_in, channels_out, blocks)
        self.downsampler = Downsample(channels_out, slices=slices) if plane else None
        self.slice_factor = 2 if slices else 1

    def forward(self, x: torch.Tensor, past: Past) -> torch.Tensor:
        y = x
        for block in self.resnets:
            y = block(y, past)
        if self.downsampler is not None:
            y = self.downsampler(y, past)
            x = F.avg_pool2d(x.flatten(0, 1).movedim(-1, 1), 2).movedim(1, -1).unflatten(0, x.shape[:2])
        # the slices to be joined become channels; an empty slice precedes slice 0
        if x.shape[1] % self.slice_factor:
            x = F.pad(x, (0, 0, 0, 0, 0, 0, 1, 0))
        joined = x.unflatten(1, (-1, self.slice_factor)).movedim(2, -1).flatten(-2)
        return y.add_(joined.unflatten(-1, (y.shape[-1], -1)).mean(-1))


class _ResidualUp(nn.Module):
    """A level of the decoder of Wan 2.2: the repeated input is added to the output."""

    def __init__(self, channels_in: int, channels_out: int, blocks: int, *, plane: bool, slices: bool) -> None:
        super().__init__()
        self.resnets = _residual_blocks(channels_in, channels_out, blocks)
        self.upsampler = Upsample(channels_out, channels_out, slices=slices) if plane else None
        self.slice_factor = 2 if slices else 1

    def forward(self, x: torch.Tensor, past: Past) -> torch.Tensor:
        y = x
        for block in self.resnets:
            y = block(y, past)
        if self.upsampler is None:
            return y
        y = self.upsampler(y, past)
        self._add_repeated(y, x, past)
        return y

    def _add_repeated(self, y: torch.Tensor, x: torch.Tensor, past: Past) -> None:
        """Add ``x`` to ``y``, which has twice its rows and columns, and twice its slices if they are doubled.

        If ``x`` has more channels than ``y``, the channels for one channel of ``y`` alternate over the voxels of the
        small cube, with the column index changing fastest. Slice 0 is not doubled: it is the last of its pair.
        """
        sources = x.unflatten(-1, (y.shape[-1], -1)).unbind(-1)
        cube = list(product(range(self.slice_factor), range(2), range(2)))
        for voxel, (depth, row, column) in enumerate(cube):
            source = sources[voxel * len(sources) // len(cube)]
            if past.is_first and depth < self.slice_factor - 1:
                source, depth = source[:, 1:], depth + 1
            elif past.is_first:
                depth = 0
            y[:, depth :: self.slice_factor, row::2, column::2] += source


class WanEncoder(nn.Module):
    """Maps grey slices to the features from which ``quant_conv`` computes mean and log variance."""

    grey_weight: torch.Tensor

    def __init__(self, sizes: WanSizes) -> None:
        super().__init__()
        widths = [sizes.base_dim * factor for factor in (1, *sizes.dim_mult)]
        levels = len(sizes.dim_mult)
        self.patch = sizes.patch
        self.conv_in = CausalConv(sizes.in_channels, widths[0])
        self.down_blocks = nn.ModuleList()
        for level, (width_in, width) in enumerate(pairwise(widths)):
            plane = level < levels - 1
            slices = plane and sizes.temperal_downsample[level]
            if sizes.is_residual:
                self.down_blocks.append(
                    _ResidualDown(width_in, width, sizes.num_res_blocks, plane=plane, slices=slices)
                )
                continue
            self.down_blocks.extend(_residual_blocks(width_in, width, sizes.num_res_blocks))
            if plane:
                self.down_blocks.append(Downsample(width, slices=slices))
        self.mid_block = MiddleBlock(widths[-1])
        self.norm_out = RMSNorm(widths[-1])
        self.conv_out = CausalConv(widths[-1], 2 * sizes.z_dim)

    def fold(self) -> None:
        """Derive the first layer's kernel for grey slices: the sum over the colours, which are equal."""
        weight = self.conv_in.weight.detach().double().unflatten(1, (COLOURS, -1))
        self.register_buffer("grey_weight", weight.sum(1).float(), persistent=False)

    def forward(self, volume: torch.Tensor, past: Past) -> torch.Tensor:
        """(B, D, H, W) to (B, d, h, w, 2 * z_dim)."""
        squares = volume.unflatten(3, (-1, self.patch)).unflatten(2, (-1, self.patch))  # (B, D, h, py, w, px)
        x = past.extend(squares.permute(0, 1, 2, 4, 5, 3).flatten(-2))
        x = F.conv3d(x.movedim(-1, 1), self.grey_weight, self.conv_in.bias, padding=self.conv_in.padding)
        x = x.movedim(1, -1).contiguous()
        for block in self.down_blocks:
            x = block(x, past)
        x = self.mid_block(x, past)
        return self.conv_out(past.extend(x, activation=self.norm_out), is_first=past.is_first)


class WanDecoder(nn.Module):
    """Maps the output of ``post_quant_conv`` to grey slices."""

    def __init__(self, sizes: WanSizes) -> None:
        super().__init__()
        base = sizes.decoder_base_dim or sizes.base_dim
        widths = [base * factor for factor in (sizes.dim_mult[-1], *reversed(sizes.dim_mult))]
        levels = len(sizes.dim_mult)
        self.patch = sizes.patch
        self.conv_in = CausalConv(sizes.z_dim, widths[0])
        self.mid_block = MiddleBlock(widths[0])
        self.up_blocks = nn.ModuleList()
        for level, (width_in, width) in enumerate(pairwise(widths)):
            plane = level < levels - 1
            slices = plane and sizes.temperal_downsample[levels - 2 - level]
            if sizes.is_residual:
                self.up_blocks.append(
                    _ResidualUp(width_in, width, sizes.num_res_blocks + 1, plane=plane, slices=slices)
                )
            else:
                halved = width_in if level == 0 else width_in // 2  # by the upsampling of the level before
                self.up_blocks.append(_Up(halved, width, sizes.num_res_blocks + 1, plane=plane, slices=slices))
        self.norm_out = RMSNorm(widths[-1])
        self.conv_out = CausalConv(widths[-1], sizes.out_channels)

    def forward(self, x: torch.Tensor, past: Past) -> torch.Tensor:
        """(B, d, h, w, z_dim) to (B, D, H, W) float32: the mean of the colours, each clamped to [-1, 1]."""
        x = self.mid_block(self.conv_in(past.extend(x), is_first=past.is_first), past)
        for level in self.up_blocks:
            x = level(x, past)
        colours = self.conv_out(past.extend(x, activation=self.norm_out), is_first=past.is_first).float().clamp_(-1, 1)
        squares = colours.unflatten(-1, (COLOURS, self.patch, self.patch)).mean(4)  # (B, D, h, w, px, py)
        return squares.permute(0, 1, 2, 5, 3, 4).flatten(4, 5).flatten(2, 3)


class WanNetwork(nn.Module):
    """Encoder and decoder; state dict as diffusers' ``AutoencoderKLWan``.

    A pass over a volume is a chain of calls, each with the next slices and the second value returned by the previous
    call (None for the first). The first call of ``encode`` takes 1 + k * slice_stride slices, later ones
    k * slice_stride; ``decode`` likewise takes 1 + k and k latent slices. The division into calls changes only the
    order of sums.
    """

    def __init__(self, sizes: WanSizes) -> None:
        super().__init__()
        self.encoder = WanEncoder(sizes)
        self.quant_conv = nn.Conv3d(2 * sizes.z_dim, 2 * sizes.z_dim, 1)
        self.post_quant_conv = nn.Conv3d(sizes.z_dim, sizes.z_dim, 1)
        self.decoder = WanDecoder(sizes)

    def fold(self, *, pairs: bool) -> WanNetwork:
        """Derive the kernels that no checkpoint holds, in float64; call after loading the weights, before a cast.

        Args:
            pairs: see ``CausalConv``; adds two thirds to the memory of the weights. For float32 on the CPU, where
                arithmetic dominates: in half precision it would add rounding errors, on a GPU memory traffic.
        """
        for module in self.modules():
            if isinstance(module, CausalConv):
                module.fold(pairs=pairs)
            elif isinstance(module, Upsample | WanEncoder):
                module.fold()
        return self

    def encode(self, volume: torch.Tensor, before: Before = None) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """(B, 1, D, H, W) to mean and log variance (B, 2 * z_dim, d, h, w)."""
        past = Past(before)
        moments = mix_channels(self.quant_conv, self.encoder(volume[:, 0], past))
        return moments.movedim(-1, 1), past.after

    def decode(self, latent: torch.Tensor, before: Before = None) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """(B, z_dim, d, h, w) to a grey volume (B, 1, D, H, W), float32, in [-1, 1]."""
        past = Past(before)
        volume = self.decoder(mix_channels(self.post_quant_conv, latent.movedim(1, -1)), past)
        return volume[:, None], past.after


def kept_values_per_pixel(sizes: WanSizes) -> int:
    """Values per pixel of a slice that the decoder hands from chunk to chunk (the encoder fewer), from its layers."""
    pixels = sizes.inplane_stride**2
    with torch.device("meta"), torch.no_grad():
        _, after = WanNetwork(sizes).fold(pairs=False).decode(torch.empty(1, sizes.z_dim, 2, 1, 1))
    return ceil(sum(tensor.numel() for tensor in after) / pixels)


def _residual_blocks(channels_in: int, channels_out: int, count: int) -> nn.ModuleList:
    return nn.ModuleList(
        ResidualBlock(channels_in if block == 0 else channels_out, channels_out) for block in range(count)
    )
