"""Simulate sharper or softer reconstruction kernels on an image and its noise.

Back-projection is linear and isotropic, so changing the kernel is equivalent to filtering the reconstructed slices by
the quotient of the two transfer functions. The kernel of a clinical image is unknown, so a ``Kernel`` is relative to
it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from fvae_nnunet.errors import UserError


@dataclass(frozen=True)
class Kernel:
    """A kernel relative to that of the image.

    Its transfer function at f cycles per mm, with G(s) = exp(-2 (pi s f)^2), is G(softened_mm) *
    (1 + enhanced * (1 - G(enhanced_mm))): a Gaussian, and unsharp masking, because lung and bone kernels enhance edges.

    Attributes:
        softened_mm: standard deviation of the in-plane Gaussian; 0: no softening.
        enhanced: relative amplification at the highest frequencies; 0: no enhancement.
        enhanced_mm: standard deviation of the Gaussian; detail finer than this is enhanced.
    """

    softened_mm: float = 0.0
    enhanced: float = 0.0
    enhanced_mm: float = 1.0

    def __post_init__(self) -> None:
        finite = all(map(math.isfinite, (self.softened_mm, self.enhanced, self.enhanced_mm)))
        if not (finite and self.softened_mm >= 0 and self.enhanced >= 0 and self.enhanced_mm > 0):
            raise UserError(f"softened_mm and enhanced must be 0 or more, enhanced_mm above 0, all finite, got {self}")

    def transfer(self, cycles_per_mm: np.ndarray) -> np.ndarray:
        """The factor at each frequency, same shape; 1 at frequency 0."""
        softening, detail = (
            np.exp(-2 * (np.pi * mm * cycles_per_mm) ** 2) for mm in (self.softened_mm, self.enhanced_mm)
        )
        return np.asarray(softening * (1 + self.enhanced * (1 - detail)))

    def applied(self, axial_hu: np.ndarray, pixel_mm: float) -> np.ndarray:
        """The image (z, y, x) in HU with this kernel: float32, each slice filtered in its plane."""
        image_hu = axial_hu.astype(np.float32)
        if self.enhanced:
            image_hu = image_hu + self.enhanced * (image_hu - _softened(image_hu, self.enhanced_mm / pixel_mm))
        return _softened(image_hu, self.softened_mm / pixel_mm) if self.softened_mm else image_hu


KERNELS = {"own": Kernel(), "soft": Kernel(softened_mm=0.8), "sharp": Kernel(enhanced=1.0)}
"""Named kernels. For a standard scan with pixels of 0.8 mm, ``soft`` leaves 45 % of the noise, ``sharp`` makes it 1.7
times as large."""


def _softened(image_hu: np.ndarray, pixels: float) -> np.ndarray:
    return np.asarray(ndimage.gaussian_filter(image_hu, (0, pixels, pixels), mode="nearest"))
