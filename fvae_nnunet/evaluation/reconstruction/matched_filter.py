"""The plain filter that removes as much noise as a view, for one case."""

from __future__ import annotations

import numpy as np

from fvae_nnunet.ct.noise import homogeneous_region, measure_noise
from fvae_nnunet.errors import UserError
from fvae_nnunet.reconstruction.noise_matching import NoiseSample, match_strength
from fvae_nnunet.reconstruction.settings import ReconstructionSettings
from fvae_nnunet.reconstruction.volume import reconstruct_to_int16
from fvae_nnunet.vae.denoisers import Control

FILTER = "control:gaussian"


def matched_filter(raw_hu: np.ndarray, view_hu: np.ndarray) -> np.ndarray | None:
    """The raw slices, filtered to the noise level of the view; None if the view removes none, or too much to match.

    Args:
        raw_hu, view_hu: a few axial slices (z, y, x) in HU.
    """
    settings = ReconstructionSettings.for_vae(Control(FILTER, 0).spec)
    clipped = [np.clip(hu.astype(np.float32), *settings.hu_window) for hu in (raw_hu, view_hu)]
    region = homogeneous_region(raw_hu)
    raw, view = (measure_noise(hu, region).total_hu for hu in clipped)
    if not view < raw:
        return None
    try:
        sample = NoiseSample({"": raw}, lambda _: [raw_hu], settings)
        strength = match_strength(FILTER, view / raw, sample).strength
    except UserError:  # the view removes more noise than any strength
        return None
    return reconstruct_to_int16(Control(FILTER, strength), raw_hu, settings) if strength else None
