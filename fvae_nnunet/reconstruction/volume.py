"""Reconstruct a whole CT volume, x~ = D(E(x)) (paper, section 3), in HU."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from fvae_nnunet.ct.intensity import POSSIBLE_HU, round_to_int16, truncate_to_int16
from fvae_nnunet.ct.noise import measure_noise, measured_region, measured_slices, noise_figures
from fvae_nnunet.ct.orientation import AxisOrder
from fvae_nnunet.ct.padding import zero_padding
from fvae_nnunet.ct.volume import CT
from fvae_nnunet.errors import UserError
from fvae_nnunet.jobs.shared_arrays import compact
from fvae_nnunet.reconstruction.schemes import reconstructed_slices
from fvae_nnunet.reconstruction.settings import ReconstructionSettings
from fvae_nnunet.vae.base import FrozenVAE

PAPER_AXIS_ORDER: AxisOrder = (0, 2, 1)
"""From SimpleITK's (z, y, x) to the (z, x, y) of the paper's scripts, which read files with nibabel."""


@torch.no_grad()
def reconstruct_volume(
    vae: FrozenVAE,
    volume_hu: np.ndarray,
    settings: ReconstructionSettings | None = None,
    *,
    axis_order: AxisOrder = (0, 1, 2),
    spacing_mm: Sequence[float] | None = None,
    case: str = "",
    on_slices: Callable[[int, int], object] | None = None,
    dtype: type[np.float32 | np.int16] = np.float32,
) -> np.ndarray:
    """Reconstruct a CT volume.

    Zeros around the image (``padding.zero_padding``) remain 0, so that nnU-Net crops a view like the image; except with
    the scheme ``paper``, which gives the values of the paper's scripts.

    Args:
        vae: the frozen VAE.
        volume_hu: (z, y, x) in HU, any real dtype; the axes may be in another order, see ``axis_order``.
        settings: reconstruction settings; None: the defaults of ``ReconstructionSettings.for_vae``.
        axis_order: transposition of the volume to (body axis, front-back, left-right), see
            ``orientation.axial_order``. It is reverted in the result. The scheme ``paper`` ignores it.
        spacing_mm: voxel size in the order of the volume's axes; required if the settings specify a pixel size.
        case: mixed into ``settings.posterior_seed``, so that every case has its own draws, independent of the order
            of the cases.
        on_slices: called with the number of slices done and the total, for a progress bar.
        dtype: float32, or int16: rounded (or truncated, by the settings), without a float32 volume in memory.

    Returns:
        HU, same shape and axes as ``volume_hu``, inside the window (padding: 0).

    Raises:
        UserError: the volume is not 3-dimensional, empty or not finite, or the VAE's output is not finite.
    """
    if volume_hu.ndim != 3 or 0 in volume_hu.shape:
        raise UserError(
            f"a CT volume must have three axes (z, y, x) and at least one voxel, got shape {volume_hu.shape}"
        )
    if volume_hu.dtype.kind == "f" and not all(np.isfinite(plane).all() for plane in volume_hu):
        raise UserError("the volume has values that are not finite (NaN or infinite)")
    settings = settings or ReconstructionSettings.for_vae(vae.spec)
    order = PAPER_AXIS_ORDER if settings.scheme == "paper" else axis_order
    axial_hu = volume_hu.transpose(order)
    result = np.empty(axial_hu.shape, dtype=dtype)
    to_int16 = truncate_to_int16 if settings.truncate else round_to_int16
    done = 0
    vae = vae.for_volume(axial_hu, settings.hu_window)
    plane_mm = None if spacing_mm is None else (float(spacing_mm[order[1]]), float(spacing_mm[order[2]]))
    for slices_hu in reconstructed_slices(vae, axial_hu, settings, _generator(settings, case), plane_mm):
        result[done : done + len(slices_hu)] = to_int16(slices_hu) if dtype is np.int16 else slices_hu
        done += len(slices_hu)
        if on_slices is not None:
            on_slices(done, len(axial_hu))
    padding = None if settings.scheme == "paper" else zero_padding(axial_hu)
    if padding is not None:
        result[padding] = 0
    return result.transpose(tuple(np.argsort(order)))


reconstruct_to_int16 = partial(reconstruct_volume, dtype=np.int16)
"""``reconstruct_volume`` with the dtype of views and image files."""


def _generator(settings: ReconstructionSettings, case: str) -> torch.Generator | None:
    if settings.posterior_seed is None:
        return None
    digest = hashlib.sha256(f"{settings.posterior_seed}\0{case}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


@dataclass(frozen=True)
class Fidelity:
    """Error of a reconstruction compared with the raw volume clipped to the same HU window, and the noise of both.

    Attributes:
        psnr_db: peak signal-to-noise ratio; the peak is the width of the window. Infinite if both are equal.
        mean_absolute_error_hu: mean absolute difference.
        noise_raw_hu, noise_view_hu: standard deviation of the noise (``noise.Noise``) in the clipped raw volume and in
            the reconstruction, in the same region; None without soft tissue. ``noise_fine_...`` and
            ``noise_coarse_...`` are its two parts.
        lowest_hu, highest_hu: range of the unclipped raw volume.
        impossible_voxels: number of raw voxels outside ``intensity.POSSIBLE_HU``.
    """

    psnr_db: float
    mean_absolute_error_hu: float
    noise_raw_hu: float | None
    noise_view_hu: float | None
    noise_fine_raw_hu: float | None
    noise_fine_view_hu: float | None
    noise_coarse_raw_hu: float | None
    noise_coarse_view_hu: float | None
    lowest_hu: float
    highest_hu: float
    impossible_voxels: int


def fidelity(
    volume_hu: np.ndarray,
    reconstruction_hu: np.ndarray,
    hu_window: tuple[float, float],
    *,
    axis_order: AxisOrder = (0, 1, 2),
) -> Fidelity:
    """Measure the fidelity of a reconstruction; both arrays have the same shape and are in HU.

    Noise is measured on at most ``noise.MEASURED_SLICES`` axial slices; ``axis_order`` as for ``reconstruct_volume``.
    """
    lower, upper = hu_window
    squared, absolute, impossible = 0.0, 0.0, 0
    lowest_hu, highest_hu = float(volume_hu.min()), float(volume_hu.max())
    for raw_slice, reconstructed_slice in zip(volume_hu, reconstruction_hu, strict=True):
        difference = reconstructed_slice.astype(np.float64) - np.clip(raw_slice.astype(np.float64), lower, upper)
        squared += float(np.square(difference).sum())
        absolute += float(np.abs(difference).sum())
        if lowest_hu < POSSIBLE_HU[0] or highest_hu > POSSIBLE_HU[1]:
            impossible += int(np.count_nonzero((raw_slice < POSSIBLE_HU[0]) | (raw_slice > POSSIBLE_HU[1])))
    mean_square = squared / volume_hu.size
    psnr_db = float("inf") if mean_square == 0 else 10 * np.log10((upper - lower) ** 2 / mean_square)
    region, raw = measured_region(volume_hu.transpose(axis_order), hu_window)
    view = None if raw is None else measure_noise(measured_slices(reconstruction_hu.transpose(axis_order)), region)
    return Fidelity(
        float(psnr_db),
        absolute / volume_hu.size,
        **noise_figures(raw, view),
        lowest_hu=lowest_hu,
        highest_hu=highest_hu,
        impossible_voxels=impossible,
    )


def reconstruct(ct: CT, vae: FrozenVAE, settings: ReconstructionSettings | None = None) -> CT:
    """Reconstruct a CT as ``fvae-reconstruct`` does: int16 HU inside the window, with the same geometry.

    The VAE sees axial slices, regardless of the orientation of the file.

    Args:
        ct: the CT in HU.
        vae: the frozen VAE.
        settings: reconstruction settings; None: the defaults of ``ReconstructionSettings.for_vae``.

    Raises:
        UserError: as for ``reconstruct_volume``, or ``ct`` is not a CT.
    """
    if not isinstance(ct, CT):
        raise UserError(f"ct must be a CT (read_ct, CT.from_array), got {type(ct).__name__}")
    return ct.with_hu(
        reconstruct_to_int16(
            vae, compact(ct.hu), settings, axis_order=ct.geometry.axial_order, spacing_mm=ct.spacing_mm
        )
    )
