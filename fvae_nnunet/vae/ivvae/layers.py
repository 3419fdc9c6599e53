"""Layers of IV-VAE: two branches of channels, convolutions that are causal between groups of slices, resampling.

A tensor holds the slices of a chunk, (B, D, 2 * width, H, W), stored channels last. The first half of the channels is
the plane branch, which keeps one slice of each group; the second is the space branch, which codes the whole group.
Chunks run from the first slice of a volume to the last. The first chunk starts with slice 0, which is a group of its
own at every resolution; all other groups are complete.

Layers modify their own intermediate results in place, so they must run without gradients. Parameters have the names of
the authors' checkpoints. Source: github.com/ali-vilab/iv-vae (MIT); Wu et al., Improved Video VAE for Latent Video
Diffusion Model, CVPR 2025.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

_SMALLEST_NORM = 1e-12  # as in torch.nn.functional.normalize


@dataclass
class Past:
    """State that a pass over a volume keeps from earlier chunks.

    Attributes:
        leading: slices of the next chunk before its first complete group: 1 at the start of the volume, then 0.
        held: contribution of the last slice to the next one, for each convolution along the slices.
    """

    leading: int = 1
    held: dict[nn.Module, torch.Tensor] = field(default_factory=dict)

    def copy(self) -> Past:
        """A copy that shares the tensors, which are never written to."""
        return Past(self.leading, dict(self.held))

    def restore(self, before: Past) -> None:
        """Return to the state of an earlier ``copy``."""
        self.leading, self.held = before.leading, before.held


def conv_slices(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, **options: Any) -> torch.Tensor:
    """2D convolution of each slice; x is (..., C, H, W)."""
    images = x.flatten(0, -4).contiguous(memory_format=torch.channels_last)
    return F.conv2d(images, weight, bias, **options).unflatten(0, x.shape[:-3])


def empty_slices(x: torch.Tensor, slices: int, *sizes: int) -> torch.Tensor:
    """Uninitialised (B, slices, C, H, W), channels last, for the C, H and W in ``sizes``; B as in ``x``."""
    images = torch.empty(
        (x.shape[0] * slices, *sizes), dtype=x.dtype, device=x.device, memory_format=torch.channels_last
    )
    return images.unflatten(0, (x.shape[0], slices))


def in_groups(x: torch.Tensor, leading: int, group: int) -> torch.Tensor:
    """The slices after the leading one as (B, groups, group, ...), a view."""
    return x[:, leading:].unflatten(1, ((x.shape[1] - leading) // group, group))


def _normalised(x: torch.Tensor, gamma: torch.Tensor, dim: int) -> torch.Tensor:
    """x divided by its root mean square along ``dim``, times ``gamma``."""
    precision = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=precision).clamp_min_(_SMALLEST_NORM)
    factor = (x.shape[dim] ** 0.5 / norm).clamp_max_(torch.finfo(x.dtype).max).to(x.dtype)
    return (x * factor).mul_(gamma)


class NormSiLU(nn.Module):
    """RMS norm over the channels of each branch, times gamma, followed by SiLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(2 * width, 1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branches = x.unflatten(2, (2, -1))
        normed = _normalised(branches, self.gamma.view(2, -1, 1, 1), dim=3)
        return F.silu(normed.flatten(2, 3), inplace=True)


class PlaneConv(nn.Module):
    """Convolution of each slice, from both branches to both."""

    def __init__(self, width_in: int, width: int, kernel: int = 3, *, dilation: int = 1) -> None:
        super().__init__()
        padding = kernel // 2 * dilation
        self.conv = nn.Conv2d(2 * width_in, 2 * width, kernel, padding=padding, dilation=dilation)

    def forward(self, x: torch.Tensor, past: Past) -> torch.Tensor:
        conv = self.conv
        return conv_slices(x, conv.weight, conv.bias, padding=conv.padding, dilation=conv.dilation)


class PointwiseConv(nn.Module):
    """Linear map of the channels of each voxel; each branch has its own weights and sees both branches."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.conv_2d = nn.Conv2d(2 * width_in, width, 1)
        self.conv_3d = nn.Conv3d(2 * width_in, width, 1)

    def forward(self, x: torch.Tensor, past: Past) -> torch.Tensor:
        weight = torch.cat([self.conv_2d.weight, self.conv_3d.weight[:, :, 0]])
        return conv_slices(x, weight, _joined(self.conv_2d.bias, self.conv_3d.bias))


class GroupCausalConv(nn.Module):
    """3x3 convolution to the plane branch and 3x3x3 convolution to the space branch, from the same channels.

    Along the slices, a group is padded with zeros after it and with the last slice of the previous group before it
    (slice 0 is padded with itself). The 3D kernel is the sum of three planar ones: for the slice itself, the previous
    slice and the next slice, the last of which is omitted at the end of a group.
    """

    def __init__(self, channels: int, width: int, group: int) -> None:
        super().__init__()
        self.group = group
        self.conv_2d = nn.Conv2d(channels, width, 3, padding=1)
        self.conv_3d = nn.Conv3d(channels, width, 3, padding=1)

    def forward(self, x: torch.Tensor, past: Past) -> torch.Tensor:
        width = self.conv_2d.out_channels
        from_before, from_own, from_behind = self.conv_3d.weight.unbind(2)
        weight = torch.cat([self.conv_2d.weight, from_own, from_before])
        bias = F.pad(_joined(self.conv_2d.bias, self.conv_3d.bias), (0, width))
        result, to_next = conv_slices(x, weight, bias, padding=1).split([2 * width, width], dim=2)
        space = result[:, :, width:]
        space[:, :1] += past.held.get(self, to_next[:, :1])
        space[:, 1:] += to_next[:, :-1]
        past.held[self] = to_next[:, -1:].clone()
        if x.shape[1] > past.leading:
            to_previous = conv_slices(in_groups(x, past.leading, self.group)[:, :, 1:], from_behind, None, padding=1)
            in_groups(space, past.leading, self.group)[:, :, :-1] += to_previous
        return result


class ResidualBlock(nn.Module):
    """Norm, SiLU and convolution, twice; in the plane, or with groups of ``group`` slices."""

    def __init__(self, width_in: int, width: int, group: int | None = None) -> None:
        super().__init__()

        def conv(from_width: int) -> nn.Module:
            return PlaneConv(from_width, width) if group is None else GroupCausalConv(2 * from_width, width, group)

        layers = {"0": NormSiLU(width_in), "2": conv(width_in), "3": NormSiLU(width), "6": conv(width)}
        self.residual = nn.ModuleDict(layers)
        self.shortcut = PointwiseConv(width_in, width) if width_in != width else None

    def forward(self, x: torch.Tensor, past: Past) -> torch.Tensor:
        hidden = self.residual["2"](self.residual["0"](x), past)
        hidden = self.residual["6"](self.residual["3"](hidden), past)
        return hidden + (x if self.shortcut is None else self.shortcut(x, past))


class _BranchAttention(nn.Module):
    """Single-head self-attention among the pixels of a slice."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.ParameterDict({"gamma": nn.Parameter(torch.ones(width, 1, 1))})
        self.to_qkv = nn.Conv2d(width, 3 * width, 1)
        self.proj = nn.Conv2d(width, width, 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Attend over pixels (images, pixels, width); returns the same shape."""
        normed = _normalised(pixels, self.norm["gamma"].flatten(), dim=2)
        joined = F.linear(normed, self.to_qkv.weight.flatten(1), self.to_qkv.bias)
        queries, keys, values = joined.unsqueeze(1).chunk(3, dim=-1)
        attended = F.scaled_dot_product_attention(queries, keys, values).squeeze(1)
        return F.linear(attended, self.proj.weight.flatten(1), self.proj.bias).add_(pixels)


class Attention(nn.Module):
    """Self-attention of each slice and each branch separately."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.Attention_2d = _BranchAttention(width)
        self.Attention_3d = _BranchAttention(width)

    def forward(self, x: torch.Tensor, past: Past) -> torch.Tensor:
        pixels = x.flatten(0, 1).movedim(1, -1).flatten(1, 2)
        plane, space = pixels.chunk(2, dim=-1)
        attended = torch.cat([self.Attention_2d(plane), self.Attention_3d(space)], dim=-1)
        return attended.unflatten(1, x.shape[-2:]).movedim(-1, 1).unflatten(0, x.shape[:2])


class Downsample(nn.Module):
    """Halves y and x and, with ``slices``, the slices of each group.

    Of two slices, the plane branch keeps the first and the space branch a linear map of both.
    """

    def __init__(self, width: int, *, slices: bool) -> None:
        super().__init__()
        self.resample_2d = nn.ModuleDict({"1": nn.Conv2d(width, width, 3, stride=2)})
        self.resample_3d = nn.ModuleDict({"1": nn.Conv2d(width, width, 3, stride=2)})
        self.time_conv = nn.Conv3d(width, width, (2, 1, 1), stride=(2, 1, 1)) if slices else None

    def forward(self, x: torch.Tensor, past: Past) -> torch.Tensor:
        lead = past.leading
        plane, space = (
            _halved_inplane(branch, layers["1"])
            for branch, layers in zip(x.chunk(2, dim=2), (self.resample_2d, self.resample_3d), strict=True)
        )
        width, height, length = plane.shape[2:]
        steps = 1 if self.time_conv is None else 2
        slices = lead + (x.shape[1] - lead) // steps
        result = empty_slices(x, slices, 2 * width, height, length)
        result[:, :lead, :width] = plane[:, :lead]
        result[:, :lead, width:] = space[:, :lead]
        result[:, lead:, :width] = plane[:, lead::steps]
        if self.time_conv is None:
            result[:, lead:, width:] = space[:, lead:]
        elif slices > lead:
            weight = self.time_conv.weight[..., 0].transpose(1, 2).flatten(1, 2).unsqueeze(-1)
            pairs = in_groups(space, lead, 2).flatten(2, 3)
            result[:, lead:, width:] = conv_slices(pairs, weight, self.time_conv.bias)
        return result


class Upsample(nn.Module):
    """Doubles y and x and halves the channels; with ``slices``, doubles the slices of each group.

    The plane branch repeats each slice; the space branch maps each slice linearly to two.
    """

    def __init__(self, width: int, *, slices: bool) -> None:
        super().__init__()
        self.resample_2d = nn.ModuleDict({"1": nn.Conv2d(width, width // 2, 3, padding=1)})
        self.resample_3d = nn.ModuleDict({"1": nn.Conv2d(width, width // 2, 3, padding=1)})
        self.time_conv = nn.Conv3d(width, 2 * width, 1) if slices else None

    def forward(self, x: torch.Tensor, past: Past) -> torch.Tensor:
        if self.time_conv is not None and x.shape[1] > past.leading:
            x = self._doubled_slices(x, past.leading, self.time_conv)
        slices, channels, height, length = x.shape[1:]
        result = empty_slices(x, slices, channels // 2, 2 * height, 2 * length)
        for branch, layers, target in zip(
            x.chunk(2, dim=2), (self.resample_2d, self.resample_3d), result.chunk(2, dim=2), strict=True
        ):
            _double_inplane(branch, layers["1"], target)
        return result

    @staticmethod
    def _doubled_slices(x: torch.Tensor, lead: int, time_conv: nn.Conv3d) -> torch.Tensor:
        plane, space = x[:, lead:].chunk(2, dim=2)
        width = plane.shape[2]
        result = empty_slices(x, lead + 2 * plane.shape[1], *x.shape[2:])
        result[:, :lead] = x[:, :lead]
        pairs = in_groups(result, lead, 2)
        pairs[:, :, :, :width] = plane.unsqueeze(2)
        pairs[:, :, :, width:] = conv_slices(space, time_conv.weight[..., 0], time_conv.bias).unflatten(2, (2, -1))
        return result


def _joined(plane: torch.Tensor | None, space: torch.Tensor | None) -> torch.Tensor:
    assert plane is not None
    assert space is not None
    return torch.cat([plane, space])


def _halved_inplane(x: torch.Tensor, conv: nn.Module) -> torch.Tensor:
    """3x3 convolution with stride 2, with one row and one column of zeros after the last ones.

    With two rows and columns of zeros on every side, the results are the same from the second one on.
    """
    assert isinstance(conv, nn.Conv2d)
    return conv_slices(x, conv.weight, conv.bias, stride=2, padding=2)[..., 1:, 1:]


def _double_inplane(x: torch.Tensor, conv: nn.Module, target: torch.Tensor) -> None:
    """Fill ``target`` with the 3x3 convolution of x after each pixel is repeated along y and x.

    Of the three rows under the kernel, two are the same row of x: the last two in even rows, the first two in odd rows;
    likewise for columns. The even and odd rows and columns are therefore four 2x2 convolutions of x itself.
    """
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    kernels = [by_column for by_row in _of_two(conv.weight, 2) for by_column in _of_two(by_row, 3)]
    height, length = x.shape[-2:]
    # one more row and column than pixels: even ones start at the first, odd ones at the second
    results = conv_slices(x, torch.cat(kernels), conv.bias.repeat(4), padding=1).chunk(4, dim=2)
    for index, result in enumerate(results):
        row, column = divmod(index, 2)
        target[..., row::2, column::2] = result[..., row : row + height, column : column + length]


def _of_two(weight: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A kernel of size 3 on repeated pixels as two kernels of size 2 on the pixels, for even and odd positions."""
    first, middle, last = weight.unbind(dim)
    return torch.stack([first, middle + last], dim), torch.stack([first + middle, last], dim)
