"""A first draft of lesions, drawn into a volume in HU: what the network starts from.

Each lesion is one grey value with the edge of a scanner's point spread, its surroundings are carried on from outside.
Encoded by the VAE, it tells the network outline, brightness and context in the latent's own terms; what is left to
learn is what the draft lacks: texture, and how real edges differ. So pasting in HU (SyntheticTumors) and diffusion
(DiffTumor) come together.

Surroundings are drawn anew in training as in synthesis: beside a real lesion the voxels already hold its blur, and a
network that saw them would learn to shrink what is drawn.
"""

from __future__ import annotations

import numpy as np

from fvae_nnunet.synthesis.layout import APPEARANCE, Layout
from fvae_nnunet.synthesis.placement import grown, too_close

REDRAWN_MM = 2.5
"""Surroundings closer to a lesion are drawn anew: about as far as a scanner's blur of its edge reaches."""

EDGE_SIGMA_MM = 1.0
"""Of the Gaussian that blurs a lesion's edge, about a scanner's resolution in the plane."""

_REACHES_MM = (2.0, 4.0, 8.0, 16.0)
"""Standard deviations of the Gaussians that carry the surroundings on: the narrowest that reaches a voxel counts."""

_REACHED = 0.02
"""Share of a Gaussian that has to lie where the volume is known."""


def drafted(volume_hu: np.ndarray, layout: Layout, fresh: np.ndarray, unknown_hu: float) -> np.ndarray:
    """A volume with some lesions drawn anew.

    Args:
        volume_hu: (z, y, x).
        layout: with the lesions, same shape.
        fresh: bool, same shape: lesions of the layout that are to be drawn, and lesions that are to vanish. What the
            volume holds there plays no part.
        unknown_hu: for lesions of which it is not known how they look.

    Returns:
        float32; from `REDRAWN_MM` on the volume itself.
    """
    from scipy import ndimage

    draft_hu = volume_hu.astype(np.float32)
    redrawn = too_close(fresh, layout.spacing_mm, REDRAWN_MM)
    pieces, _ = ndimage.label(redrawn)
    margins = np.ceil(2 * _REACHES_MM[-1] / np.asarray(layout.spacing_mm)).astype(int)
    means_hu = layout.appearances_hu[:, APPEARANCE.index("core_mean_hu")]
    sigma = EDGE_SIGMA_MM / np.asarray(layout.spacing_mm)
    for number, found in enumerate(ndimage.find_objects(pieces), start=1):
        box = grown(found, margins, redrawn.shape)
        lesions = layout.lesion_numbers[box]
        drawn_hu = _carried_on(volume_hu[box], redrawn[box], layout.class_map[box], layout.spacing_mm)
        for lesion in np.unique(lesions[fresh[box] & (lesions > 0)]):
            mean_hu = means_hu[lesion - 1]
            share = ndimage.gaussian_filter((lesions == lesion).astype(np.float32), sigma)
            drawn_hu += share * ((unknown_hu if np.isnan(mean_hu) else mean_hu) - drawn_hu)
        here = pieces[box] == number
        draft_hu[box][here] = drawn_hu[here]
    return draft_hu


def _carried_on(
    volume_hu: np.ndarray, region: np.ndarray, class_map: np.ndarray, spacing_mm: tuple[float, float, float]
) -> np.ndarray:
    """The volume, float32, with a region filled by normalised convolution of what lies outside it (Knutsson and Westin
    1993): of each class from the same class where there is any near, so that an organ ends where it did."""
    filled = volume_hu.astype(np.float32)
    missing = region.copy()
    for value in np.unique(class_map[region]):
        of_class = class_map == value
        missing &= ~_fill(filled, missing & of_class, ~region & of_class, spacing_mm)
    missing &= ~_fill(filled, missing, ~region, spacing_mm)
    if missing.any():
        filled[missing] = filled[~region].mean() if not region.all() else 0
    return filled


def _fill(
    volume_hu: np.ndarray, missing: np.ndarray, known: np.ndarray, spacing_mm: tuple[float, float, float]
) -> np.ndarray:
    """Fill what is missing from what is known, in place; where it was done."""
    from scipy import ndimage

    done = np.zeros_like(missing)
    weight = known.astype(np.float32)
    values = volume_hu * weight
    for reach_mm in _REACHES_MM:
        left = missing & ~done
        if not left.any() or not known.any():
            break
        sigma = reach_mm / np.asarray(spacing_mm)
        sums, shares = (ndimage.gaussian_filter(array, sigma, truncate=3) for array in (values, weight))
        reached = left & (shares > _REACHED)
        volume_hu[reached] = sums[reached] / shares[reached]
        done |= reached
    return done
