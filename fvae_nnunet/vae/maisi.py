"""The VAE of MAISI (arXiv:2409.11169), MONAI's AutoencoderKlMaisi, for CT and MR; every axis is compressed by 4."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from fvae_nnunet.vae.module_vae import Placement
from fvae_nnunet.vae.volume_vae import NORM_GROUPS, VolumeVAE, network_of_width
from fvae_nnunet.vae.wanted import Wanted
from fvae_nnunet.vae.weights import state_dict_of

if TYPE_CHECKING:
    from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
    from typing_extensions import Unpack

HUB_ID = "nvidia/NV-Generate-CT"
HUB_FILE = "models/autoencoder_v1.pt"
WINDOW_SLICES = 32  # 512 x 512 x 32 voxels with 128 channels are 2^30 values; torch's 3D kernels need less than 2^31

_FIRST = "encoder.blocks.0.conv.conv.weight"
_MEAN = "quant_conv_mu.conv.weight"


class MaisiVAE(VolumeVAE):
    """MAISI's VAE, for grey values from 0 (-1000 HU) to 1 (1000 HU).

    The authors rotated and flipped training crops about every axis, so the order and direction of axes may differ from
    theirs.
    """

    def __init__(self, model: AutoencoderKlMaisi, *, name: str, **placement: Unpack[Placement]) -> None:
        super().__init__(
            model,
            name=name,
            width=len(model.get_parameter(_FIRST)),
            latent_channels=model.latent_channels,
            window_slices=WINDOW_SLICES,
            **placement,
        )

    def _encode(self, volume: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        return super()._encode((volume + 1) / 2, generator)

    def _decode(self, latent: torch.Tensor) -> torch.Tensor:
        return super()._decode(latent) * 2 - 1


def load_maisi(wanted: Wanted) -> MaisiVAE:
    """Load MAISI's VAE from the file released by NVIDIA.

    Args:
        wanted: request whose weights are ``autoencoder_v1.pt`` (``autoencoder_epoch273.pt`` in MONAI's bundle
            ``maisi_ct_generative``), for CT and MR, or ``autoencoder_v2.pt``, for MR; also a checkpoint that holds the
            state dict as ``unet_state_dict`` or ``state_dict``.

    Raises:
        UserError: the weights are not given, not found, not readable, or those of another model.
    """
    name = wanted.name
    weights = wanted.downloaded_file(HUB_ID, HUB_FILE, "84 MB, NVIDIA Open Model License")
    state = state_dict_of(wanted.read_checkpoint(weights), weights, ("unet_state_dict", "state_dict"))
    misfit = f"{name}: {weights} is not MAISI's VAE"
    model = network_of_width(_build, state, first=_FIRST, latent=(_MEAN, 0), misfit=misfit)
    return MaisiVAE(model, name=name, **wanted.placement(weights))


def _build(width: int, latent_channels: int) -> AutoencoderKlMaisi:
    """The network of the bundle's ``autoencoder_def`` (which has width 64 and 4 latent channels).

    The bundle's ``norm_float16`` and ``num_splits`` save memory at the cost of precision and of sizes that the splits
    must divide; they stay off, and so does ``save_mem``, which empties the device's cache after every layer.

    MONAI's group norm is replaced by torch's, the same function of the same parameters. If an axis has 500 voxels or
    more, MONAI's computes one group at a time, joins them on the CPU and collects garbage after each; and it returns
    float32, which the next convolution of a bfloat16 model rejects.
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
