"""The network of IV-VAE (Improved Video VAE), with the parameter names of the authors' checkpoints.

Values equal those of the authors' code up to the order of sums. Slice 0 is coded alone, then four slices per latent
slice. The authors code one latent slice at a time; here a chunk holds as many as fit into ``CHUNK_VOXELS``.
Source: github.com/ali-vilab/iv-vae (MIT).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from fvae_nnunet.device.memory import CallSize
from fvae_nnunet.vae.ivvae.layers import (
    Attention,
    Downsample,
    GroupCausalConv,
    NormSiLU,
    Past,
    PlaneConv,
    PointwiseConv,
    ResidualBlock,
    Upsample,
)
from fvae_nnunet.vae.module_vae import depth_outermost

GROUP_SLICES = 4
INPLANE_STRIDE = 8
CHUNK_VOXELS = 2**20  # four slices of 512 x 512: enough for a GPU, and a tensor takes 0.4 GB in bfloat16

_DILATIONS = (1, 3, 6, 9, 12)


class PyramidHead(nn.ModuleDict):
    """Parallel convolutions with increasing dilation, combined by a linear map."""

    def __init__(self, width_in: int, width: int) -> None:
        layers = {f"PAC_{dilation}": PlaneConv(width_in, width, dilation=dilation) for dilation in _DILATIONS}
        mixing = PlaneConv((1 + len(layers)) * width, width, 1)
        super().__init__({"PAC_0": PlaneConv(width_in, width, 1), **layers, "PAC_conv": mixing})

    def forward(self, x: torch.Tensor, past: Past) -> torch.Tensor:
        *layers, mixing = self.values()
        branches = torch.stack([layer(x, past).unflatten(2, (2, -1)) for layer in layers], dim=3)
        return mixing(branches.flatten(2, 4), past)


class Encoder(nn.Module):
    """(B, D, 3, H, W) to (B, d, 2 * width, H / 8, W / 8), without the last pointwise convolution."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.conv1 = GroupCausalConv(3, dim, 4)
        self.downsamples = nn.ModuleList(
            [
                *(ResidualBlock(dim, dim, 4), ResidualBlock(dim, dim, 4)),
                Downsample(dim, slices=False),
                *(ResidualBlock(dim, 2 * dim, 4), ResidualBlock(2 * dim, 2 * dim, 4)),
                Downsample(2 * dim, slices=True),
                *(ResidualBlock(2 * dim, 4 * dim, 2), ResidualBlock(4 * dim, 4 * dim, 2)),
                Downsample(4 * dim, slices=True),
                Attention(4 * dim),
                *_blocks_and_attention(4 * dim, 2),
            ]
        )
        self.middle = _middle(4 * dim)
        self.head = nn.ModuleDict({"0": NormSiLU(4 * dim), "2": PyramidHead(4 * dim, width)})

    def forward(self, x: torch.Tensor, past: Past) -> torch.Tensor:
        x = self.conv1(x, past)
        for layer in (*self.downsamples, *self.middle):
            x = layer(x, past)
        x = self.head["2"](self.head["0"](x), past)
        past.leading = 0
        return x


class Decoder(nn.Module):
    """(B, d, 2 * width, h, w) to (B, D, 3, 8h, 8w)."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.conv1 = PlaneConv(width, 4 * dim)
        self.middle = _middle(4 * dim)
        self.upsamples = nn.ModuleList(
            [
                *_blocks_and_attention(4 * dim, 3),
                Upsample(4 * dim, slices=True),
                *(ResidualBlock(2 * dim, 4 * dim, 2), *(ResidualBlock(4 * dim, 4 * dim, 2) for _ in range(2))),
                Upsample(4 * dim, slices=True),
                *(ResidualBlock(2 * dim, 2 * dim, 4) for _ in range(3)),
                Upsample(2 * dim, slices=False),
                *(ResidualBlock(dim, dim, 4) for _ in range(3)),
            ]
        )
        self.head = nn.ModuleDict({"0": NormSiLU(dim), "2": GroupCausalConv(2 * dim, 3, GROUP_SLICES)})

    def forward(self, x: torch.Tensor, past: Past) -> torch.Tensor:
        x = self.conv1(x, past)
        for layer in (*self.middle, *self.upsamples):
            x = layer(x, past)
        plane, space = self.head["2"](self.head["0"](x), past).chunk(2, dim=2)
        lead = past.leading
        space[:, :lead] = plane[:, :lead]
        space[:, lead::GROUP_SLICES] = plane[:, lead::GROUP_SLICES]
        past.leading = 0
        return space


class IVVAENetwork(nn.Module):
    """Encoder and decoder for volumes of three channels.

    Args:
        dim: channels of a branch at full resolution.
        latent_channels: even; half of them come from each branch.
    """

    def __init__(self, dim: int, latent_channels: int) -> None:
        super().__init__()
        self.dim, self.latent_channels = dim, latent_channels
        width = latent_channels // 2
        self.encoder = Encoder(dim, latent_channels)
        self.conv1 = PointwiseConv(latent_channels, latent_channels)
        self.conv2 = PointwiseConv(width, width)
        self.decoder = Decoder(dim, width)

    def lay_out(self) -> IVVAENetwork:
        """Change the memory layout of kernels that are applied slice by slice. Returns itself."""
        for module in self.modules():
            if isinstance(module, GroupCausalConv):
                module.conv_3d.weight.data = depth_outermost(module.conv_3d.weight.data)
        return self

    def encode(
        self, volume: torch.Tensor, past: Past | None = None, *, calls: CallSize | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log variance of the latent.

        Args:
            volume: (B, 3, D, H, W) in [-1, 1], H and W multiples of 8, D = 1 + 4k, or 4k after the first chunk of
                ``past``.
            past: state of the pass to continue, updated in place; None codes a whole volume.
            calls: known limits on the size of a call.

        Returns:
            two tensors (B, latent_channels, d, H / 8, W / 8), the network's output, neither shifted nor scaled.
        """
        past = past or Past()
        slices = volume.transpose(1, 2)
        features = _in_chunks(self.encoder, slices, past, GROUP_SLICES, slices[:, 0, 0].numel(), calls)
        plane_and_space = self.conv1(features, past).transpose(1, 2).unflatten(1, (2, 2, -1))
        mean, log_variance = plane_and_space.unbind(2)
        return mean.flatten(1, 2), log_variance.flatten(1, 2)

    def decode(self, latent: torch.Tensor, past: Past | None = None, *, calls: CallSize | None = None) -> torch.Tensor:
        """Decode a latent (B, latent_channels, d, h, w) to (B, 3, D, H, W), not clamped; arguments as ``encode``."""
        past = past or Past()
        slices = self.conv2(latent.transpose(1, 2), past)
        pixels = latent[:, 0, 0].numel() * INPLANE_STRIDE**2
        return _in_chunks(self.decoder, slices, past, 1, pixels, calls).transpose(1, 2)


def _middle(width: int) -> nn.ModuleList:
    return nn.ModuleList([ResidualBlock(width, width), Attention(width), ResidualBlock(width, width)])


def _blocks_and_attention(width: int, count: int) -> Iterator[nn.Module]:
    for _ in range(count):
        yield ResidualBlock(width, width)
        yield Attention(width)


def _in_chunks(
    code: Callable[[torch.Tensor, Past], torch.Tensor],
    slices: torch.Tensor,
    past: Past,
    group: int,
    pixels: int,
    calls: CallSize | None,
) -> torch.Tensor:
    """Apply ``code`` to slices (B, D, C, H, W) in complete groups; the leading slice goes with the first group.

    A call takes at most ``CHUNK_VOXELS``, or one group.

    Args:
        code: encoder or decoder.
        slices: slices of the volume or of the latent.
        past: state of the pass, updated in place.
        group: number of slices in a group.
        pixels: pixels of a slice of the volume, summed over the batch.
        calls: see ``IVVAENetwork.encode``.
    """
    leading, voxels = past.leading, pixels * GROUP_SLICES

    def chunk(first: int, last: int) -> torch.Tensor:
        start, stop = (place * group + (leading if place else 0) for place in (first, last))
        before = past.copy()
        try:
            return code(slices[:, start:stop], past)
        except RuntimeError:
            past.restore(before)
            raise

    groups = (slices.shape[1] - leading) // group
    if groups == 0:
        return code(slices, past)
    calls = calls or CallSize("iv-vae")
    return torch.cat(calls.run(chunk, groups, voxels, most=max(1, CHUNK_VOXELS // voxels)), dim=1)
