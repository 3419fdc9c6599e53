"""The layers of the Wan VAEs, for chunks of slices with state passed from chunk to chunk.

Features are (B, D, H, W, C): the channels are last in memory in all layers, so that reshaping is free, normalisation
reads contiguous values, and convolutions take their fastest path. Parameters have the names and shapes of diffusers'
``AutoencoderKLWan`` (Apache-2.0), whose results these layers reproduce up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from fvae_nnunet.vae.module_vae import silu_into

CONVOLVED_BEFORE = 2  # earlier slices that a causal kernel of three slices covers


class Past:
    """The last inputs of every causal layer, in the order in which the layers run.

    One object serves one chunk: each layer takes the slices kept from the previous chunk and keeps its own for the
    next.

    Args:
        before: ``after`` of the previous chunk; None for the first chunk, where zeros precede slice 0.
    """

    def __init__(self, before: Sequence[torch.Tensor] | None) -> None:
        self.is_first = before is None
        self.after: list[torch.Tensor] = []
        self._before = iter(before or ())

    def extend(
        self, x: torch.Tensor, *, slices: int = CONVOLVED_BEFORE, activation: RMSNorm | None = None
    ) -> torch.Tensor:
        """``x``, or SiLU of its norm, preceded by the ``slices`` slices before it."""
        extended = x.new_empty(x.shape[0], slices + x.shape[1], *x.shape[2:])
        extended[:, :slices] = 0 if self.is_first else next(self._before)
        if activation is None:
            extended[:, slices:] = x
        else:
            activation.silu_into(x, extended[:, slices:])
        self.keep(extended, slices)
        return extended

    def keep(self, x: torch.Tensor, slices: int) -> None:
        """Keep the last ``slices`` slices of ``x`` for the next chunk."""
        self.after.append(x[:, -slices:].clone())


class RMSNorm(nn.Module):
    """Division by the root mean square over the channels, times ``gamma``.

    The norm is at least 1e-12, as in diffusers.
    """

    def __init__(self, channels: int, *, dimensions: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(channels, *(1,) * dimensions))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        channels = x.shape[-1]
        return F.rms_norm(x, (channels,), self.gamma.flatten(), eps=1e-24 / channels)

    def silu_into(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """Write SiLU of the norm of ``x`` to ``out``."""
        if x.is_cuda or torch.compiler.is_compiling():
            silu_into(self(x), out)
            return
        # torch has no CPU kernel for this norm: compute slice by slice, within the cache
        gamma = self.gamma.flatten()
        for x_slice, out_slice in zip(x.flatten(0, 1), (item for volume in out for item in volume), strict=True):
            norm = torch.linalg.vector_norm(x_slice, dim=-1, keepdim=True, dtype=torch.float32).clamp_min_(1e-12)
            torch.mul(x_slice, (x.shape[-1] ** 0.5 / norm).to(x.dtype), out=out_slice)
            F.silu(out_slice.mul_(gamma), inplace=True)


class CausalConv(nn.Conv3d):
    """A 3x3x3 convolution that pads only in the plane; ``Past.extend`` prepends two slices.

    Two neighbouring slices share two of the three slices under the kernel. With ``fold(pairs=True)`` they are computed
    together by four planar convolutions instead of six (Winograd's F(2, 3) along the slices).
    """

    sum_weight: torch.Tensor | None
    difference_weight: torch.Tensor | None

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 3, padding=(0, 1, 1))
        self.register_buffer("sum_weight", None, persistent=False)
        self.register_buffer("difference_weight", None, persistent=False)

    def fold(self, *, pairs: bool) -> None:
        """Change the memory layout of the weight and, for pairs, derive two more (C_out, C_in, 3, 3)."""
        if not pairs:
            self.weight.data = self.weight.data.contiguous(memory_format=torch.channels_last_3d)
            return
        self.weight.data = self.weight.data.permute(2, 0, 3, 4, 1).contiguous().permute(1, 4, 0, 2, 3)
        first, second, third = self.weight.detach().double().unbind(2)
        for name, weight in (("sum", first + second + third), ("difference", first - second + third)):
            halved = (weight / 2).float().contiguous(memory_format=torch.channels_last)
            self.register_buffer(f"{name}_weight", halved, persistent=False)

    def forward(self, x: torch.Tensor, *, is_first: bool = False) -> torch.Tensor:
        """(B, 2 + D, H, W, C_in) to (B, D, H, W, C_out); ``is_first``: the two prepended slices are zeros."""
        depth = x.shape[1] - CONVOLVED_BEFORE
        # slice 0 needs a third of the kernel, the rest is zeros; on a GPU those are cheaper than a copy of the result
        alone = 1 if is_first and x.device.type == "cpu" else 0
        pairs = 0 if self.sum_weight is None else (depth - alone) // 2
        done = alone + 2 * pairs
        if done == 0:
            return convolve(super().forward, x)
        y = x.new_empty(x.shape[0], depth, *x.shape[2:4], self.out_channels)
        if alone:
            y[:, :1] = self._convolve_plane(x[:, CONVOLVED_BEFORE:][:, :1], self.weight[:, :, -1], self.bias)
        if pairs:
            self._convolve_pairs(x[:, alone:], y[:, alone:done].unflatten(1, (pairs, 2)))
        if done < depth:
            y[:, done:] = convolve(super().forward, x[:, done:])
        return y

    def _convolve_pairs(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Write the convolved slices to ``y`` (B, pairs, 2, H, W, C_out)."""
        first, second, third, fourth = (x[:, start::2][:, : y.shape[1]] for start in range(4))
        assert self.sum_weight is not None and self.difference_weight is not None
        total = self._convolve_plane(second + third, self.sum_weight, self.bias)
        difference = self._convolve_plane(third - second, self.difference_weight)
        torch.add(total, difference, out=y[:, :, 0])
        y[:, :, 0] += self._convolve_plane(first - third, self.weight[:, :, 0])
        torch.sub(total, difference, out=y[:, :, 1])
        y[:, :, 1] -= self._convolve_plane(second - fourth, self.weight[:, :, 2])

    @staticmethod
    def _convolve_plane(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        y = F.conv2d(x.flatten(0, 1).movedim(-1, 1), weight, bias, padding=1)
        return y.movedim(1, -1).unflatten(0, x.shape[:2])


def convolve(conv: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Apply ``conv`` to ``x``, with channels last in memory, also in the result."""
    return conv(x.movedim(-1, 1)).movedim(1, -1).contiguous()


def convolve_slices(conv: nn.Conv3d, x: torch.Tensor) -> torch.Tensor:
    """A convolution with kernel (3, 1, 1), computed in 2D over slices and pixels, where torch has faster kernels."""
    pixels = x.flatten(2, 3).movedim(-1, 1)  # (B, C, D, H * W)
    y = F.conv2d(pixels, conv.weight.flatten(3), conv.bias, stride=(conv.stride[0], 1))
    return y.movedim(1, -1).unflatten(2, x.shape[2:4]).contiguous()


def mix_channels(conv: nn.Conv3d | nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """A convolution of kernel size 1."""
    return F.linear(x, conv.weight.flatten(1), conv.bias)


class ResidualBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(channels_in)
        self.conv1 = CausalConv(channels_in, channels_out)
        self.norm2 = RMSNorm(channels_out)
        self.conv2 = CausalConv(channels_out, channels_out)
        self.conv_shortcut = nn.Conv3d(channels_in, channels_out, 1) if channels_in != channels_out else None

    def forward(self, x: torch.Tensor, past: Past) -> torch.Tensor:
        y = x
        for norm, conv in ((self.norm1, self.conv1), (self.norm2, self.conv2)):
            y = past.extend(y, activation=norm)  # one step per line, so that the previous ``y`` is freed at once
            y = conv(y, is_first=past.is_first)
        return y.add_(x if self.conv_shortcut is None else mix_channels(self.conv_shortcut, x))


class SliceAttention(nn.Module):
    """Single-head attention among the pixels of each slice."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = RMSNorm(channels, dimensions=2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, depth, height, width, channels = x.shape
        pixels = self.norm(x).view(batch * depth, 1, height * width, channels)
        query, key, value = mix_channels(self.to_qkv, pixels).chunk(3, dim=-1)
        attended = F.scaled_dot_product_attention(query, key, value)
        return mix_channels(self.proj, attended).view_as(x).add_(x)


class MiddleBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(channels, channels) for _ in range(2))
        self.attentions = nn.ModuleList([SliceAttention(channels)])

    def forward(self, x: torch.Tensor, past: Past) -> torch.Tensor:
        x = self.resnets[0](x, past)
        return self.resnets[1](self.attentions[0](x), past)


def _plane_conv(resample: nn.ModuleDict) -> nn.Conv2d:
    conv = resample["1"]  # its index in the published models
    assert isinstance(conv, nn.Conv2d)
    return conv


class Downsample(nn.Module):
    """Halves the plane and, with ``slices``, the slices; slice 0 stays alone: 1 + 2k become 1 + k, then 2k become k."""

    def __init__(self, channels: int, *, slices: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(channels, channels, 3, stride=2)})
        self.time_conv = nn.Conv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1)) if slices else None

    def forward(self, x: torch.Tensor, past: Past) -> torch.Tensor:
        padded = F.pad(x.flatten(0, 1), (0, 0, 0, 1, 0, 1))
        x = convolve(_plane_conv(self.resample), padded).unflatten(0, x.shape[:2])
        if self.time_conv is None:
            return x
        if not past.is_first:
            return convolve_slices(self.time_conv, past.extend(x, slices=1))
        past.keep(x, slices=1)
        return x if x.shape[1] == 1 else torch.cat([x[:, :1], convolve_slices(self.time_conv, x)], dim=1)


class Upsample(nn.Module):
    """Doubles the plane and, with ``slices``, all slices but slice 0, which no later slice sees here.

    In the plane, nearest-neighbour upsampling and a 3x3 convolution equal four 2x2 convolutions of the small image, one
    for each pixel of a 2x2 square: kernel values for the same pixel are added (``fold``). 16 products instead of 36.
    """

    subpixel_weight: torch.Tensor

    def __init__(self, channels_in: int, channels_out: int, *, slices: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(channels_in, channels_out, 3)})
        self.time_conv = nn.Conv3d(channels_in, 2 * channels_in, (3, 1, 1)) if slices else None

    def fold(self) -> None:
        """Derive the 2x2 kernels (4 C_out, C_in, 2, 2), row by row of the square, from the 3x3 kernel."""
        first, second, third = _plane_conv(self.resample).weight.detach().double().unbind(2)
        rows = torch.stack([torch.stack([first, second + third], 2), torch.stack([first + second, third], 2)])
        first, second, third = rows.unbind(4)
        kernels = torch.stack([torch.stack([first, second + third], 4), torch.stack([first + second, third], 4)], 1)
        self.register_buffer("subpixel_weight", kernels.flatten(0, 2).float(), persistent=False)

    def forward(self, x: torch.Tensor, past: Past) -> torch.Tensor:
        if self.time_conv is not None:
            x = self._double_slices(self.time_conv, x, past)
        batch, depth, height, width, _ = x.shape
        bias = _plane_conv(self.resample).bias
        assert bias is not None
        squares = F.conv2d(x.flatten(0, 1).movedim(-1, 1), self.subpixel_weight, bias.repeat(4), padding=1)
        squares = squares.movedim(1, -1).unflatten(-1, (2, 2, -1))  # (B * D, H + 1, W + 1, 2, 2, C)
        y = x.new_empty(batch * depth, height, 2, width, 2, squares.shape[-1])
        for row in range(2):
            for column in range(2):
                y[:, :, row, :, column] = squares[:, row : row + height, column : column + width, row, column]
        return y.view(batch, depth, 2 * height, 2 * width, -1)

    @staticmethod
    def _double_slices(time_conv: nn.Conv3d, x: torch.Tensor, past: Past) -> torch.Tensor:
        new = x[:, 1:] if past.is_first else x
        extended = past.extend(new)
        if new.shape[1] == 0:
            return x
        pairs = convolve_slices(time_conv, extended).unflatten(-1, (2, -1))  # (B, D, H, W, 2, C)
        doubled = pairs.movedim(4, 2).flatten(1, 2)
        return torch.cat([x[:, :1], doubled], dim=1) if past.is_first else doubled
