"""Identify the known VAE that a weights file belongs to, for error messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from fvae_nnunet.errors import UserError
from fvae_nnunet.vae.folders import has_model, open_folder
from fvae_nnunet.vae.wan.checkpoint import is_original, looks_like, to_diffusers_keys
from fvae_nnunet.vae.weights import read_state_dict

_State = Mapping[str, torch.Tensor]


def _has(*starts: str) -> Callable[[_State], bool]:
    """Test whether there is a parameter with each of these prefixes."""
    return lambda state: all(any(key.startswith(start) for key in state) for start in starts)


def _of_volumes(key: str) -> Callable[[_State], bool]:
    """Test whether there is a parameter with this name that is a 3D kernel."""
    return lambda state: key in state and state[key].ndim == 5


_SIGNS: tuple[tuple[str, Callable[[_State], bool]], ...] = (
    ("leanvae", _has("latent_bottleneck.")),
    ("leanvae", _has("autoencoder.latent_bottleneck.")),
    ("videovae+", _has("encoder_temporal.")),
    ("wf-vae", _has("encoder.down1.", "encoder.connect_l1.")),
    ("iv-vae", _has("encoder.conv1.conv_2d.", "encoder.conv1.conv_3d.")),
    ("maisi", _of_volumes("quant_conv_log_sigma.conv.weight")),
    ("medvae", _of_volumes("encoder.mid.attn_1.q.weight")),
    ("cv-vae", _of_volumes("encoder.down.0.block.0.conv2.weight")),
    ("taef2", _has("14.weight", "11.pool.0.")),
    ("taef2", _has("1.weight", "3.pool.0.")),
)


def model_of_state(state: _State) -> str | None:
    """The name of the VAE that has these parameters, or None."""
    wan = looks_like(to_diffusers_keys(state) if is_original(state) else state)
    return wan or next((name for name, fits in _SIGNS if fits(state)), None)


def model_of_file(path: Path) -> str | None:
    """The name of the VAE in a file or in a folder in diffusers' format; None if it is not a known one."""
    try:
        file = open_folder(path).weights_file if path.is_dir() and has_model(path) else path
        return model_of_state(read_state_dict(file))
    except UserError:
        return None
