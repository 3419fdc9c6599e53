"""Random weights of MedVAE."""

from __future__ import annotations

import torch

from fvae_nnunet.vae.medvae import MedVAENetwork
from fvae_nnunet.vae.weights import StateDict

WIDTH = 32  # the released model has 128


def random_state(width: int = WIDTH) -> StateDict:
    """Weights under the names of ``vae_4x_1c_3D.ckpt``, the unused second latent included; all random."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in MedVAENetwork(width, 1).state_dict().items()}
    for index, shape in ((0, (64, 1, 1, 1, 1)), (2, (64, 64, 3, 3, 3)), (4, (1, 64, 1, 1, 1))):
        shapes |= {f"channel_ds.{index}.weight": shape, f"channel_ds.{index}.bias": shape[:1]}
    shapes |= {"channel_proj.weight": (1, 1, 1, 1, 1), "channel_proj.bias": (1,)}
    state = {}
    for key, shape in shapes.items():
        values = torch.randn(shape, generator=generator) / max(1, torch.Size(shape[1:]).numel()) ** 0.5
        norm = "norm" in key and key.endswith("weight")
        state[key] = 1 + 0.2 * values if norm else 0.2 * values if len(shape) == 1 else values
    return state
