"""Random weights of WF-VAE, and its folder."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from fvae_nnunet.vae.wfvae.network import WFVAENetwork, WFVAESizes
from fvae_nnunet.vae.wfvae.wavelets import HAAR_2D, HAAR_3D

TINY = WFVAESizes(
    latent_channels=4,
    base_channels=8,
    encoder_flow=4,
    decoder_flow=6,
    encoder_blocks=1,
    decoder_blocks=2,
    connect_blocks=2,
)
TINY_CONFIG = {
    "_class_name": "WFVAEModel", "latent_dim": 4, "base_channels": 8, "encoder_energy_flow_hidden_size": 4,
    "decoder_energy_flow_hidden_size": 6, "encoder_num_resblocks": 1, "decoder_num_resblocks": 2,
    "connect_res_layer_num": 2, "norm_type": "layernorm", "t_interpolation": "trilinear",
}  # fmt: skip


def haar_kernel(key: str) -> torch.Tensor | None:
    """The kernel of a wavelet in the checkpoints, None for other keys: signs along (z, y, x) times 0.3536 or 0.5."""
    if "wavelet" not in key:
        return None
    name = key.removesuffix("_conv.conv.weight").rpartition(".")[2]
    low, high = torch.tensor([1.0, 1.0]), torch.tensor([1.0, -1.0])
    if name in HAAR_2D:
        x, y = (high if letter == "d" else low for letter in name)
        return 0.5 * (y[:, None] * x)[None, None]
    index = HAAR_3D.index(name)
    z, y, x = (high if index & bit else low for bit in (4, 2, 1))
    return 0.3536 * (z[:, None, None] * y[:, None] * x)[None, None]


def random_state(sizes: WFVAESizes = TINY, seed: int = 0) -> dict[str, torch.Tensor]:
    """A checkpoint with the published wavelets and random weights that keep the variance."""
    with torch.device("meta"):
        empty = WFVAENetwork(sizes).state_dict()
    state = {}
    for key, value in empty.items():
        generator = torch.Generator().manual_seed(seed + zlib.crc32(key.encode()))
        normal = torch.randn(value.shape, generator=generator)
        kernel = haar_kernel(key)
        if kernel is not None:
            state[key] = kernel
        elif value.ndim > 1:
            state[key] = normal / value[0].numel() ** 0.5
        else:
            state[key] = normal / 5 + float("norm" in key and key.endswith("weight"))
    return state


def write_folder(folder: Path, state: dict[str, torch.Tensor], **config: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY_CONFIG | config))
    save_file(state, folder / "diffusion_pytorch_model.safetensors")
    return folder
