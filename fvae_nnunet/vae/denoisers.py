"""Plain denoisers behind the interface of a VAE, for the ablation: is a VAE needed, or would any denoiser do?

Each filters every axial slice independently, with the same clipping to the HU window and the same rounding as the
reconstruction of a VAE, so that windows, views, manifests and trainers are the same. ``identity`` only clips.

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
from itertools import repeat
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from fvae_nnunet.ct.noise import measured_region
from fvae_nnunet.errors import UserError
from fvae_nnunet.vae.base import FrozenVAE, VAESpec
from fvae_nnunet.vae.known import CONTROL_PREFIX

CURVATURE_FLOW_STEP = 0.0625
"""Longest time step, in square pixels; ITK's examples use 0.125 in 2D and 0.0625 in 3D."""

BILATERAL_SPATIAL_SD_PIXELS, BILATERAL_RANGE_SAMPLES = 2.0, 1000
"""With a large range, the bilateral filter becomes a Gaussian of this size. ITK tabulates the range; with its default
of 100 samples, errors reach half a HU."""

TV_RELATIVE_CHANGE, TV_ITERATIONS = 1e-5, 200
"""Stopping criteria of Chambolle's iteration. scikit-image's default of 2e-4 stops it after a few steps, so that the
result would jump with the strength."""

AUTO = "auto"
"""Strength that is set from the noise of each volume."""

NLM_PATCH_PIXELS, NLM_DISTANCE_PIXELS = 5, 6
"""Edge length of the compared patches, and the search distance: 13 x 13 pixels."""


@dataclass(frozen=True)
class Denoiser:
    """A filter of one slice.

    Attributes:
        description: short description of the filter.
        strength: meaning of the strength, with its unit unless that is grey values.
        package: distribution that implements the filter; None if there is none.
        filtered: function of a slice (y, x), float32, and a strength above 0 that returns the filtered slice, same
            shape, any float.
        usual_strength: strength at which a search begins.
        largest_strength: upper end of a search, where little of the image is left; 0 if there is no strength.
        parameters: fixed parameters, for the record.
        of_grey_values: whether the strength is a difference of grey values, in halves of the HU window.
        of_noise: strength with the smallest error, in standard deviations of the noise; None if unknown. Found on two
            phantoms and two CTs with noise of 10, 25 and 40 HU and kernels of 0, 0.6 and 1 pixel: errors at edges and
            in flat tissue are within a tenth of the smallest in every case.
    """

    description: str
    strength: str
    package: str | None
    filtered: Callable[[np.ndarray, float], np.ndarray]
    usual_strength: float
    largest_strength: float
    parameters: dict[str, Any] = field(default_factory=dict)
    of_grey_values: bool = False
    of_noise: float | None = None

    @property
    def has_strength(self) -> bool:
        return self.largest_strength > 0

    @property
    def unit(self) -> str:
        """Meaning of the strength, with its unit."""
        grey = " in halves of the HU window (0.01: 10 HU with -1000 to 1000)" if self.of_grey_values else ""
        return f"{self.strength}{grey}"

    def explained(self, strength: float, hu_window: tuple[float, float]) -> str:
        """A strength in words, such as ``h: 11.2 HU`` or ``standard deviation in pixels``."""
        lower, upper = hu_window
        return f"{self.strength}: {strength * (upper - lower) / 2:.3g} HU" if self.of_grey_values else self.strength


def _gaussian(plane: np.ndarray, sd_pixels: float) -> np.ndarray:
    return ndimage.gaussian_filter(plane, sd_pixels, mode="nearest")


def _median(plane: np.ndarray, radius_pixels: float) -> np.ndarray:
    """Median filter; between whole radii, the medians of the two neighbouring radii are interpolated; 0: no filter."""
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

    # the fast mode sums over the whole slice, for which float32 is too coarse
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
            {"relative_change": TV_RELATIVE_CHANGE, "iterations": TV_ITERATIONS}, of_grey_values=True, of_noise=1.0,
        ),
        "nlm": Denoiser(
            "non-local means", "h", "scikit-image", _nlm, 0.01, 2,
            {"patch_pixels": NLM_PATCH_PIXELS, "distance_pixels": NLM_DISTANCE_PIXELS},
            of_grey_values=True, of_noise=1.2,
        ),
    }.items()
}  # fmt: skip
"""Denoisers by the name that ``load_vae`` takes."""


class Control(FrozenVAE):
    """A denoiser as a VAE: its latent is the volume, and decoding filters each slice. On the CPU, in float32.

    Args:
        name: a key of ``CONTROLS``.
        strength: from 0, which changes nothing, to ``Denoiser.largest_strength``, in ``Denoiser.unit``; or `AUTO`, with
            which ``for_volume`` returns the control for a volume.

    Attributes:
        weights_sha256: digest of the filter's name, strength and fixed parameters, as there are no weights.

    Raises:
        UserError: unknown name, or a strength out of range.
    """

    def __init__(self, name: str, strength: float | str) -> None:
        denoiser = find_control(name)
        if strength == AUTO:
            if denoiser.of_noise is None:
                known = ", ".join(other for other, one in CONTROLS.items() if one.of_noise is not None)
                raise UserError(f"{name}: an automatic strength is available only for {known}; give `strength=S`")
        elif isinstance(strength, str) or not 0 <= strength <= denoiser.largest_strength:
            raise UserError(
                f"{name}: the strength ({denoiser.unit}) must be between 0 and {denoiser.largest_strength:g}, "
                f"got {strength}"
            )
        self.spec = VAESpec(name=name, inplane_stride=1, latent_channels=1, window_slices=32)
        self.strength = AUTO if isinstance(strength, str) else float(strength)
        auto = {"of_noise": denoiser.of_noise} if strength == AUTO else {}
        text = json.dumps({"filter": name, "strength": self.strength, **denoiser.parameters, **auto}, sort_keys=True)
        self.weights_sha256 = hashlib.sha256(text.encode()).hexdigest()
        package = denoiser.package
        self.weights_source = f"no weights; {package} {version(package)}" if package else "no weights"
        self._denoiser = denoiser

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def for_volume(self, axial_hu: np.ndarray, hu_window: tuple[float, float]) -> Control:
        """This control; with the strength `AUTO`, the control for the noise of a volume (z, y, x) in HU.

        Raises:
            UserError: there is no soft tissue to measure its noise in.
        """
        if self.strength != AUTO:
            return self
        assert self._denoiser.of_noise is not None
        _, noise = measured_region(axial_hu, hu_window)
        if noise is None:
            raise UserError(f"{self.spec.name}: there is no soft tissue to measure the noise in; give `strength=S`")
        strength = self._denoiser.of_noise * noise.total_hu / ((hu_window[1] - hu_window[0]) / 2)
        return Control(self.spec.name, min(strength, self._denoiser.largest_strength))

    def encode(self, volume: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        self.check_volume(volume)
        return volume.detach().to(self.device, self.dtype)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        self.check_volume(latent)
        volume = latent.detach().to(self.device, self.dtype)
        if isinstance(self.strength, str):
            raise UserError(
                f"{self.spec.name} with the strength {AUTO} needs the whole image to measure its noise; create a view "
                "before training (fvae-preprocess), or give a strength"
            )
        if self.strength == 0:
            return volume
        planes = volume.flatten(0, 2).numpy()
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            filtered = list(pool.map(self._denoiser.filtered, planes, repeat(self.strength)))
        return torch.from_numpy(np.stack(filtered).astype(np.float32)).view(volume.shape)


def find_control(name: str) -> Denoiser:
    """The denoiser with this name; UserError that lists all names if there is none."""
    if name not in CONTROLS:
        raise UserError(f"unknown control {name!r}; there are {', '.join(CONTROLS)}")
    return CONTROLS[name]


def load_control(name: str, strength: float | str | None) -> Control:
    """The control with this name and strength; all controls but the identity need a strength.

    Raises:
        UserError: as ``Control``, or a strength is missing, or the identity is given one.
    """
    denoiser = find_control(name)
    if strength and not denoiser.has_strength:
        raise UserError(f"{name} has no strength; leave `strength` out")
    if strength is None and denoiser.has_strength:
        auto = "`strength=auto` for the noise of each image, " if denoiser.of_noise else ""
        raise UserError(
            f"{name} needs a strength: `strength=S` ({denoiser.unit}), {auto}or `match=VIEW` to remove as much "
            "noise as a view does"
        )
    return Control(name, 0.0 if strength is None else strength)
