"""The layers of LeanVAE's network, on tokens (slices, B, rows, columns, channels).

In this order every range of slices is contiguous in memory, and neither convolutions nor matrix products need a copy.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from fvae_nnunet.vae.module_vae import depth_outermost

Memory = dict[nn.Module, torch.Tensor]
"""The last slices that each convolution saw; empty before the first slice of a volume."""

_SEEN_BEFORE = 2  # earlier slices that a convolution sees
_ALIGNED = 8  # channels; products in half precision are slow if rows do not start at multiples of 16 bytes
# Bound the hidden values, eight per channel of a token; on CPUs they should stay in the cache
_TOKENS_AT_ONCE_ON_CPU = 4096
_TOKENS_AT_ONCE_ON_GPU = 16384


class FeedForward(nn.Sequential):
    """Gated feed-forward layer of each token."""

    def __init__(self, width: int) -> None:
        inner = int(4 * (2 / 3) * width)
        super().__init__(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * inner, bias=False),
            _GatedGELU(),
            nn.Identity(),  # dropout, in training
            nn.Linear(inner, width, bias=False),
        )

    def align(self) -> None:
        """Add hidden channels that are always zero, up to a multiple of 8."""
        widen, narrow = self[1], self[4]
        assert isinstance(widen, nn.Linear)
        assert isinstance(narrow, nn.Linear)
        inner = narrow.weight.shape[1]
        missing = -inner % _ALIGNED
        halves = F.pad(widen.weight.unflatten(0, (2, inner)), (0, 0, 0, missing))
        widen.weight = frozen(halves.flatten(0, 1))
        narrow.weight = frozen(F.pad(narrow.weight, (0, missing)))


class _GatedGELU(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value, gate = x.chunk(2, dim=-1)
        return F.gelu(gate).mul_(value)


class CausalDepthwise(nn.Module):
    """A depthwise 3 x 3 x 3 convolution over a slice and the two before it.

    It is computed as planar convolutions, one for each distance between slices: on CPUs, these are an order of
    magnitude faster than the 3D convolution.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ds_conv = nn.Conv3d(width, width, 3, groups=width)

    def lay_out(self) -> None:
        self.ds_conv.weight.data = depth_outermost(self.ds_conv.weight.data)

    def forward(self, x: torch.Tensor, memory: Memory | None) -> torch.Tensor:
        seen = x
        if memory is not None:
            if self in memory:
                seen = torch.cat([memory[self], x])
            memory[self] = seen[-_SEEN_BEFORE:].clone()
        result = self._planar(x, 0)
        for back in range(1, _SEEN_BEFORE + 1):
            before = seen[max(0, len(seen) - len(x) - back) : -back]
            if len(before):
                result[-len(before) :] += self._planar(before, back)
        return result

    def _planar(self, x: torch.Tensor, back: int) -> torch.Tensor:
        planes = x.flatten(0, 1).permute(0, 3, 1, 2)
        weight = self.ds_conv.weight[:, :, _SEEN_BEFORE - back]
        bias = None if back else self.ds_conv.bias
        result = F.conv2d(planes, weight, bias, padding=1, groups=len(weight))
        return result.permute(0, 2, 3, 1).contiguous().view(x.shape)


class Layers(nn.Module):
    """Alternating convolutions and feed-forward layers; each adds to its input (``residual``) or replaces it."""

    def __init__(self, layers: int, width: int, *, residual: bool) -> None:
        super().__init__()
        self.ffd_layer = nn.Sequential(*(FeedForward(width) for _ in range(layers)))
        self.dconv_layer = nn.Sequential(*(CausalDepthwise(width) for _ in range(layers)))
        self._residual = residual

    def forward(self, x: torch.Tensor, memory: Memory | None) -> torch.Tensor:
        at_once = _TOKENS_AT_ONCE_ON_CPU if x.device.type == "cpu" else _TOKENS_AT_ONCE_ON_GPU
        for convolution, feed_forward in zip(self.dconv_layer, self.ffd_layer, strict=True):
            before, x = x, convolution(x, memory)
            if self._residual:
                x += before
            for tokens in x.view(-1, x.shape[-1]).split(at_once):
                if self._residual:
                    tokens += feed_forward(tokens)
                else:
                    tokens.copy_(feed_forward(tokens))
        return x


class Bottleneck(nn.Module):
    """Maps tokens to the latent (``phi``) and back, in a fixed number of learned shrinkage-thresholding steps."""

    def __init__(self, width: int, latent_channels: int, *, steps: int, layers: int) -> None:
        super().__init__()
        self.phi = nn.Parameter(torch.empty(latent_channels, width))
        self.Q = nn.Parameter(torch.empty(width, latent_channels))
        self.forward_l = nn.ModuleList(Layers(layers, width, residual=False) for _ in range(steps))
        self.backward_l = nn.ModuleList(Layers(layers, width, residual=False) for _ in range(steps))
        self.weights = nn.ParameterList(torch.empty(()) for _ in range(steps))
        self.threshold = nn.ParameterList(torch.empty(1) for _ in range(steps))

    def compress(self, tokens: torch.Tensor) -> torch.Tensor:
        """(..., width) to (..., latent_channels)."""
        return F.linear(tokens, self.phi)

    def expand(self, latent: torch.Tensor, memory: Memory | None) -> torch.Tensor:
        """(slices, B, rows, columns, latent_channels) to tokens."""
        tokens = F.linear(latent, self.Q)
        flat = tokens.view(-1, tokens.shape[-1])
        for analysis, synthesis, weight, threshold in zip(
            self.forward_l, self.backward_l, self.weights, self.threshold, strict=True
        ):
            misfit = latent - self.compress(tokens)
            flat.addmm_(misfit.flatten(0, -2), weight * self.phi)
            change = analysis(tokens, memory)
            change = change.abs().sub_(threshold).relu_().copysign_(change)
            tokens += synthesis(change, memory)
        return tokens


def frozen(weight: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(weight, requires_grad=False)
