"""Denoise images that are noisier than those of a training, and only down to their noise (docs/evidence_runs.md).

An image x with more noise becomes v + k (x - v), with its non-local means v and the k at which it has the wanted noise.
Other images are not changed.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from scipy.optimize import brentq

from fvae_nnunet.ct.files import write_volume
from fvae_nnunet.ct.geometry import Geometry
from fvae_nnunet.ct.hu_windows import PAPER_HU_WINDOW
from fvae_nnunet.ct.noise import measure_noise, measured_region, measured_slices
from fvae_nnunet.jobs.pipeline import Outcome, StageSeconds, run_cases
from fvae_nnunet.reconstruction.folder import read_hu
from fvae_nnunet.reconstruction.settings import ReconstructionSettings
from fvae_nnunet.reconstruction.volume import reconstruct_to_int16
from fvae_nnunet.vae.denoisers import AUTO, Control, load_control

HU_WINDOW = PAPER_HU_WINDOW
"""Window of the denoiser."""

SHARE_TOLERANCE = 1e-3
"""Tolerance of k."""


def denoiser() -> tuple[Control, ReconstructionSettings]:
    """The filter that makes v, and its settings."""
    control = load_control("control:nlm", AUTO)
    return control, ReconstructionSettings.for_vae(control.spec, hu_window=HU_WINDOW)


@dataclass(frozen=True)
class Denoised:
    """A denoised volume, int16 in HU, and the standard deviation of its noise before and after."""

    volume_hu: np.ndarray
    noise_before_hu: float
    noise_hu: float


def denoised_to(axial_hu: np.ndarray, wanted_hu: float) -> Denoised | None:
    """The volume with this noise, or with that of its non-local means if they have more.

    Values outside ``HU_WINDOW`` are only rounded and limited to the range of int16.

    Args:
        axial_hu: (z, y, x) in HU, any real dtype.
        wanted_hu: standard deviation of the noise in HU (``ct.noise``).

    Returns:
        The denoised volume, same shape; None if the volume has no more noise, or no soft tissue to measure it in.

    Raises:
        UserError: a value is not finite.
    """
    region, own = measured_region(axial_hu, HU_WINDOW)
    if own is None or own.total_hu <= wanted_hu:
        return None
    control, settings = denoiser()
    view_hu = reconstruct_to_int16(control, axial_hu, settings)
    view_slices_hu = measured_slices(view_hu).astype(np.float32)
    noise_slices_hu = np.clip(measured_slices(axial_hu).astype(np.float32), *HU_WINDOW) - view_slices_hu

    def noise_hu(share: float) -> float:
        return measure_noise(view_slices_hu + share * noise_slices_hu, region).total_hu

    if noise_hu(0.0) < wanted_hu < noise_hu(1.0):
        share = brentq(lambda share: noise_hu(share) - wanted_hu, 0.0, 1.0, xtol=SHARE_TOLERANCE)
    else:
        share = float(noise_hu(0.0) < wanted_hu)
    denoised_hu = np.empty(axial_hu.shape, np.int16)
    int16 = np.iinfo(np.int16)
    for plane, raw_hu, plane_hu in zip(denoised_hu, axial_hu, view_hu, strict=True):
        is_inside = (raw_hu >= HU_WINDOW[0]) & (raw_hu <= HU_WINDOW[1])
        mixed_hu = np.where(is_inside, plane_hu + share * (raw_hu - plane_hu), raw_hu)
        plane[:] = np.clip(np.rint(mixed_hu), int16.min, int16.max)
    return Denoised(denoised_hu, own.total_hu, measure_noise(measured_slices(denoised_hu), region).total_hu)


def noise_of_image_hu(volume_hu: np.ndarray, geometry: Geometry) -> float | None:
    """Standard deviation of the noise of an image in HU, as it is in its file; None without soft tissue."""
    noise = measured_region(volume_hu.transpose(geometry.axial_order), HU_WINDOW)[1]
    return None if noise is None else noise.total_hu


def denoise_images(
    images: Mapping[str, Path],
    output: Path,
    wanted_hu: Mapping[str, float],
    *,
    reader: str | None = None,
    hu_as_is: bool = False,
    workers: int,
    seconds: StageSeconds,
) -> Generator[Outcome, None, None]:
    """Write each image that has more noise than wanted with the wanted noise: int16 HU, same name and geometry.

    An image that has no more is not written, and its outcome has neither result nor error. The result of another is its
    noise in HU before and after.

    Args:
        images: paths by image.
        output: folder to write to, not that of an image; created if needed.
        wanted_hu: wanted noise by image, see ``denoised_to``.
        reader: name of the nnU-Net reader for the images, see ``ct.files.read_volume``.
        hu_as_is: also denoise images that cannot be in HU; False: they fail.
        workers: number of processes for reading and writing; 0: none.
        seconds: filled with the time spent in each stage.

    Raises:
        UserError: the disk is full.
    """
    output.mkdir(parents=True, exist_ok=True)

    def compute(image: str, raw: tuple[np.ndarray, Geometry]) -> tuple[Denoised, Geometry]:
        volume_hu, geometry = raw
        denoised = denoised_to(volume_hu.transpose(geometry.axial_order), wanted_hu[image])
        assert denoised is not None
        return denoised, geometry

    return run_cases(
        images,
        read=partial(_read_noisier, images, wanted_hu, reader, hu_as_is),
        compute=compute,
        write=partial(_write, images, output),
        workers=workers,
        seconds=seconds,
    )


def _read_noisier(
    images: Mapping[str, Path], wanted_hu: Mapping[str, float], reader: str | None, hu_as_is: bool, image: str
) -> tuple[np.ndarray, Geometry] | None:
    volume_hu, geometry = read_hu(images[image], reader=reader, hu_as_is=hu_as_is)
    return (volume_hu, geometry) if (noise_of_image_hu(volume_hu, geometry) or 0.0) > wanted_hu[image] else None


def _write(
    images: Mapping[str, Path], output: Path, image: str, computed: tuple[Denoised, Geometry]
) -> tuple[float, float]:
    denoised, geometry = computed
    write_volume(output / images[image].name, geometry.as_in_file(denoised.volume_hu), geometry)
    return denoised.noise_before_hu, denoised.noise_hu
