"""Layers for consistency along the slices, inserted into a 2D network without changing its initial output.

Foundation-VAE's generation trains a 2D diffusion UNet on single latent slices and then inserts a convolution along the
slices after every 3x3 convolution, which starts as the identity; only these are trained further. The paper's text
calls it attention, so attention is available too.

Both kinds are residual, ``x + f(x)``, with ``f`` zero at the start. For the convolution this is the same family of
functions, with the same gradients, as a convolution that starts as a Dirac, but exact on every backend: a Dirac
convolution in TF32 or bfloat16 rounds the values it passes on. The sum keeps the memory layout of ``x``, on which the
rounding of later convolutions depends.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

HEAD_WIDTH = 32
"""Channels of an attention head, as in the paper's UNet."""


class SliceCount:
    """Number of slices the network sees at once; shared by all layers of a network and set during a pass."""

    def __init__(self) -> None:
        self.slices = 1

    @contextmanager
    def set_to(self, slices: int) -> Iterator[None]:
        before, self.slices = self.slices, slices
        try:
            yield
        finally:
            self.slices = before

    def checkpointed(self, module: nn.Module, *inputs: Any) -> Any:
        """``module(*inputs)`` with gradient checkpointing; the second pass uses the same number of slices."""
        slices = self.slices

        def run(*inputs: Any) -> Any:
            with self.set_to(slices):
                return module(*inputs)

        return checkpoint(run, *inputs, use_reentrant=False)


class SliceConvolution(nn.Conv1d):
    """``f`` as a convolution over three neighbouring slices, zeros outside the window. (B, C, d) becomes (B, C, d)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)
        nn.init.zeros_(self.weight)
        assert self.bias is not None
        nn.init.zeros_(self.bias)


class SliceAttention(nn.Module):
    """``f`` as self-attention along the slices, with a zero output projection at first. (B, C, d) becomes (B, C, d).

    Slice positions are encoded by sines and cosines (Vaswani et al. 2017, section 3.5), so any number of slices is
    possible.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = channels // HEAD_WIDTH if channels % HEAD_WIDTH == 0 else 1
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.transpose(1, 2)
        positions = slice_positions(tokens.shape[1], tokens.shape[2], x.device).to(x.dtype)
        parts = self.qkv(self.norm(tokens) + positions).unflatten(-1, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.out(attended.transpose(1, 2).flatten(2)).transpose(1, 2)


def slice_positions(slices: int, channels: int, device: torch.device) -> torch.Tensor:
    """float32 (slices, channels): sine in even channels, cosine in odd ones, with wavelengths up to 20000 pi."""
    steps = torch.arange(0, channels, 2, device=device, dtype=torch.float32)
    angles = torch.arange(slices, device=device)[:, None] * torch.exp(steps * (-math.log(10000.0) / channels))
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :channels]


KINDS: dict[str, type[SliceConvolution] | type[SliceAttention]] = {
    "conv": SliceConvolution,
    "attention": SliceAttention,
}


class SliceConsistentConv2d(nn.Conv2d):
    """A 2D convolution of all slices, followed by a layer along the slices.

    (B * d, C, h, w) becomes (B * d, C', h', w'); d is in ``count``. The convolution's own weights keep their names.
    """

    def __init__(self, convolution: nn.Conv2d, kind: str, count: SliceCount) -> None:
        with torch.device("meta"):
            super().__init__(
                convolution.in_channels,
                convolution.out_channels,
                convolution.kernel_size,  # type: ignore[arg-type]
                convolution.stride,  # type: ignore[arg-type]
                convolution.padding,  # type: ignore[arg-type]
                bias=convolution.bias is not None,
            )
        self.weight, self.bias = convolution.weight, convolution.bias
        self.along_slices = KINDS[kind](convolution.out_channels)
        self.count = count

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = super().forward(x)
        slices = self.count.slices
        channels, height, width = x.shape[1:]
        lines = x.unflatten(0, (-1, slices)).permute(0, 3, 4, 2, 1).reshape(-1, channels, slices)
        change = self.along_slices(lines).unflatten(0, (-1, height, width))
        return x + change.permute(0, 4, 3, 1, 2).reshape(x.shape).contiguous()


def insert_along_slices(network: nn.Module, kind: str, count: SliceCount) -> None:
    """Insert a layer of this kind after every 3x3 convolution of ``network``, in place."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if (
                type(child) is not SliceConsistentConv2d
                and isinstance(child, nn.Conv2d)
                and child.kernel_size == (3, 3)
            ):
                setattr(parent, name, SliceConsistentConv2d(child, kind, count))


def parameters_along_slices(network: nn.Module) -> list[nn.Parameter]:
    """The parameters of the inserted layers only."""
    return [
        parameter
        for module in network.modules()
        if isinstance(module, SliceConsistentConv2d)
        for parameter in module.along_slices.parameters()
    ]
