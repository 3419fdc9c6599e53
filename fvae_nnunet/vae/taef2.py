"""TAEF2: tiny autoencoder for FLUX.2's latent space (github.com/madebyollin/taesd, MIT); slices form the batch."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from fvae_nnunet.errors import UserError
from fvae_nnunet.vae.base import VAESpec
from fvae_nnunet.vae.module_vae import ModuleVAE, Placement, batch_as_slices, grey, slices_as_batch
from fvae_nnunet.vae.wanted import Wanted
from fvae_nnunet.vae.weights import filled

if TYPE_CHECKING:
    from typing_extensions import Unpack

ENCODER_FILE = "taef2_encoder.pth"
DECODER_FILE = "taef2_decoder.pth"
INPLANE_STRIDE = 8
WINDOW_SLICES = 8


class _Block(nn.Module):
    """Three convolutions plus the identity, preceded at the lowest resolution by a branch normalised over the image."""

    def __init__(self, width: int, *, pool: bool = False) -> None:
        super().__init__()
        self.conv = nn.Sequential(_conv(width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width))
        self.pool = nn.Sequential()
        if pool:
            self.pool.extend(
                [
                    nn.Conv2d(width, 4 * width, 1, bias=False),
                    nn.GroupNorm(4, 4 * width),
                    nn.ReLU(),
                    nn.Conv2d(4 * width, width, 1, bias=False),
                ]
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(self.pool):
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


class _Clamp(nn.Module):
    """Limits the latent smoothly to (-3, 3)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * torch.tanh(x / 3)


def _conv(channels_in: int, channels_out: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=bias)


def _encoder(width: int, latent_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = [_conv(3, width), _Block(width)]
    for lowest in (False, False, True):
        layers += [_conv(width, width, stride=2, bias=False), *(_Block(width, pool=lowest) for _ in range(3))]
    return nn.Sequential(*layers, _conv(width, latent_channels))


def _decoder(width: int, latent_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = [_Clamp(), _conv(latent_channels, width), nn.ReLU()]
    for lowest in (True, False, False):
        layers += [*(_Block(width, pool=lowest) for _ in range(3)), nn.Upsample(scale_factor=2)]
        layers.append(_conv(width, width, bias=False))
    return nn.Sequential(*layers, _Block(width), _conv(width, 3))


class TAEF2(ModuleVAE):
    """An autoencoder without a posterior, for images of three channels in [0, 1]."""

    def __init__(self, encoder: nn.Sequential, decoder: nn.Sequential, **placement: Unpack[Placement]) -> None:
        self._encoder, self._decoder = encoder, decoder
        parts = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
        width, latent_channels = len(encoder.get_parameter("0.weight")), len(encoder.get_parameter("14.weight"))
        spec = VAESpec(
            name="taef2",
            inplane_stride=INPLANE_STRIDE,
            latent_channels=latent_channels,
            window_slices=WINDOW_SLICES,
        )
        super().__init__(parts, spec, features_per_voxel=width, **placement)

    def _encode(self, volume: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        latent = self._encoding.over(self._encoder, slices_as_batch((volume + 1) / 2, 3))
        return batch_as_slices(latent, volume.shape[0])

    def _decode(self, latent: torch.Tensor) -> torch.Tensor:
        images = self._decoding.over(lambda part: grey(self._decoder(part)), latent.transpose(1, 2).flatten(0, 1))
        return batch_as_slices(images * 2 - 1, latent.shape[0])


def load_taef2(wanted: Wanted) -> TAEF2:
    """Load TAEF2 from the authors' two state dicts.

    Args:
        wanted: request whose weights are the folder with ``taef2_encoder.pth`` and ``taef2_decoder.pth``, or either
            file.

    Raises:
        UserError: the weights are not given, not found, or those of another model.
    """
    name = wanted.name
    weights = wanted.file(
        f"give the folder with {ENCODER_FILE} and {DECODER_FILE} as `weights` (they are in "
        "github.com/madebyollin/taesd), or use `vae=tiny`"
    )
    folder = weights.parent if weights.name in (ENCODER_FILE, DECODER_FILE) else weights
    parts = []
    for file, first, last, build in (
        (ENCODER_FILE, "0.weight", "14.weight", _encoder),
        (DECODER_FILE, "3.conv.0.weight", "1.weight", _decoder),
    ):
        path = folder / file
        if not path.is_file():
            raise UserError(f"{name}: {folder} has no {file}; {ENCODER_FILE} and {DECODER_FILE} must be in one folder")
        state = wanted.read_state_dict(path)
        if first not in state or last not in state:
            raise UserError(f"{name}: {path} is not one of its files: {first} or {last} is missing")
        width = state[first].shape[0]
        latent_channels = state[last].shape[0 if file == ENCODER_FILE else 1]
        parts.append(filled(partial(build, width, latent_channels), state, f"{name}: {path} is not one of its files"))
    return TAEF2(*parts, **wanted.placement(folder))
