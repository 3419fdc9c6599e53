"""Random models of the real architectures, small enough for a test, and their weights under the authors' names.

The models are diffusers' AutoencoderKLWan, AutoencoderKL and AutoencoderTiny.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

from fvae_nnunet.vae.wan.vae import WanVAE


def tiny_wan(seed: int = 0, residual: bool = False) -> Any:
    """Wan 2.1 (``residual``: Wan 2.2) with all of its blocks, a few channels and 4 latent channels, in ``eval()``."""
    sizes: dict[str, Any] = {"base_dim": 4, "z_dim": 4, "latents_mean": [0.1, -0.2, 0.3, 0.0]}
    sizes["latents_std"] = [1.0, 2.0, 0.5, 1.5]
    if residual:
        sizes |= {"decoder_base_dim": 8, "is_residual": True, "in_channels": 12, "out_channels": 12, "patch_size": 2}
        sizes |= {"scale_factor_spatial": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = AutoencoderKLWan(**sizes).eval().requires_grad_(False)
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and not name.endswith("gamma"):  # torch's own start would fade with each layer
                parameter.normal_(std=parameter[0].numel() ** -0.5)
        return model


def wan_vae(model: Any, name: str = "wan2.1", **options: Any) -> WanVAE:
    """The VAE with the weights of ``tiny_wan``."""
    return WanVAE(model.state_dict(), model.config, name=name, source="test", **options)


def tiny_kl(seed: int = 0, channels: int = 1, *, widths: tuple[int, ...] = (4, 4, 8, 8), **config: Any) -> Any:
    """A Stable Diffusion VAE with few channels and 4 latent channels, in ``eval()``; four widths: 8x8 compression."""
    defaults: dict[str, Any] = {"layers_per_block": 1, "norm_num_groups": 2, "latent_channels": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoencoderKL(
            in_channels=channels,
            out_channels=channels,
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            block_out_channels=widths,
            **(defaults | config),
        ).eval()


def tiny_taesd(seed: int = 0) -> Any:
    """A TAESD with 8x8 compression, width 8 and 4 latent channels, in ``eval()``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoencoderTiny(
            encoder_block_out_channels=(8,) * 4,
            decoder_block_out_channels=(8,) * 4,
            num_encoder_blocks=(1, 1, 1, 1),
            num_decoder_blocks=(1, 1, 1, 1),
        ).eval()


def original_wan_state_dict(model: Any) -> dict[str, torch.Tensor]:
    """The weights of ``tiny_wan`` under the names of the authors' ``Wan2.1_VAE.pth`` or ``Wan2.2_VAE.pth``."""
    state = model.state_dict()
    pairs = dict(_wan22_names() if model.config.is_residual else _wan21_names())
    original = {}
    for theirs, ours in pairs.items():
        for key in state:
            if key.startswith(ours + "."):
                original[theirs + key[len(ours) :]] = state[key]
    if len(original) != len(state):
        raise AssertionError("a weight has no original name")
    return original


def _block_names(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    for layer, name in (
        ("residual.0", "norm1"),
        ("residual.2", "conv1"),
        ("residual.3", "norm2"),
        ("residual.6", "conv2"),
        ("shortcut", "conv_shortcut"),
    ):
        yield f"{theirs}.{layer}", f"{ours}.{name}"


def _common_names() -> Iterator[tuple[str, str]]:
    yield "conv1", "quant_conv"
    yield "conv2", "post_quant_conv"
    for half in ("encoder", "decoder"):
        yield f"{half}.conv1", f"{half}.conv_in"
        yield from _block_names(f"{half}.middle.0", f"{half}.mid_block.resnets.0")
        yield f"{half}.middle.1", f"{half}.mid_block.attentions.0"
        yield from _block_names(f"{half}.middle.2", f"{half}.mid_block.resnets.1")
        yield f"{half}.head.0", f"{half}.norm_out"
        yield f"{half}.head.2", f"{half}.conv_out"


def _wan21_names() -> Iterator[tuple[str, str]]:
    yield from _common_names()
    # encoder: four levels of two residual blocks, a resampler behind all but the last, in one list
    for index in range(11):
        theirs, ours = f"encoder.downsamples.{index}", f"encoder.down_blocks.{index}"
        if index in (2, 5, 8):
            yield from ((f"{theirs}.{part}", f"{ours}.{part}") for part in ("resample", "time_conv"))
        else:
            yield from _block_names(theirs, ours)
    # decoder: four levels of three residual blocks, likewise
    for index in range(15):
        theirs, ours = f"decoder.upsamples.{index}", f"decoder.up_blocks.{index // 4}"
        if index in (3, 7, 11):
            yield from ((f"{theirs}.{part}", f"{ours}.upsamplers.0.{part}") for part in ("resample", "time_conv"))
        else:
            yield from _block_names(theirs, f"{ours}.resnets.{index % 4}")


def _wan22_names() -> Iterator[tuple[str, str]]:
    yield from _common_names()
    for half, way, blocks in (("encoder", "down", 2), ("decoder", "up", 3)):
        for level in range(4):
            theirs, ours = f"{half}.{way}samples.{level}.{way}samples", f"{half}.{way}_blocks.{level}"
            for block in range(blocks):
                yield from _block_names(f"{theirs}.{block}", f"{ours}.resnets.{block}")
            for part in ("resample", "time_conv"):
                yield f"{theirs}.{blocks}.{part}", f"{ours}.{way}sampler.{part}"


def taef2_state_dicts(seed: int = 0, width: int = 8, latent_channels: int = 4) -> tuple[dict, dict]:
    """Random weights with the names of ``taef2_encoder.pth`` and ``taef2_decoder.pth``."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        fan_in = shape[1] * shape[2] * shape[3] if len(shape) == 4 else 10
        return torch.randn(shape, generator=generator) / fan_in**0.5

    def block(index: int, pool: bool) -> dict[str, torch.Tensor]:
        weights = {}
        for layer in (0, 2, 4):
            weights[f"{index}.conv.{layer}.weight"] = normal(width, width, 3, 3)
            weights[f"{index}.conv.{layer}.bias"] = normal(width)
        if pool:
            weights[f"{index}.pool.0.weight"] = normal(4 * width, width, 1, 1)
            weights[f"{index}.pool.1.weight"] = 1 + normal(4 * width)
            weights[f"{index}.pool.1.bias"] = normal(4 * width)
            weights[f"{index}.pool.3.weight"] = normal(width, 4 * width, 1, 1)
        return weights

    encoder = {"0.weight": normal(width, 3, 3, 3), "0.bias": normal(width)}
    for index in (1, 3, 4, 5, 7, 8, 9, 11, 12, 13):
        encoder |= block(index, index > 10)
    encoder |= {f"{index}.weight": normal(width, width, 3, 3) for index in (2, 6, 10)}
    encoder |= {"14.weight": normal(latent_channels, width, 3, 3), "14.bias": normal(latent_channels)}
    decoder = {"1.weight": normal(width, latent_channels, 3, 3), "1.bias": normal(width)}
    for index in (3, 4, 5, 8, 9, 10, 13, 14, 15, 18):
        decoder |= block(index, index < 6)
    decoder |= {f"{index}.weight": normal(width, width, 3, 3) for index in (7, 12, 17)}
    decoder |= {"19.weight": normal(3, width, 3, 3), "19.bias": normal(3)}
    return encoder, decoder
