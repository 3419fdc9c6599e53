"""Draw a first draft of lesions into a volume in HU, from which the network starts.

Each lesion is a grey value with a smooth texture and an edge blurred like a scanner's point spread; its surroundings
are extrapolated from outside. Encoded by the VAE, the draft gives the network outline, brightness, texture and context
as a latent; the network has to learn only what the draft lacks: detail and realistic edges. This combines pasting in HU
(SyntheticTumors) with diffusion (DiffTumor).

In training the texture is that of the real lesion (``texture.core_texture``), in synthesis a random one of the
requested strength: as a number in the condition, the strength had no effect on the generated lesion.

Surroundings are redrawn both in training and in synthesis: beside a real lesion the voxels already contain its blur,
and a network that saw them would learn to shrink the drawn lesion.
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
"""Distance from a lesion within which surroundings are redrawn, about the reach of a scanner's blur."""

EDGE_SIGMA_MM = 1.0
"""Standard deviation of the Gaussian that blurs the edge of a lesion, about a scanner's in-plane resolution."""

_EDGE_REACH = 4.0
"""Truncation of this Gaussian, in standard deviations."""


def drafted(
    volume_hu: np.ndarray,
    layout: Layout,
    fresh: np.ndarray,
    *,
    unknown: Appearance,
    rng: np.random.Generator | None,
) -> np.ndarray:
    """A volume with some lesions drawn or removed.

    Args:
        volume_hu: (z, y, x).
        layout: layout with the lesions to draw, same shape.
        fresh: bool, same shape: lesions of the layout to draw, and lesions to remove.
        unknown: appearance of lesions whose own one is unknown.
        rng: draws the texture of the lesions, independent of the volume inside them; None: they are real lesions of the
            volume, and keep its texture.

    Returns:
        float32; the volume itself at ``REDRAWN_MM`` and more from these lesions.
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
    """The volume, float32, with a region filled from outside: each class from nearby voxels of the same class if there
    are any, so that organ borders stay in place."""
    filled = volume_hu.astype(np.float32)
    missing = region.copy()
    for value in np.unique(class_map[region]):
        of_class = class_map == value
        missing &= ~fill_from(filled, missing & of_class, ~region & of_class, spacing_mm)
    missing &= ~fill_from(filled, missing, ~region, spacing_mm)
    if missing.any():
        filled[missing] = filled[~region].mean() if not region.all() else 0
    return filled
