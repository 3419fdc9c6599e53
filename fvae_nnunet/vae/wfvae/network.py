"""The network of WF-VAE: Haar wavelets carry the coarse content past two levels of causal convolutions.

Li et al., WF-VAE: Enhancing Video VAE by Wavelet-Driven Energy Flow for Latent Video Diffusion Model, CVPR 2025
(arXiv:2411.17459; github.com/PKU-YuanGroup/WF-VAE, class ``WFVAEModel``, Apache-2.0). Parameters have the names of the
published checkpoints. Tensors are (B, C, D, H, W) with channels last in memory. Inference only: some operations are in
place.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from fvae_nnunet.vae.wfvae.layers import (
    Block,
    CausalConv,
    ChannelNorm,
    Downsample,
    SliceAttention,
    SliceBlock,
    SliceConv,
    SliceDownsample,
    SliceUpsample,
    Upsample,
    activated_with_lead,
    with_lead,
)
from fvae_nnunet.vae.wfvae.wavelets import COLOURS, HAAR_2D, HAAR_3D, Haar2d, Haar3d, InverseHaar2d, InverseHaar3d


@dataclass(frozen=True)
class WFVAESizes:
    """The sizes in which WF-VAEs differ; the defaults are those of WF-VAE-L with 16 latent channels.

    Attributes:
        latent_channels: channels of the latent.
        base_channels: width of the first level; the lower ones have twice and four times as many.
        encoder_flow, decoder_flow: channels through which wavelet coefficients enter or leave a level.
        encoder_blocks, decoder_blocks: residual blocks per level.
        connect_blocks: residual blocks between the decoder and the coefficients it predicts.
    """

    latent_channels: int = 16
    base_channels: int = 192
    encoder_flow: int = 128
    decoder_flow: int = 128
    encoder_blocks: int = 2
    decoder_blocks: int = 2
    connect_blocks: int = 1


class WFVAENetwork(nn.Module):
    """Encoder and decoder, with strides of 8 in the plane and 4 along the slices; the first slice is coded alone."""

    def __init__(self, sizes: WFVAESizes) -> None:
        super().__init__()
        self.encoder = _Encoder(sizes)
        self.decoder = _Decoder(sizes)

    def channels_last(self) -> WFVAENetwork:
        """Change the memory layout of the kernels for volumes with channels last. Returns itself."""
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                module.to(memory_format=torch.channels_last_3d)
            elif isinstance(module, nn.Conv2d):
                module.to(memory_format=torch.channels_last)
        return self

    def encode(self, colours: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log variance of the posterior, each (B, latent_channels, 1 + k, H / 8, W / 8).

        Args:
            colours: (B, 3, 1 + 4 * k, H, W) in [-1, 1], H and W multiples of 8.
        """
        mean, log_variance = self.encoder(colours).chunk(2, dim=1)
        return mean, log_variance.clamp(-30, 20)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Decode a latent (B, latent_channels, 1 + k, H / 8, W / 8) to colours (B, 3, 1 + 4 * k, H, W)."""
        return self.decoder(latent)


class _Encoder(nn.Module):
    def __init__(self, sizes: WFVAESizes) -> None:
        super().__init__()
        base, flow, blocks = sizes.base_channels, sizes.encoder_flow, range(sizes.encoder_blocks)
        self.wavelet_transform_in = Haar3d()
        self.wavelet_transform_l1 = Haar2d()
        self.wavelet_transform_l2 = Haar3d()
        self.connect_l1 = SliceConv(len(HAAR_2D) * COLOURS, flow)
        self.connect_l2 = SliceConv(len(HAAR_3D) * COLOURS, flow)
        self.down1 = nn.Sequential(
            SliceConv(len(HAAR_3D) * COLOURS, base), *(SliceBlock(base) for _ in blocks), SliceDownsample(base)
        )
        self.down2 = nn.Sequential(
            SliceConv(base + flow, 2 * base), *(Block(2 * base, 2 * base) for _ in blocks), Downsample(2 * base)
        )
        self.mid = nn.Sequential(Block(2 * base + flow, 4 * base), SliceAttention(4 * base), Block(4 * base, 4 * base))
        self.norm_out = ChannelNorm(4 * base)
        self.conv_out = CausalConv(4 * base, 2 * sizes.latent_channels)

    def forward(self, colours: torch.Tensor) -> torch.Tensor:
        coefficients = self.wavelet_transform_in(colours)
        level1 = self.wavelet_transform_l1(coefficients[:, :COLOURS])
        level2 = self.wavelet_transform_l2(level1[:, :COLOURS])
        h = self.down1(coefficients)
        h = self.down2(torch.cat([h, self.connect_l1(level1)], dim=1))
        h = self.mid(torch.cat([h, self.connect_l2(level2)], dim=1))
        return self.conv_out(activated_with_lead(self.norm_out(h)))


class _Decoder(nn.Module):
    def __init__(self, sizes: WFVAESizes) -> None:
        super().__init__()
        base, flow, blocks = sizes.base_channels, sizes.decoder_flow, range(sizes.decoder_blocks)
        self.flow = flow
        self.conv_in = CausalConv(sizes.latent_channels, 4 * base)
        self.mid = nn.Sequential(Block(4 * base, 4 * base), SliceAttention(4 * base), Block(4 * base, 4 * base + flow))
        self.up2 = nn.Sequential(
            *(Block(4 * base, 4 * base) for _ in blocks), Upsample(4 * base), Block(4 * base, 4 * base + flow)
        )
        self.up1 = nn.Sequential(
            *(Block((2 if index else 4) * base, 2 * base) for index in blocks),
            SliceUpsample(2 * base),
            Block(2 * base, 2 * base),
        )
        self.layer = nn.Sequential(Block(2 * base, base), Block(base, base))
        self.connect_l1 = self._connection(sizes, len(HAAR_2D))
        self.connect_l2 = self._connection(sizes, len(HAAR_3D))
        self.norm_out = ChannelNorm(base)
        self.conv_out = SliceConv(base, len(HAAR_3D) * COLOURS)
        self.inverse_wavelet_transform_out = InverseHaar3d()
        self.inverse_wavelet_transform_l1 = InverseHaar2d()
        self.inverse_wavelet_transform_l2 = InverseHaar3d()

    @staticmethod
    def _connection(sizes: WFVAESizes, wavelets: int) -> nn.Sequential:
        flow = sizes.decoder_flow
        blocks = (Block(flow, flow) for _ in range(sizes.connect_blocks))
        return nn.Sequential(*blocks, SliceConv(flow, wavelets * COLOURS))

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        h = self.mid(self.conv_in(with_lead(latent)))
        coarse = self.inverse_wavelet_transform_l2(self.connect_l2(h[:, -self.flow :]))
        h = self.up2(h[:, : -self.flow])
        coefficients = self.connect_l1(h[:, -self.flow :])
        coefficients[:, :COLOURS] += coarse
        coarse = self.inverse_wavelet_transform_l1(coefficients)
        h = self.layer(self.up1(h[:, : -self.flow]))
        coefficients = self.conv_out(functional.silu(self.norm_out(h), inplace=True))
        coefficients[:, :COLOURS] += coarse
        return self.inverse_wavelet_transform_out(coefficients)
