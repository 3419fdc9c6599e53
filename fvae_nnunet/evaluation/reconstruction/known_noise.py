"""Denoising against a known truth: noise is added to a CT, and what a view makes of it is compared with the CT itself.

An error against a noisy image rewards whatever leaves its noise. Here the image, softened so that little of its own
noise is left, is the truth; known noise is added, and the view is made of that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from fvae_nnunet.ct.hu_windows import PAPER_HU_WINDOW, HUWindow
from fvae_nnunet.ct.places import EDGE_HU_PER_PIXEL, FLAT_HU_PER_PIXEL, TISSUES_HU, slopes, soft_tissue, tissue_masks
from fvae_nnunet.errors import UserError

PLACES = ("edges", "flat", *TISSUES_HU)
"""Where errors are measured; tissues are those of the truth."""


@dataclass(frozen=True)
class KnownNoise:
    """The noise that is added, and how the truth is made.

    Attributes:
        sd_hu: standard deviation of the noise.
        kernel_pixels: of the in-plane Gaussian that white noise passes through before it is scaled; 0: white.
        softened_pixels: in-plane Gaussian that makes the truth of an image; 0 for images without noise.
        hu_window: the truth is clipped to it.
    """

    sd_hu: float
    kernel_pixels: float = 0.6
    softened_pixels: float = 0.8
    hu_window: HUWindow = PAPER_HU_WINDOW

    def __post_init__(self) -> None:
        if not 0 < self.sd_hu < math.inf or not 0 <= self.kernel_pixels < math.inf or not self.softened_pixels >= 0:
            raise UserError(
                f"noise has a standard deviation above 0 HU and Gaussians of 0 pixels or more, got {self.sd_hu:g} HU, "
                f"{self.kernel_pixels:g} and {self.softened_pixels:g} pixels"
            )

    def truth_of(self, axial_hu: np.ndarray) -> np.ndarray:
        """(z, y, x) in HU to float32."""
        clipped_hu = np.clip(axial_hu.astype(np.float32), *self.hu_window)
        if self.softened_pixels == 0:
            return clipped_hu
        return ndimage.gaussian_filter(clipped_hu, (0, self.softened_pixels, self.softened_pixels), mode="nearest")

    def drawn(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        """Noise (z, y, x), float32: every slice for itself, of exactly ``sd_hu``."""
        white = rng.standard_normal(shape).astype(np.float32)
        if self.kernel_pixels:
            white = ndimage.gaussian_filter(white, (0, self.kernel_pixels, self.kernel_pixels), mode="wrap")
        return white * (self.sd_hu / white.std(axis=(1, 2), keepdims=True))


def places_of(truth_hu: np.ndarray) -> dict[str, np.ndarray]:
    """Where errors are measured, by name (`PLACES`): bool, same shape as the truth (z, y, x)."""
    soft, slope = soft_tissue(truth_hu), slopes(truth_hu)
    places = {"edges": soft & (slope >= EDGE_HU_PER_PIXEL), "flat": soft & (slope <= FLAT_HU_PER_PIXEL)}
    return places | tissue_masks(truth_hu)


def errors_hu(view_hu: np.ndarray, truth_hu: np.ndarray, places: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Root mean square error by place, in HU; NaN where there is no such place."""
    squared = np.square(view_hu.astype(np.float64) - truth_hu)
    return {name: math.sqrt(squared[place].mean()) if place.any() else math.nan for name, place in places.items()}
