"""Checkpoints of the Wan VAEs: conversion of the authors' parameter names, and architecture from tensor sizes.

Both versions are one diffusers class, ``AutoencoderKLWan``; 2.2 has ``is_residual`` and patches of 2x2. The names
correspond as in diffusers' ``scripts/convert_wan_to_diffusers.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from fvae_nnunet.vae.weights import StateDict

# layers of a residual block: 0 norm, 1 SiLU, 2 convolution, 3 norm, 4 SiLU, 5 dropout, 6 convolution
_BLOCK_PARTS = {
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}
_SINGLE_PARTS = {
    "conv1": "conv_in",
    "head.0": "norm_out",
    "head.2": "conv_out",
    "middle.0": "mid_block.resnets.0",
    "middle.1": "mid_block.attentions.0",
    "middle.2": "mid_block.resnets.1",
}

# Per latent channel; source: the authors' code as published with diffusers' conversion script
WAN21_LATENTS_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
WAN21_LATENTS_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip
WAN22_LATENTS_MEAN = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
    0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
    -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)  # fmt: skip
WAN22_LATENTS_STD = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
    0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
    0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)  # fmt: skip


def is_original(state: Mapping[str, torch.Tensor]) -> bool:
    """Whether the names are the authors' rather than diffusers'."""
    return "encoder.middle.0.residual.0.gamma" in state


def to_diffusers_keys(state: Mapping[str, torch.Tensor]) -> StateDict:
    """The authors' checkpoint under diffusers' names; unknown names are kept."""
    resampler = re.compile(r"decoder\.upsamples\.(\d+)\.resample\.")
    resamplers = [int(match[1]) for match in map(resampler.match, state) if match]
    blocks_per_level = min(resamplers, default=0) + 1  # 2.1: residual blocks and the resampler after them
    return {_diffusers_key(key, blocks_per_level): value for key, value in state.items()}


def _diffusers_key(key: str, blocks_per_level: int) -> str:
    if match := re.match(r"conv([12])\.(.*)", key):
        return f"{'quant_conv' if match[1] == '1' else 'post_quant_conv'}.{match[2]}"
    half, _, rest = key.partition(".")
    for ours, theirs in _SINGLE_PARTS.items():
        if rest.startswith(ours + "."):
            return f"{half}.{theirs}.{_block_part(rest[len(ours) + 1 :])}"
    match = re.match(r"(down|up)samples\.(\d+)\.(?:\1samples\.(\d+)\.)?(.*)", rest)
    if match is None:
        return key
    direction, index, inner, part = match[1], int(match[2]), match[3], match[4]
    is_block = part.startswith(("residual.", "shortcut."))
    if inner is not None:  # 2.2: levels of numbered layers
        layer = f"resnets.{inner}" if is_block else f"{direction}sampler"
        return f"{half}.{direction}_blocks.{index}.{layer}.{_block_part(part)}"
    if direction == "down":  # 2.1 encoder: one flat list in both
        return f"{half}.down_blocks.{index}.{_block_part(part)}"
    level, place = divmod(index, blocks_per_level)  # 2.1 decoder: a flat list into levels
    layer = f"resnets.{place}" if is_block else "upsamplers.0"
    return f"{half}.up_blocks.{level}.{layer}.{_block_part(part)}"


def _block_part(part: str) -> str:
    for ours, theirs in _BLOCK_PARTS.items():
        if part.startswith(ours + "."):
            return theirs + part[len(ours) :]
    return part


def looks_like(state: Mapping[str, torch.Tensor]) -> str | None:
    """``wan2.1``, ``wan2.2`` or None for the weights of something else, under diffusers' names."""
    first = state.get("encoder.conv_in.weight")
    if first is None or first.ndim != 5 or "encoder.mid_block.resnets.0.norm1.gamma" not in state:
        return None
    return "wan2.2" if "encoder.down_blocks.0.resnets.0.conv1.weight" in state else "wan2.1"


def config_from_sizes(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Arguments of ``AutoencoderKLWan`` for a checkpoint under diffusers' names.

    Raises:
        KeyError: a parameter that determines a size is missing.
    """
    residual = looks_like(state) == "wan2.2"
    levels = _residual_levels(state) if residual else _plain_levels(state)
    channels = [level[0] for level in levels]
    base_dim, in_channels = state["encoder.conv_in.weight"].shape[:2]
    multipliers = [width // base_dim for width in channels]
    z_dim = state["post_quant_conv.weight"].shape[0]
    temporal = [bool(level[2]) for level in levels[:-1]]
    patch = round((in_channels / 3) ** 0.5)
    statistics = (WAN22_LATENTS_MEAN, WAN22_LATENTS_STD) if residual else (WAN21_LATENTS_MEAN, WAN21_LATENTS_STD)
    mean, std = (list(values) if len(values) == z_dim else None for values in statistics)
    return {
        "base_dim": base_dim,
        "decoder_base_dim": state["decoder.norm_out.gamma"].shape[0] // multipliers[0],
        "z_dim": z_dim,
        "dim_mult": multipliers,
        "num_res_blocks": levels[0][1],
        "temperal_downsample": temporal,
        "latents_mean": mean,
        "latents_std": std,
        "is_residual": residual,
        "in_channels": in_channels,
        "out_channels": state["decoder.conv_out.weight"].shape[0],
        "patch_size": patch if patch > 1 else None,
        "scale_factor_temporal": 2 ** sum(temporal),
        "scale_factor_spatial": patch * 2 ** (len(levels) - 1),
    }


_Level = tuple[int, int, bool]  # channels, residual blocks, whether the slices are halved after them


def _indices(state: Mapping[str, torch.Tensor], pattern: str) -> list[int]:
    return sorted({int(match[1]) for match in (re.match(pattern, key) for key in state) if match})


def _residual_levels(state: Mapping[str, torch.Tensor]) -> list[_Level]:
    levels = []
    for level in _indices(state, r"encoder\.down_blocks\.(\d+)\."):
        prefix = f"encoder.down_blocks.{level}"
        blocks = _indices(state, rf"encoder\.down_blocks\.{level}\.resnets\.(\d+)\.")
        channels = state[f"{prefix}.resnets.0.conv2.weight"].shape[0]
        levels.append((channels, len(blocks), f"{prefix}.downsampler.time_conv.weight" in state))
    return levels


def _plain_levels(state: Mapping[str, torch.Tensor]) -> list[_Level]:
    levels: list[_Level] = []
    channels, blocks = 0, 0
    for index in _indices(state, r"encoder\.down_blocks\.(\d+)\."):
        prefix = f"encoder.down_blocks.{index}"
        if f"{prefix}.resample.1.weight" in state:
            levels.append((channels, blocks, f"{prefix}.time_conv.weight" in state))
            blocks = 0
        else:
            channels = state[f"{prefix}.conv2.weight"].shape[0]
            blocks += 1
    return [*levels, (channels, blocks, False)]
