"""The network of LeanVAE (github.com/westlake-repl/LeanVAE, MIT; arXiv:2503.14325), for grey volumes.

The first slice of a volume is coded alone, the others in groups of four, in blocks of 8 x 8 pixels with one token each.
A token is a linear map of the Haar wavelet coefficients of its block, so the wavelet transform, the map and the sum
over equal colours are one matrix here; likewise in the decoder. Nothing else runs at pixel resolution.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from fvae_nnunet.vae.leanvae.layers import Bottleneck, CausalDepthwise, FeedForward, Layers, Memory, frozen

BLOCK = 8  # pixels of a block along y and x
SLICES = 4  # slices of a block; the first slice of a volume has its own blocks

_COLOURS = 3
_BAND_BLOCK = BLOCK // 2  # coefficients of a Haar band in a block, along y and x
_KINDS = (("video", SLICES // 2), ("image", 1))  # the authors' names of the blocks; coefficients along the slices


@dataclass(frozen=True)
class Sizes:
    """Widths and depths.

    Attributes:
        low, high: channels of a token for the lowest band of the wavelet transform and for the others.
        latent_channels: channels of the latent.
        separate_layers, fusion_layers: number of layers on each of the two alone, and on both together.
        steps, step_layers: steps, and layers per step, of the iteration that maps the latent back to tokens.
        posterior: whether the width of the posterior is known; its mean always is.
    """

    low: int
    high: int
    latent_channels: int
    separate_layers: int
    fusion_layers: int
    steps: int
    step_layers: int
    posterior: bool = True

    @classmethod
    def of(cls, state: Mapping[str, torch.Tensor]) -> Sizes:
        """The sizes of a state dict; KeyError if a tensor that determines one is missing."""

        def count(key: str) -> int:
            number = 0
            while key.format(number) in state:
                number += 1
            return number

        return cls(
            low=state["encoder.video_low_proj.1.weight"].shape[0],
            high=state["encoder.video_high_proj.1.weight"].shape[0],
            latent_channels=state["latent_bottleneck.phi"].shape[0],
            separate_layers=count("encoder.low_layer.dconv_layer.{}.ds_conv.weight"),
            fusion_layers=count("encoder.fusion_layer.dconv_layer.{}.ds_conv.weight"),
            steps=count("latent_bottleneck.weights.{}"),
            step_layers=count("latent_bottleneck.forward_l.0.dconv_layer.{}.ds_conv.weight"),
            posterior="std_layer.weight" in state,
        )


class LeanVAENetwork(nn.Module):
    """Encoder and decoder, with the authors' parameter names until ``fold``, which must be called before use."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.low + sizes.high
        self.encoder = _Encoder(sizes)
        self.decoder = _Decoder(sizes)
        self.latent_bottleneck = Bottleneck(width, sizes.latent_channels, steps=sizes.steps, layers=sizes.step_layers)
        self.std_layer = nn.Linear(width, sizes.latent_channels) if sizes.posterior else None

    @torch.no_grad()
    def fold(self) -> LeanVAENetwork:
        """Convert the loaded weights (float32) to the form used for computing; call once. Returns itself."""
        self.encoder.fold()
        self.decoder.fold()
        for module in self.modules():
            if isinstance(module, FeedForward):
                module.align()
            elif isinstance(module, CausalDepthwise):
                module.lay_out()
        return self

    def encode(
        self, volume: torch.Tensor, generator: torch.Generator | None = None, memory: Memory | None = None
    ) -> torch.Tensor:
        """Encode grey values in [-1, 1] to a latent (B, latent_channels, d, h, w).

        Args:
            volume: (B, 1, D, H, W) in the network's precision, D = 1 + 4k; with a filled ``memory`` D = 4k.
            generator: if given and the width of the posterior is known, the latent is sampled; otherwise it is the
                mean.
            memory: state for volumes in pieces: empty for the first piece, and updated by every call.
        """
        tokens = self.encoder(volume, memory)
        latent = self.latent_bottleneck.compress(tokens)
        if generator is not None and self.std_layer is not None:
            noise = torch.randn(latent.shape, generator=generator, device=generator.device).to(latent)
            latent += noise * torch.exp(0.5 * self.std_layer(tokens).clamp_(-30, 20))
        return latent.permute(1, 4, 0, 2, 3).contiguous()

    def decode(self, latent: torch.Tensor, memory: Memory | None = None) -> torch.Tensor:
        """Decode to grey values (B, 1, D, H, W), float32: the mean of three colours, each clamped to [-1, 1] first.

        Args:
            latent: as returned by ``encode``.
            memory: as for ``encode``, but a separate one.
        """
        first = not memory
        tokens = self.latent_bottleneck.expand(latent.permute(2, 0, 3, 4, 1), memory)
        return self.decoder(tokens, memory, first=first)


class _Coder(nn.Module):
    """Common base of encoder and decoder: layers of the low band, the high bands and both, and maps of blocks."""

    def __init__(self, sizes: Sizes, *, to_tokens: bool) -> None:
        super().__init__()
        self._low, self._to_tokens = sizes.low, to_tokens
        for kind, slices in _KINDS:
            coefficients = _coefficients(slices)
            for band, width, bands in (("low", sizes.low, 1), ("high", sizes.high, 4 * slices - 1)):
                layers: list[nn.Module]  # nn.Identity is where the authors rearrange
                if to_tokens:
                    layers = [nn.Identity(), nn.Linear(bands * coefficients, width)]
                else:
                    layers = [nn.Linear(width, bands * coefficients), nn.Identity()]
                self.add_module(f"{kind}_{band}_proj", nn.Sequential(*layers))
        self.low_layer = Layers(sizes.separate_layers, sizes.low, residual=True)
        self.high_layer = Layers(sizes.separate_layers, sizes.high, residual=True)
        self.fusion_layer = Layers(sizes.fusion_layers, sizes.low + sizes.high, residual=True)

    def _maps(self, kind: str) -> tuple[nn.Linear, nn.Linear]:
        """Linear maps of the low band and of the high bands."""
        index = 1 if self._to_tokens else 0
        low, high = (self.get_submodule(f"{kind}_{band}_proj.{index}") for band in ("low", "high"))
        assert isinstance(low, nn.Linear)
        assert isinstance(high, nn.Linear)
        return low, high


class _Encoder(_Coder):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes, to_tokens=True)

    def fold(self) -> None:
        """Turn maps from coefficients of three colours in [-0.5, 0.5] into maps from grey pixels in [-1, 1]."""
        for kind, slices in _KINDS:
            analysis = _haar(slices).unflatten(1, (_COLOURS, -1)).sum(1) / 2
            bands = analysis.split([_coefficients(slices), len(analysis) - _coefficients(slices)])
            for linear, band in zip(self._maps(kind), bands, strict=True):
                linear.weight = frozen((linear.weight.double() @ band).float())

    def forward(self, volume: torch.Tensor, memory: Memory | None) -> torch.Tensor:
        lows, highs = [], []
        for kind, blocks in _blocks(volume, first=not memory):
            low_map, high_map = self._maps(kind)
            pixels = blocks.flatten(4)
            lows.append(low_map(pixels))
            highs.append(high_map(pixels))
        low = self.low_layer(torch.cat(lows), memory)
        high = self.high_layer(torch.cat(highs), memory)
        return self.fusion_layer(torch.cat([low, high], dim=-1), memory)


class _Decoder(_Coder):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes, to_tokens=False)

    def fold(self) -> None:
        """Turn maps to coefficients of colours in [-0.5, 0.5] into maps to colour pixels in [-1, 1]."""
        for kind, slices in _KINDS:
            synthesis = 2 * _haar(slices) / (4 * slices)
            bands = synthesis.split([_coefficients(slices), len(synthesis) - _coefficients(slices)])
            for linear, band in zip(self._maps(kind), bands, strict=True):
                linear.weight = frozen((band.T @ linear.weight.double()).float())
                linear.bias = frozen((band.T @ linear.bias.double()).float())

    def forward(self, tokens: torch.Tensor, memory: Memory | None, *, first: bool) -> torch.Tensor:
        latent_slices, batch, rows, columns, _ = tokens.shape
        tokens = self.fusion_layer(tokens, memory)
        low = self.low_layer(tokens[..., : self._low].contiguous(), memory)
        high = self.high_layer(tokens[..., self._low :].contiguous(), memory)
        slices = SLICES * latent_slices - (SLICES - 1 if first else 0)
        volume = torch.empty((batch, 1, slices, BLOCK * rows, BLOCK * columns), device=tokens.device)
        done = 0
        for kind, blocks in _blocks(volume, first=first):
            low_map, high_map = self._maps(kind)
            for block in blocks:  # one latent slice at a time: all colours at once would take three volumes
                colours = low_map(low[done]).add_(high_map(high[done])).clamp_(-1, 1)
                block.copy_(colours.unflatten(-1, (_COLOURS, *block.shape[3:])).mean(3, dtype=torch.float32))
                done += 1
        return volume


def _blocks(volume: torch.Tensor, *, first: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the kind of blocks and a view (latent slices, B, rows, columns, slices, y, x) of (B, 1, D, H, W)."""
    alone = 1 if first else 0
    for kind, part, slices in (("image", volume[:, 0, :alone], 1), ("video", volume[:, 0, alone:], SLICES)):
        if part.shape[1]:
            split = part.unflatten(1, (-1, slices)).unflatten(3, (-1, BLOCK)).unflatten(5, (-1, BLOCK))
            yield kind, split.permute(1, 0, 3, 5, 2, 4, 6)


def _coefficients(slices: int) -> int:
    """Number of coefficients of one Haar band in a block, all colours."""
    return _COLOURS * slices * _BAND_BLOCK**2


def _haar(slices: int) -> torch.Tensor:
    """The unscaled Haar analysis of a block: rows (band, colour, z, y, x), columns (colour, slice, y, x), float64.

    Its entries are 1, -1 and 0; each coefficient sums a cube of 2 x 2 x 2 pixels (a square in the first slice) with
    signs. The order of the bands is that of the authors: z before y before x, but x before y in the first slice.
    """
    pair = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    if slices == 1:
        signs = torch.einsum("cx,by->cbyx", pair, pair).reshape(4, 1, 2, 2)
    else:
        signs = torch.einsum("az,by,cx->abczyx", pair, pair, pair).reshape(8, 2, 2, 2)
    colours, z, yx = (torch.eye(size, dtype=torch.float64) for size in (_COLOURS, slices, _BAND_BLOCK))
    matrix = torch.einsum("sijk,cd,zw,yu,xv->sczyxdwiujvk", signs, colours, z, yx, yx)
    return matrix.flatten(5).flatten(0, 4)
