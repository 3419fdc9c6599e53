"""A first draft of lesions, drawn into a volume in HU: what the network starts from.

Each lesion is a grey value with a smooth texture and the edge of a scanner's point spread, its surroundings are carried
on from outside. Encoded by the VAE, it tells the network outline, brightness, texture and context in the latent's own
terms; what is left to learn is what the draft lacks: detail, and how real edges differ. So pasting in HU
(SyntheticTumors) and diffusion (DiffTumor) come together.

In training the texture is the real lesion's own (``texture.core_texture``), in synthesis a random one as strong as was
asked for: told as a mere number, its strength had no effect on what was generated.

Surroundings are drawn anew in training as in synthesis: beside a real lesion the voxels already hold its blur, and a
network that saw them would learn to shrink what is drawn.
"""

from __future__ import annotations

import numpy as np

from fvae_nnunet.ct.boxes import box_around, grown
from fvae_nnunet.synthesis.lesions.appearance import Appearance
from fvae_nnunet.synthesis.lesions.measures import lesion_core
from fvae_nnunet.synthesis.lesions.placement import too_close
from fvae_nnunet.synthesis.lesions.smoothing import REACHES_MM, fill_from
from fvae_nnunet.synthesis.lesions.texture import core_texture, drawn_texture
from fvae_nnunet.synthesis.model.layout import Layout

REDRAWN_MM = 2.5
"""Surroundings closer to a lesion are drawn anew: about as far as a scanner's blur of its edge reaches."""

EDGE_SIGMA_MM = 1.0
"""Of the Gaussian that blurs a lesion's edge, about a scanner's resolution in the plane."""

_EDGE_REACH = 4.0
"""Of that Gaussian, in standard deviations."""


def drafted(
    volume_hu: np.ndarray,
    layout: Layout,
    fresh: np.ndarray,
    *,
    unknown: Appearance,
    rng: np.random.Generator | None,
) -> np.ndarray:
    """A volume with some lesions drawn anew.

    Args:
        volume_hu: (z, y, x).
        layout: with the lesions, same shape.
        fresh: bool, same shape: lesions of the layout that are to be drawn, and lesions that are to vanish.
        unknown: for lesions of which it is not known how they look.
        rng: draws their texture, and what the volume holds in them plays no part; None: they are real lesions of the
            volume, and have its texture.

    Returns:
        float32; from `REDRAWN_MM` on the volume itself.
    """
    from scipy import ndimage

    draft_hu = volume_hu.astype(np.float32)
    redrawn = too_close(fresh, layout.spacing_mm, REDRAWN_MM)
    pieces, _ = ndimage.label(redrawn)
    margins = np.ceil(2 * REACHES_MM[-1] / np.asarray(layout.spacing_mm)).astype(int)
    sigma = EDGE_SIGMA_MM / np.asarray(layout.spacing_mm)
    for number, found in enumerate(ndimage.find_objects(pieces), start=1):
        box = grown(found, margins, redrawn.shape)
        lesions = layout.lesion_numbers[box]
        drawn_hu = _carried_on(volume_hu[box], redrawn[box], layout.class_map[box], layout.spacing_mm)
        for lesion in np.unique(lesions[fresh[box] & (lesions > 0)]):
            near = box_around(lesions == lesion, _EDGE_REACH * EDGE_SIGMA_MM, layout.spacing_mm)
            inside = lesions[near] == lesion
            core = lesion_core(inside, layout.spacing_mm)
            look = layout.appearance(lesion, unknown)
            if rng is None:
                texture_hu = core_texture(volume_hu[box][near], core, layout.spacing_mm)
            else:
                texture_hu = drawn_texture(rng, core, layout.spacing_mm, look.texture_sd_hu)
            share = ndimage.gaussian_filter(inside.astype(np.float32), sigma, truncate=_EDGE_REACH)
            drawn_hu[near] += share * (look.core_mean_hu + texture_hu - drawn_hu[near])
        here = pieces[box] == number
        draft_hu[box][here] = drawn_hu[here]
    return draft_hu


def _carried_on(
    volume_hu: np.ndarray, region: np.ndarray, class_map: np.ndarray, spacing_mm: tuple[float, float, float]
) -> np.ndarray:
    """The volume, float32, with a region filled from what lies outside it: of each class from the same class where
    there is any near, so that an organ ends where it did."""
    filled = volume_hu.astype(np.float32)
    missing = region.copy()
    for value in np.unique(class_map[region]):
        of_class = class_map == value
        missing &= ~fill_from(filled, missing & of_class, ~region & of_class, spacing_mm)
    missing &= ~fill_from(filled, missing, ~region, spacing_mm)
    if missing.any():
        filled[missing] = filled[~region].mean() if not region.all() else 0
    return filled
