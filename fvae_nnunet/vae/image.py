"""Image VAEs of diffusers (AutoencoderKL, AutoencoderTiny); each slice is an image, and the slices form the batch."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch

from fvae_nnunet.errors import UserError
from fvae_nnunet.numbers_as_text import counted
from fvae_nnunet.vae.base import VAESpec
from fvae_nnunet.vae.folders import ModelFolder
from fvae_nnunet.vae.module_vae import ModuleVAE, Placement, batch_as_slices, grey, slices_as_batch
from fvae_nnunet.vae.wanted import Wanted

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
    from typing_extensions import Unpack

WINDOW_SLICES = 8  # slices per call; they are independent, so this only bounds the memory


class ImageVAE(ModuleVAE):
    """An AutoencoderKL (Stable Diffusion, SDXL, SD3, FLUX.1) or AutoencoderTiny (TAESD family).

    Both take and return images in [-1, 1] (AutoencoderTiny converts to TAESD's [0, 1] internally). Models with one
    channel get the grey slice; models with three get it three times, and their outputs are averaged.

    A model whose configuration says ``force_upcast`` overflows in float16; it computes in float32 instead, with a
    warning, as in diffusers' pipelines.
    """

    def __init__(self, model: AutoencoderKL | AutoencoderTiny, *, name: str, **placement: Unpack[Placement]) -> None:
        config: Any = model.config
        self._has_posterior = type(model).__name__ == "AutoencoderKL"
        if self._has_posterior:
            stride = 2 ** (len(config.block_out_channels) - 1)
        else:
            stride = config.upsampling_scaling_factor ** (len(config.decoder_block_out_channels) - 1)
        if placement.get("dtype") == torch.float16 and config.force_upcast:
            warnings.warn(f"{name} overflows in float16 (force_upcast); it computes in float32 instead", stacklevel=2)
            placement["dtype"] = torch.float32
        spec = VAESpec(
            name=name,
            inplane_stride=stride,
            latent_channels=config.latent_channels,
            window_slices=WINDOW_SLICES,
        )
        super().__init__(model, spec, features_per_voxel=_widest_at_full_size(config), **placement)
        self._model = model
        self._in_channels: int = config.in_channels
        self.latent_mean, self.latent_std = _latent_statistics(config, config.latent_channels)

    def _encode(self, volume: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        latent = self._encoding.over(self._encode_images, slices_as_batch(volume, self._in_channels))
        if self._has_posterior:
            from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

            posterior = DiagonalGaussianDistribution(latent)
            latent = posterior.mode() if generator is None else posterior.sample(generator)
        return batch_as_slices(latent, volume.shape[0])

    def _encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """(n, C, H, W) to latents, or to the parameters of a posterior."""
        encoded: Any = self._model.encode(images)
        latent: torch.Tensor = encoded.latent_dist.parameters if self._has_posterior else encoded.latents
        return latent

    def _decode(self, latent: torch.Tensor) -> torch.Tensor:
        images = self._decoding.over(self._decode_images, latent.transpose(1, 2).flatten(0, 1))
        return batch_as_slices(images, latent.shape[0])

    def _decode_images(self, latent: torch.Tensor) -> torch.Tensor:
        decoded: Any = self._model.decode(latent)
        return grey(decoded.sample)


def _widest_at_full_size(config: Any) -> int:
    """Channels of the widest feature map at full resolution: the decoder's last block takes the width of the level
    below."""
    widths = config.block_out_channels if hasattr(config, "block_out_channels") else config.decoder_block_out_channels
    return max(widths[:2])


def _latent_statistics(config: Any, channels: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Mean and standard deviation per channel, or None.

    diffusers normalises a latent z as ``(z - shift_factor) * scaling_factor`` (Rombach et al. 2022, appendix G: unit
    variance), so the mean is shift_factor and the deviation 1 / scaling_factor. A scale of 1 with a shift of 0 is no
    information.
    """
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and std is not None:
        return torch.tensor(mean).flatten(), torch.tensor(std).flatten()
    scale, shift = config.scaling_factor, getattr(config, "shift_factor", None) or 0.0
    if scale == 1 and shift == 0:
        return None, None
    return torch.full((channels,), float(shift)), torch.full((channels,), 1.0 / scale)


def load_image_vae(wanted: Wanted, folder: ModelFolder, *, source: str) -> ImageVAE:
    """The image VAE of a folder in diffusers' format.

    Args:
        wanted: name, device and precision.
        folder: the folder.
        source: origin of the weights, readable for users.

    Raises:
        UserError: another kind of model, channels other than 1 or 3, or weights that do not fit.
    """
    import diffusers

    name = wanted.name
    if folder.class_name == "AutoencoderKLWan":
        raise UserError(f"{name}: {folder.path} holds a Wan VAE; give it as `weights` of `vae=wan2.1` or wan2.2")
    if folder.class_name not in ("AutoencoderKL", "AutoencoderTiny"):
        raise UserError(
            f"{name}: {folder.path} holds a {folder.class_name}; supported are AutoencoderKL and AutoencoderTiny"
        )
    try:
        model, loading = getattr(diffusers, folder.class_name).from_pretrained(
            folder.path,
            torch_dtype=torch.float32,
            low_cpu_mem_usage=False,
            local_files_only=True,
            use_safetensors=folder.weights_file.suffix == ".safetensors",
            output_loading_info=True,
        )
    except (RuntimeError, ValueError, OSError) as error:
        first_lines = " ".join(str(error).split())[:300]
        raise UserError(f"{name}: the weights in {folder.path} cannot be loaded: {first_lines}") from error
    for problem, keys in (("lacks", loading["missing_keys"]), ("has the unknown", loading["unexpected_keys"])):
        if keys:
            raise UserError(
                f"{name}: {folder.weights_file} {problem} {sorted(keys)[0]} ({counted(len(keys), 'such key')})"
            )
    channels = (model.config.in_channels, model.config.out_channels)
    if channels not in ((1, 1), (3, 3)):
        raise UserError(
            f"{name}: the model takes {channels[0]} channels and returns {channels[1]}; both must be 1, or both 3"
        )
    return ImageVAE(model, name=name, **wanted.placement(source))
