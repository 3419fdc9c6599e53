"""The VAE of MAISI (arXiv:2409.11169), MONAI's AutoencoderKlMaisi: CT and MR volumes, every axis compressed by 4."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from fvae_nnunet.errors import UserError
from fvae_nnunet.vae.base import VAESpec
from fvae_nnunet.vae.module_vae import ModuleVAE, drawn
from fvae_nnunet.vae.wanted import Wanted
from fvae_nnunet.vae.weights import StateDict, first_difference

if TYPE_CHECKING:
    from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi

HUB_ID = "nvidia/NV-Generate-CT"
HUB_FILE = "models/autoencoder_v1.pt"
STRIDE = 4
NORM_GROUPS = 32
WINDOW_SLICES = 32  # 512 x 512 x 32 voxels in 128 channels are 2^30 values; torch's 3D kernels end below 2^31

_FIRST = "encoder.blocks.0.conv.conv.weight"
_MEAN = "quant_conv_mu.conv.weight"


class MaisiVAE(ModuleVAE):
    """A network that sees all slices of a window at once, over grey values from 0 (-1000 HU) to 1 (1000 HU).

    Its authors feed the axes as (x, y, z), and so does this wrapper. They turned and flipped the training crops about
    every axis, so that other orders and directions are not foreign to it.
    """

    def __init__(
        self,
        model: AutoencoderKlMaisi,
        *,
        name: str,
        source: str,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        spec = VAESpec(
            name=name,
            inplane_stride=STRIDE,
            latent_channels=model.latent_channels,
            slice_stride=STRIDE,
            window_slices=WINDOW_SLICES,
        )
        width = len(model.get_parameter(_FIRST))
        super().__init__(model, spec, source=source, device=device, dtype=dtype, features_per_voxel=2 * width)
        self._model = model

    def _encode(self, volume: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        mean, std = self._model.encode(_swap_x_and_z((volume + 1) / 2))
        mean = drawn(mean, std, generator)
        return _swap_x_and_z(mean)

    def _decode(self, latent: torch.Tensor) -> torch.Tensor:
        return _swap_x_and_z(self._model.decode(_swap_x_and_z(latent))).float() * 2 - 1


def load_maisi(wanted: Wanted) -> MaisiVAE:
    """MAISI's VAE from the file that NVIDIA releases.

    Args:
        wanted: weights: ``autoencoder_v1.pt`` (``autoencoder_epoch273.pt`` in MONAI's bundle ``maisi_ct_generative``),
            for CT and MR, or ``autoencoder_v2.pt``, for MR; also a checkpoint that holds the state dict as
            ``unet_state_dict`` or ``state_dict``.

    Raises:
        UserError: not given, not found, not readable, or the weights of another model.
    """
    name = wanted.name
    weights = wanted.file(
        f"get its weights (84 MB) with `hf download {HUB_ID} {HUB_FILE} --local-dir .` and give the file with "
        "--weights; they are under the NVIDIA Open Model License"
    )
    state = _state_of(wanted.read_checkpoint(weights), name, weights)
    for key in (_FIRST, _MEAN):
        if key not in state or state[key].ndim != 5:
            raise UserError(f"{name}: {weights} is not MAISI's VAE: it has no {key} of five dimensions")
    width, latent_channels = len(state[_FIRST]), len(state[_MEAN])
    if width % NORM_GROUPS:
        raise UserError(
            f"{name}: {weights} is not MAISI's VAE: {_FIRST} has {width} channels, not a multiple of {NORM_GROUPS}"
        )
    with torch.device("meta"):
        model = _build(width, latent_channels)
    difference = first_difference(model.state_dict(), state)
    if difference is not None:
        raise UserError(f"{name}: {weights} is not MAISI's VAE: {difference}")
    model.load_state_dict({key: value.float() for key, value in state.items()}, assign=True)
    return MaisiVAE(model, name=name, source=str(weights), device=wanted.device, dtype=wanted.dtype)


def _state_of(content: dict, name: str, path: Path) -> StateDict:
    state = next((content[key] for key in ("unet_state_dict", "state_dict") if key in content), content)
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(
            f"{name}: {path} is not a state dict (names to tensors), nor holds one as 'unet_state_dict' or 'state_dict'"
        )
    return state


def _build(width: int, latent_channels: int) -> AutoencoderKlMaisi:
    """The network of the bundle's ``autoencoder_def`` (there of width 64, with 4 latent channels).

    The bundle's ``norm_float16`` and ``num_splits`` save memory at the price of precision and of sizes that the splits
    must divide; they stay off, and so does ``save_mem``, which empties the device's cache after every layer.

    MONAI's group norm gives way to torch's, the same function of the same parameters: MONAI's takes the groups one by
    one, joins them on the CPU and collects garbage after each where an axis has 500 voxels or more, and returns
    float32, which the next convolution of a bfloat16 model refuses.
    """
    from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi, MaisiGroupNorm3D

    model = AutoencoderKlMaisi(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        num_res_blocks=(2, 2, 2),
        num_channels=(width, 2 * width, 4 * width),
        attention_levels=(False, False, False),
        latent_channels=latent_channels,
        norm_num_groups=NORM_GROUPS,
        norm_eps=1e-6,
        norm_float16=False,
        num_splits=1,
        save_mem=False,
    )
    for parent in list(model.modules()):
        for name, norm in parent.named_children():
            if isinstance(norm, MaisiGroupNorm3D):
                setattr(parent, name, nn.GroupNorm(norm.num_groups, norm.num_channels, norm.eps))
    return model


def _swap_x_and_z(volume: torch.Tensor) -> torch.Tensor:
    """(B, C, z, y, x) to (B, C, x, y, z), and back."""
    return volume.transpose(2, 4).contiguous()
