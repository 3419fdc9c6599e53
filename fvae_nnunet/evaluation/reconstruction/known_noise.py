"""Denoising against a known truth: noise is added to a CT, and the view of the noisy image is compared with the CT.

An error against a noisy image rewards methods that keep its noise. Here the truth is the image, softened so that little
of its own noise remains; known noise is added, and the view is made from the result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from fvae_nnunet.ct.hu_windows import PAPER_HU_WINDOW, HUWindow
from fvae_nnunet.ct.padding import padding_as_air
from fvae_nnunet.ct.places import EDGE_HU_PER_PIXEL, FLAT_HU_PER_PIXEL, TISSUES_HU, slopes, soft_tissue, tissue_masks
from fvae_nnunet.errors import UserError
from fvae_nnunet.scanner.photons import photon_noise_hu, photons_for_noise

PLACES = ("edges", "flat", *TISSUES_HU)
"""Regions in which errors are measured; tissues are those of the truth."""


@dataclass(frozen=True)
class KnownNoise:
    """The noise to add, and the creation of the truth.

    Attributes:
        sd_hu: standard deviation of the noise; for scanner noise, that in flat soft tissue.
        kernel_pixels: in-plane Gaussian applied to white noise before it is scaled; 0: white noise; None: the noise of
            few photons in a scanner (``scanner.photons``), which increases towards the middle of the body.
        softened_pixels: in-plane Gaussian that turns an image into the truth; 0 for images without noise.
        hu_window: HU window to which the truth is clipped.
    """

    sd_hu: float
    kernel_pixels: float | None = 0.6
    softened_pixels: float = 0.8
    hu_window: HUWindow = PAPER_HU_WINDOW

    def __post_init__(self) -> None:
        kernel_pixels = self.kernel_pixels or 0.0
        if not 0 < self.sd_hu < math.inf or not 0 <= kernel_pixels < math.inf or not self.softened_pixels >= 0:
            raise UserError(
                "the standard deviation of the noise must be above 0 HU, and Gaussians at least 0 pixels; got "
                f"{self.sd_hu:g} HU, {kernel_pixels:g} and {self.softened_pixels:g} pixels"
            )

    def __str__(self) -> str:
        return f"{self.sd_hu:g} HU of {'scanner ' if self.kernel_pixels is None else ''}noise"

    def truth_of(self, axial_hu: np.ndarray) -> np.ndarray:
        """The truth, float32, of an image (z, y, x) in HU, whose padding with zeros counts as air."""
        clipped_hu = np.clip(padding_as_air(axial_hu).astype(np.float32), *self.hu_window)
        if self.softened_pixels == 0:
            return clipped_hu
        return ndimage.gaussian_filter(clipped_hu, (0, self.softened_pixels, self.softened_pixels), mode="nearest")

    def drawn(self, truth_hu: np.ndarray, pixel_mm: float, rng: np.random.Generator) -> np.ndarray:
        """Draw noise for a truth (z, y, x) with this pixel size: float32, same shape, independent slices.

        Gaussian noise has exactly ``sd_hu`` in every slice.

        Raises:
            UserError: scanner noise is requested for an image without soft tissue.
        """
        if self.kernel_pixels is None:
            photons = photons_for_noise(truth_hu, pixel_mm, self.sd_hu)
            return photon_noise_hu(truth_hu, pixel_mm, photons=photons, rng=rng)
        white = rng.standard_normal(truth_hu.shape).astype(np.float32)
        if self.kernel_pixels:
            white = ndimage.gaussian_filter(white, (0, self.kernel_pixels, self.kernel_pixels), mode="wrap")
        return white * (self.sd_hu / white.std(axis=(1, 2), keepdims=True))


def places_of(truth_hu: np.ndarray) -> dict[str, np.ndarray]:
    """Masks of the regions by name (`PLACES`): bool, same shape as the truth (z, y, x)."""
    soft, slope = soft_tissue(truth_hu), slopes(truth_hu)
    places = {"edges": soft & (slope >= EDGE_HU_PER_PIXEL), "flat": soft & (slope <= FLAT_HU_PER_PIXEL)}
    return places | tissue_masks(truth_hu)


def errors_hu(view_hu: np.ndarray, truth_hu: np.ndarray, places: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Root mean square error by region, in HU; NaN if the region is empty."""
    squared = np.square(view_hu.astype(np.float64) - truth_hu)
    return {name: math.sqrt(squared[place].mean()) if place.any() else math.nan for name, place in places.items()}
