"""Patches for the VAE inside the training step."""

from __future__ import annotations

import numpy as np
import torch
from identity_vae import IdentityVAE
from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization

from fvae_nnunet.training.ct_patches import CTChannel, CTPatches
from fvae_nnunet.training.online import Draw, PatchReconstruction

STATISTICS = {"mean": 83.25, "std": 71.5, "percentile_00_5": -96.0, "percentile_99_5": 215.0}
CHANNEL = CTChannel(index=0, mean_hu=83.25, sd_hu=71.5, lower_hu=-96.0, upper_hu=215.0)
PATCHES = CTPatches((CHANNEL,), (0, 1, 2))


class NoisyVAE(IdentityVAE):
    def encode(self, volume, generator=None):
        latent = super().encode(volume)
        return latent if generator is None else latent + 0.02 * torch.randn(latent.shape, generator=generator)


def hu_volume(shape, seed=0, lowest=-300, highest=400):
    return np.random.default_rng(seed).integers(lowest, highest, size=shape).astype(np.float32)


def normalised(hu):
    """By nnU-Net's own code."""
    return torch.from_numpy(CTNormalization(None, STATISTICS).run(hu.copy()))


def batch_of(*shape, seed=0):
    return normalised(hu_volume(shape, seed))


def two_processes(rank, folder):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    reconstruction = PatchReconstruction(NoisyVAE(), PATCHES)
    batch = batch_of(4, 1, 4, 8, 8)

    def step(epoch, iteration):
        draw = Draw.random(4, probability=0.5, posterior="sample", entropy=(0, dist.get_rank(), epoch, iteration))
        mine = reconstruction.apply(batch, draw)
        everyones = [torch.empty_like(mine) for _ in range(2)]
        dist.all_gather(everyones, mine)
        return torch.stack(everyones)

    whole = torch.stack([step(epoch, iteration) for epoch in range(2) for iteration in range(3)])
    resumed = torch.stack([step(1, iteration) for iteration in range(3)])
    if rank == 0:
        torch.save((batch, whole, resumed), f"{folder}/steps.pt")
    dist.destroy_process_group()
