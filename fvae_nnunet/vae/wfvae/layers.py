"""The layers of WF-VAE except its wavelets (see ``wfvae/network.py``), each equal to upstream's up to rounding.

Tensors are (B, C, D, H, W) with channels last in memory, so that norms and linear layers need no copy and ``as_slices``
is a view. A causal kernel needs two slices before the first, its lead: copies of the first. An activation before a
convolution is written directly after the lead.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from fvae_nnunet.vae.module_vae import batch_as_slices, lerp_into, silu_into

LEAD_SLICES = 2


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each voxel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class SliceConv(nn.Conv2d):
    """A 3x3 convolution of each slice."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int = 1, padding: int = 1) -> None:
        super().__init__(channels_in, channels_out, 3, stride=stride, padding=padding)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return batch_as_slices(super().forward(as_slices(x)), x.shape[0])


class CausalConv(nn.Module):
    """A 3x3x3 convolution that sees its slice and the two before it; its input is a volume after its lead."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int = 1, padding: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels_in, channels_out, 3, stride=stride, padding=(0, padding, padding))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class _VoxelLinear(nn.Module):
    """A 1x1x1 convolution."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels_in, channels_out, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x.movedim(1, -1), self.conv.weight.flatten(1), self.conv.bias).movedim(-1, 1)


class SliceBlock(nn.Module):
    """A residual block of planar convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = ChannelNorm(channels), ChannelNorm(channels)
        self.conv1, self.conv2 = SliceConv(channels, channels), SliceConv(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv1(functional.silu(self.norm1(x), inplace=True))
        return self.conv2(functional.silu(self.norm2(h), inplace=True)).add_(x)


class Block(nn.Module):
    """A residual block of causal convolutions."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = ChannelNorm(channels_in), ChannelNorm(channels_out)
        self.conv1, self.conv2 = CausalConv(channels_in, channels_out), CausalConv(channels_out, channels_out)
        if channels_in != channels_out:
            self.nin_shortcut = _VoxelLinear(channels_in, channels_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv1(activated_with_lead(self.norm1(x)))
        h = self.conv2(activated_with_lead(self.norm2(h)))
        return h.add_(self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class SliceAttention(nn.Module):
    """Single-head attention among the pixels of each slice."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.q, self.k, self.v = (_VoxelLinear(channels, channels) for _ in range(3))
        self.proj_out = _VoxelLinear(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        # (B * D, 1, H * W, C): the fused kernels need a head axis
        query, key, value = (
            as_slices(part(h)).flatten(2).transpose(1, 2).unsqueeze(1) for part in (self.q, self.k, self.v)
        )
        h = functional.scaled_dot_product_attention(query, key, value)
        h = h.squeeze(1).transpose(1, 2).unflatten(2, x.shape[3:])
        return self.proj_out(batch_as_slices(h, x.shape[0])).add_(x)


class SliceDownsample(nn.Module):
    """Halves y and x; the kernel for pixel i begins at 2i, with zeros after the last row and column."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = SliceConv(channels, channels, stride=2, padding=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)[..., 1:, 1:]  # the kernels that begin at -2 belong to the padding


class Downsample(nn.Module):
    """Halves y and x as ``SliceDownsample`` does, and the slices; the kernel for slice i ends at 2i."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = CausalConv(channels, channels, stride=2, padding=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(with_lead(x))[..., 1:, 1:]


class SliceUpsample(nn.Module):
    """Doubles y and x by repetition and convolves with 3x3, computed as one transposed 4x4 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padded = functional.pad(self.conv.weight.flip(2, 3), (1, 1, 1, 1))
        kernel = functional.avg_pool2d(padded, 2, stride=1, divisor_override=1).transpose(0, 1).contiguous()
        fine = functional.conv_transpose2d(as_slices(x), kernel, self.conv.bias, stride=2, padding=1)
        return batch_as_slices(fine, x.shape[0])


class Upsample(nn.Module):
    """Doubles y, x and all slices but the first by linear interpolation, and convolves.

    Interpolated slices mix with the next one: the only place where the network looks ahead.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = CausalConv(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, _, slices, _, _ = x.shape
        doubled = _empty_volume(x, LEAD_SLICES + 2 * slices - 1)
        doubled[:, :, : LEAD_SLICES + 1] = x[:, :, :1]
        if slices > 1:
            rest = x[:, :, 1:]
            towards_last, towards_next = doubled[:, :, LEAD_SLICES + 1 :: 2], doubled[:, :, LEAD_SLICES + 2 :: 2]
            towards_last[:, :, 0] = rest[:, :, 0]
            lerp_into(rest[:, :, 1:], rest[:, :, :-1], 0.25, towards_last[:, :, 1:])
            lerp_into(rest[:, :, :-1], rest[:, :, 1:], 0.25, towards_next[:, :, :-1])
            towards_next[:, :, -1] = rest[:, :, -1]
        fine = functional.interpolate(as_slices(doubled), scale_factor=2, mode="bilinear")
        return self.conv(batch_as_slices(fine, batch))


def as_slices(x: torch.Tensor) -> torch.Tensor:
    """(B, C, D, H, W) to (B * D, C, H, W), a view if the channels are last in memory."""
    return x.transpose(1, 2).flatten(0, 1)


def _empty_volume(like: torch.Tensor, slices: int) -> torch.Tensor:
    batch, channels, _, height, width = like.shape
    return like.new_empty((batch, slices, height, width, channels)).movedim(-1, 1)


def with_lead(x: torch.Tensor) -> torch.Tensor:
    """``x`` preceded by two copies of its first slice."""
    return torch.cat([x[:, :, :1]] * LEAD_SLICES + [x], dim=2)


def activated_with_lead(x: torch.Tensor) -> torch.Tensor:
    """``with_lead(silu(x))`` without copying the whole volume."""
    led = _empty_volume(x, LEAD_SLICES + x.shape[2])
    silu_into(x, led[:, :, LEAD_SLICES:])
    led[:, :, :LEAD_SLICES] = led[:, :, LEAD_SLICES : LEAD_SLICES + 1]
    return led
