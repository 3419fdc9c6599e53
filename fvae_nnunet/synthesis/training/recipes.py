"""How lesions are learnt and sampled: choices that belong together. Each can be set alone, too."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Choices of a training; without others those of the recipe ``lesion``.

    Attributes:
        prediction: see ``noise_process``.
        loss: ``l1`` or ``mse``.
        mask_encoding: see ``conditions``.
        context: what the network sees of the latent, see ``denoiser``.
        lesion_share: share of samples with lesion.
        lesion_weight: of a latent cell that is all lesion in the loss; others weigh 1.
        decay_share: last part of each stage over which the learning rate falls to 0.
        sampling_steps, sampling_eta: of the sampler, see ``noise_process``.
    """

    prediction: str = "sample"
    loss: str = "l1"
    mask_encoding: str = "outline"
    context: str = "draft"
    lesion_share: float = 0.9
    lesion_weight: float = 8.0
    decay_share: float = 0.3
    sampling_steps: int = 4
    sampling_eta: float = 0.0


RECIPES = {
    "lesion": Recipe(),
    "paper": Recipe(
        prediction="epsilon",
        loss="mse",
        mask_encoding="vae",
        context="none",
        lesion_share=0.5,
        lesion_weight=1.0,
        decay_share=0.0,
        sampling_steps=20,
        sampling_eta=1.0,
    ),
}
"""``lesion``, the default: what came out best on phantoms (docs/synthesis_training.md); after DiffTumor, which predicts
the latent, takes the L1 loss and four steps, and MAISI, which reads the mask at full resolution. ``paper``: as released
with Foundation-VAE (share and spread of lesions are ours, the paper states none)."""
