"""Wan's decoder from the package fastvae (MIT, github.com/Occipital-Labs/fastvae), whose kernels fuse norm and SiLU.

It needs CUDA and Triton; install it with ``pip install 'fvae_nnunet[fast]'``. Its authors report decoding 2.4 times as
fast as diffusers (RTX PRO 6000, bfloat16, Wan 2.1).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import torch

from fvae_nnunet.device.numerics import tf32
from fvae_nnunet.vae.module_vae import grey
from fvae_nnunet.vae.self_check import LARGEST_ERROR, relative_error
from fvae_nnunet.vae.wan.network import Before
from fvae_nnunet.vae.weights import StateDict

Decode = Callable[[torch.Tensor, Before], tuple[torch.Tensor, list[Any]]]


class FastDecoder:
    """Decodes the chunks of a pass as ``WanNetwork.decode`` does; the state passed on is fastvae's own.

    Args:
        state: weights of the decoder under diffusers' names, float.
        config: configuration of diffusers' ``AutoencoderKLWan``.
        device, dtype: device and precision for computing.
    """

    def __init__(
        self, state: Mapping[str, torch.Tensor], config: Mapping[str, Any], device: torch.device, dtype: torch.dtype
    ) -> None:
        from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
        from fastvae.models.wan import FeatCache, FusedWanDecoder

        with torch.device("meta"):
            model: Any = AutoencoderKLWan(**{key: value for key, value in config.items() if not key.startswith("_")})
        weights = {key: value.to(device, dtype) for key, value in decoder_weights(state).items()}
        model.load_state_dict(weights, strict=False, assign=True)
        self._core = FusedWanDecoder(model).requires_grad_(False)
        self._cache = FeatCache
        self._patch = config.get("patch_size") or 1

    def __call__(self, latent: torch.Tensor, before: Before) -> tuple[torch.Tensor, list[Any]]:
        """(B, z_dim, d, h, w) to a grey volume (B, 1, D, H, W), float32, in [-1, 1]."""
        cache = self._cache(self._core.num_cache_slots)
        latent = self._core.apply_post_quant(latent)
        if before is None:
            chunks = [(latent[:, :, :1], True), (latent[:, :, 1:], False)]
        else:
            cache.feat, chunks = list(before), [(latent, False)]
        pieces = [self._core.decode_chunk(x, cache, first_chunk=first) for x, first in chunks if x.shape[2]]
        colours = torch.cat([grey_squares(piece, self._patch) for piece in pieces], dim=2)
        return colours, cache.feat


def grey_squares(colours: torch.Tensor, patch: int) -> torch.Tensor:
    """(B, 3 * patch², D, h, w) to the mean of the clamped colours, (B, 1, D, patch * h, patch * w), float32."""
    volume = grey(colours.float().clamp(-1, 1).unflatten(1, (3, patch, patch)))[:, 0]  # (B, px, py, D, h, w)
    return volume.permute(0, 3, 4, 2, 5, 1).flatten(4, 5).flatten(2, 3)[:, None]


def decoder_weights(state: Mapping[str, torch.Tensor]) -> StateDict:
    """The weights that decoding needs."""
    return {key: value for key, value in state.items() if key.startswith(("decoder.", "post_quant_conv."))}


def can_decode_fast(device: torch.device) -> bool:
    """Whether fastvae is installed and supports the device."""
    return device.type == "cuda" and find_spec("fastvae") is not None and find_spec("triton") is not None


def fast_decoder(
    own: Decode,
    state: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    *,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
) -> Decode | None:
    """fastvae's decoder if its values match those of ``own``, else None; requires ``can_decode_fast``.

    Both decode two chunks of a small latent. If they differ by more than rounding, a warning is issued.
    """
    try:
        found = FastDecoder(state, config, device, dtype)
        with torch.no_grad(), tf32(False):
            error = _difference(found, own, state["post_quant_conv.weight"].shape[0], device, dtype)
        reason = None if error <= LARGEST_ERROR[dtype] else f"its values differ (relative error {error:.2g})"
    except Exception as problem:  # third-party kernels may raise anything; our own decoder can replace them
        reason = " ".join(f"{type(problem).__name__}: {problem}".split())[:300]
    if reason is None:
        return found
    warnings.warn(f"{name}: fastvae is installed but not used: {reason}", stacklevel=2)
    return None


def _difference(found: Decode, expected: Decode, channels: int, device: torch.device, dtype: torch.dtype) -> float:
    latent = torch.randn(1, channels, 5, 8, 8, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    volumes = []
    for decode in (found, expected):
        first, after = decode(latent[:, :, :3], None)
        volumes.append(torch.cat([first, decode(latent[:, :, 3:], after)[0]], dim=2))
    return relative_error(*volumes)
