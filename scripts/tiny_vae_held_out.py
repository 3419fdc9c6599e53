"""Evaluate how well a VAE removes known noise from the held-out photographs, to judge its training without CT.

The photographs are scaled to HU with contrasts as in CT. Truth, noise, edges and flat places are those of
`fvae_nnunet.evaluation.reconstruction.known_noise`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from fvae_nnunet.evaluation.reconstruction.front import middle
from fvae_nnunet.evaluation.reconstruction.known_noise import KnownNoise, errors_hu, places_of

HALF_RANGES_HU = (400.0, 150.0)
"""Black and white of the photographs are this many HU below and above 50 HU."""

NOISE = KnownNoise(25.0)
PIXELS = 320


def denoising_cases(images: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Middle of each photograph (3, H, W) in [0, 1] at each contrast, float32 HU (1, y, x)."""
    cases = {}
    for name, image in images.items():
        signed = 2 * image.mean(dim=0).numpy()[None] - 1
        for half_range_hu in HALF_RANGES_HU:
            cases[f"{name} {half_range_hu:g}"] = 50 + half_range_hu * middle(signed, 1, PIXELS, PIXELS)
    return cases


def denoising_errors_hu(
    cases: dict[str, np.ndarray], denoise: Callable[[np.ndarray], np.ndarray], *, noise: KnownNoise | None = NOISE
) -> dict[str, float]:
    """Mean over cases of the RMS errors at edges and in flat places; with ``noise`` None, for the truth itself.

    Args:
        cases: name -> HU (1, y, x).
        denoise: maps HU (1, y, x) to the same.
    """
    found: dict[str, list[float]] = {"edges": [], "flat": []}
    for number, image_hu in enumerate(cases.values()):
        truth_hu = NOISE.truth_of(image_hu)
        drawn = 0 if noise is None else noise.drawn(truth_hu, 1.0, np.random.default_rng([0, number]))
        errors = errors_hu(denoise(truth_hu + drawn), truth_hu, places_of(truth_hu))
        for place in found:
            found[place].append(errors[place])
    return {place: float(np.nanmean(errors)) for place, errors in found.items()}
