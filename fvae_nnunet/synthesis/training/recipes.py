"""Recipes: combinations of training and sampling choices, each of which can also be set separately."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Choices of a training; the defaults are those of the recipe ``lesion``.

    Attributes:
        prediction: see ``noise_process``.
        loss: ``l1`` or ``mse``.
        mask_encoding: see ``conditions``.
        context: additional input of the network, see ``denoiser``.
        lesion_share: share of samples with lesion.
        lesion_weight: weight in the loss of a latent cell full of lesion; cells without lesion have 1.
        decay_share: final share of each stage over which the learning rate falls to 0.
        sampling_steps, sampling_eta: parameters of the sampler, see ``noise_process``.
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
"""``lesion``, the default: the best combination on phantoms (docs/synthesis_training.md); based on DiffTumor, which
predicts the latent with the L1 loss and four steps, and on MAISI, which uses the mask at full resolution. ``paper``: as
released with Foundation-VAE (share and distribution of lesions are ours, because the paper does not state them)."""
