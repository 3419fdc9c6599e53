"""Plain denoisers behind the interface of a VAE, for the ablation: does it need a VAE, or would any denoiser do?

Each filters every axial slice by itself, in the plane, between the same clipping to the HU window and the same rounding
as the reconstruction of a VAE, so that windows, views, manifests and trainers are the same. ``identity`` does nothing:
what is left is the clipping.

Filters see the HU window mapped linearly to [-1, 1]. Strengths that are a difference of grey values are in halves of
the window: with -1000 to 1000 HU, 0.02 is 20 HU.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from fvae_nnunet.errors import UserError
from fvae_nnunet.vae.base import FrozenVAE, VAESpec
from fvae_nnunet.vae.known import CONTROL_PREFIX

CURVATURE_FLOW_STEP = 0.0625
"""Longest time step, in square pixels; ITK's examples take 0.125 in 2D and 0.0625 in 3D."""

BILATERAL_SPATIAL_SD_PIXELS, BILATERAL_RANGE_SAMPLES = 2.0, 1000
"""A Gaussian of this size is what the bilateral filter becomes with a large range. ITK tables the range; with its own
100 samples the errors reach half a HU."""

TV_RELATIVE_CHANGE, TV_ITERATIONS = 1e-5, 200
"""Where Chambolle's iteration ends. scikit-image's own 2e-4 ends it after a few steps, so that the result would jump
with the strength."""

NLM_PATCH_PIXELS, NLM_DISTANCE_PIXELS = 5, 6
"""Edge of the patches that are compared, and how far away they are sought: 13 x 13 pixels."""


@dataclass(frozen=True)
class Denoiser:
    """A filter of one slice.

    Attributes:
        description: what it is, in a few words.
        strength: what its strength is, with the unit unless that is of grey values.
        package: the distribution that it comes from; None for none.
        filtered: slice (y, x), float32, and strength above 0 to the filtered slice, same shape, any float.
        usual_strength: where a search for a strength begins.
        largest_strength: where it ends; little is left of the image there. 0 where there is no strength.
        parameters: what is fixed, for the record.
        of_grey_values: the strength is a difference of grey values, in halves of the HU window.
    """

    description: str
    strength: str
    package: str | None
    filtered: Callable[[np.ndarray, float], np.ndarray]
    usual_strength: float
    largest_strength: float
    parameters: dict[str, Any] = field(default_factory=dict)
    of_grey_values: bool = False

    @property
    def has_strength(self) -> bool:
        return self.largest_strength > 0

    @property
    def unit(self) -> str:
        """What the strength is, with the unit."""
        grey = " in halves of the HU window (0.01: 10 HU with -1000 to 1000)" if self.of_grey_values else ""
        return f"{self.strength}{grey}"

    def explained(self, strength: float, hu_window: tuple[float, float]) -> str:
        """A strength in words, such as ``h: 11.2 HU`` or ``standard deviation in pixels``."""
        lower, upper = hu_window
        return f"{self.strength}: {strength * (upper - lower) / 2:.3g} HU" if self.of_grey_values else self.strength


def _gaussian(plane: np.ndarray, sd_pixels: float) -> np.ndarray:
    return ndimage.gaussian_filter(plane, sd_pixels, mode="nearest")


def _median(plane: np.ndarray, radius_pixels: float) -> np.ndarray:
    """Between whole radii, the two neighbouring windows' medians are mixed linearly; radius 0 is the slice itself."""
    radius = math.floor(radius_pixels)
    share = radius_pixels - radius
    inner = ndimage.median_filter(plane, 2 * radius + 1, mode="nearest") if radius else plane
    if share == 0:
        return inner
    return (1 - share) * inner + share * ndimage.median_filter(plane, 2 * radius + 3, mode="nearest")


def _bilateral(plane: np.ndarray, range_sd: float) -> np.ndarray:
    import SimpleITK as sitk

    bilateral = sitk.BilateralImageFilter()
    bilateral.SetDomainSigma(BILATERAL_SPATIAL_SD_PIXELS)
    bilateral.SetRangeSigma(range_sd)
    bilateral.SetNumberOfRangeGaussianSamples(BILATERAL_RANGE_SAMPLES)
    return _by_simpleitk(bilateral, plane)


def _curvature_flow(plane: np.ndarray, time_pixels2: float) -> np.ndarray:
    import SimpleITK as sitk

    steps = math.ceil(time_pixels2 / CURVATURE_FLOW_STEP)
    flow = sitk.CurvatureFlowImageFilter()
    flow.SetTimeStep(time_pixels2 / steps)
    flow.SetNumberOfIterations(steps)
    return _by_simpleitk(flow, plane)


def _by_simpleitk(image_filter: Any, plane: np.ndarray) -> np.ndarray:
    import SimpleITK as sitk

    image_filter.SetNumberOfThreads(1)  # slices run in parallel already
    return sitk.GetArrayFromImage(image_filter.Execute(sitk.GetImageFromArray(plane)))


def _tv(plane: np.ndarray, weight: float) -> np.ndarray:
    from skimage import restoration

    return restoration.denoise_tv_chambolle(
        plane.astype(np.float64), weight=weight, eps=TV_RELATIVE_CHANGE, max_num_iter=TV_ITERATIONS
    )


def _nlm(plane: np.ndarray, h: float) -> np.ndarray:
    from skimage import restoration

    # its fast mode sums over the whole slice, for which float32 is too coarse
    return restoration.denoise_nl_means(
        plane.astype(np.float64), patch_size=NLM_PATCH_PIXELS, patch_distance=NLM_DISTANCE_PIXELS, h=h, fast_mode=True
    )


CONTROLS: dict[str, Denoiser] = {
    CONTROL_PREFIX + name: denoiser
    for name, denoiser in {
        "identity": Denoiser("nothing but the clipping to the HU window", "none", None, lambda plane, _: plane, 0, 0),
        "gaussian": Denoiser(
            "Gaussian filter", "standard deviation in pixels", "scipy", _gaussian, 0.5, 10, {"truncate_sds": 4},
        ),
        "median": Denoiser("median in a square", "radius in pixels", "scipy", _median, 0.5, 8),
        "bilateral": Denoiser(
            "bilateral filter", "standard deviation of the range", "SimpleITK", _bilateral, 0.01, 4,
            {"spatial_sd_pixels": BILATERAL_SPATIAL_SD_PIXELS, "range_samples": BILATERAL_RANGE_SAMPLES},
            of_grey_values=True,
        ),
        "curvature-flow": Denoiser(
            "curvature flow", "time in square pixels", "SimpleITK", _curvature_flow, 0.5, 32,
            {"longest_step_pixels2": CURVATURE_FLOW_STEP},
        ),
        "tv": Denoiser(
            "total variation (Chambolle)", "weight of the total variation", "scikit-image", _tv, 0.005, 1,
            {"relative_change": TV_RELATIVE_CHANGE, "iterations": TV_ITERATIONS}, of_grey_values=True,
        ),
        "nlm": Denoiser(
            "non-local means", "h", "scikit-image", _nlm, 0.01, 2,
            {"patch_pixels": NLM_PATCH_PIXELS, "distance_pixels": NLM_DISTANCE_PIXELS}, of_grey_values=True,
        ),
    }.items()
}  # fmt: skip
"""By the name that ``load_vae`` and ``--vae`` take."""


class Control(FrozenVAE):
    """A denoiser seen as a VAE: its latent is the volume, decoding filters each slice. On the CPU, in float32.

    Args:
        name: a key of ``CONTROLS``.
        strength: from 0, which leaves every value as it is, to ``Denoiser.largest_strength``, in ``Denoiser.unit``.

    Attributes:
        weights_sha256: there are no weights: the digest of the filter's name, strength and fixed parameters.

    Raises:
        UserError: unknown name, a strength out of range, or scikit-image is needed and missing.
    """

    def __init__(self, name: str, strength: float) -> None:
        denoiser = find_control(name)
        if not 0 <= strength <= denoiser.largest_strength:
            raise UserError(
                f"{name}: the strength ({denoiser.unit}) must lie between 0 and {denoiser.largest_strength:g}, "
                f"got {strength:g}"
            )
        self.spec = VAESpec(name=name, inplane_stride=1, latent_channels=1, window_slices=32)
        self.strength = float(strength)
        text = json.dumps({"filter": name, "strength": self.strength, **denoiser.parameters}, sort_keys=True)
        self.weights_sha256 = hashlib.sha256(text.encode()).hexdigest()
        package = denoiser.package
        self.weights_source = f"no weights; {package} {version(package)}" if package else "no weights"
        self._filtered = lambda plane: denoiser.filtered(plane, float(strength))

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def encode(self, volume: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        self.check_volume(volume)
        return volume.detach().to(self.device, self.dtype)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        self.check_volume(latent)
        volume = latent.detach().to(self.device, self.dtype)
        if self.strength == 0:
            return volume
        planes = volume.flatten(0, 2).numpy()
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            filtered = list(pool.map(self._filtered, planes))
        return torch.from_numpy(np.stack(filtered).astype(np.float32)).view(volume.shape)


def find_control(name: str) -> Denoiser:
    """The denoiser with this name; UserError naming all of them where there is none."""
    if name not in CONTROLS:
        raise UserError(f"unknown control {name!r}; there are {', '.join(CONTROLS)}")
    return CONTROLS[name]


def load_control(name: str, strength: float | None) -> Control:
    """The control with this name and strength; the identity has none but 0, all others need one.

    Raises:
        UserError: as ``Control``, or the strength is missing or one too many.
    """
    denoiser = find_control(name)
    if strength and not denoiser.has_strength:
        raise UserError(f"{name} has no strength; leave --strength out")
    if strength is None and denoiser.has_strength:
        raise UserError(
            f"{name} needs a strength: --strength S ({denoiser.unit}), or --match VIEW to remove as much noise as "
            "a view does"
        )
    return Control(name, 0.0 if strength is None else strength)
