"""The reconstruction x~ = D(E(x)) of one whole CT volume (paper, section 3), in HU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from fvae_nnunet.errors import UserError
from fvae_nnunet.intensity import PAPER_HU_WINDOW, check_hu_window, hu_to_model, model_to_hu, round_to_int16
from fvae_nnunet.orientation import AxisOrder
from fvae_nnunet.vae.base import FrozenVAE, VAESpec
from fvae_nnunet.windows import blend_window, slice_windows

DEFAULT_OVERLAP_SLICES = 16
"""Overlap of the windows of a video VAE; about a quarter of Wan's 65 slices."""


@dataclass(frozen=True)
class Reconstruction:
    """How a volume is reconstructed; every field changes voxels.

    Attributes:
        hu_window: lower and upper HU; values outside come back as its ends.
        window_slices: slices in a window.
        overlap_slices: slices that neighbouring windows share.
    """

    hu_window: tuple[float, float]
    window_slices: int
    overlap_slices: int

    @classmethod
    def for_vae(
        cls,
        spec: VAESpec,
        *,
        hu_window: tuple[float, float] = PAPER_HU_WINDOW,
        window_slices: int | None = None,
        overlap_slices: int | None = None,
    ) -> Reconstruction:
        """Settings with the VAE's own window, and for video VAEs an overlap of 16 slices, where none are given.

        Raises:
            UserError: a window or overlap that cannot be used.
        """
        window = spec.window_slices if window_slices is None else window_slices
        if overlap_slices is None:
            overlap_slices = 0 if spec.independent_slices else min(DEFAULT_OVERLAP_SLICES, window // 2)
        slice_windows(1, window, overlap_slices)
        return cls(check_hu_window(hu_window), window, overlap_slices)

    def recorded_with(self, vae: FrozenVAE) -> dict[str, Any]:
        """Everything about this reconstruction by ``vae`` that changes a voxel, for a manifest."""
        return {
            "vae": vae.spec.name,
            "weights_sha256": vae.weights_sha256,
            "precision": str(vae.dtype).removeprefix("torch."),
            **asdict(self),
        }


@torch.no_grad()
def reconstruct_window(vae: FrozenVAE, window_hu: torch.Tensor, hu_window: tuple[float, float]) -> torch.Tensor:
    """Reconstruct slices that the VAE sees at once.

    The window is padded behind the last slice, row and column with replicated values to what the VAE admits, and cut
    back.

    Args:
        vae: the frozen VAE.
        window_hu: (d, y, x) in HU, any real dtype, any size from 1 on.
        hu_window: lower and upper HU.

    Returns:
        (d, y, x) float32 in HU inside the window, on the VAE's device.

    Raises:
        UserError: the VAE's output is not finite (an overflow in half precision).
    """
    slices, height, width = window_hu.shape
    spec = vae.spec
    behind = (
        spec.padded_inplane(width) - width,
        spec.padded_inplane(height) - height,
        spec.padded_slices(slices) - slices,
    )
    padding = (0, behind[0], 0, behind[1], 0, behind[2])
    volume = hu_to_model(window_hu.to(vae.device), hu_window)[None, None]
    volume = F.pad(volume, padding, mode="replicate")
    decoded = vae.decode(vae.encode(volume))[0, 0, :slices, :height, :width]
    if not torch.isfinite(decoded).all():
        raise UserError(f"{spec.name} in {vae.dtype} gives values that are not finite; use --precision float32")
    return model_to_hu(decoded, hu_window)


def reconstruct_volume(
    vae: FrozenVAE,
    volume_hu: np.ndarray,
    *,
    hu_window: tuple[float, float] = PAPER_HU_WINDOW,
    window_slices: int | None = None,
    overlap_slices: int | None = None,
    axis_order: AxisOrder = (0, 1, 2),
    on_slices: Callable[[int, int], object] | None = None,
) -> np.ndarray:
    """The reconstruction of a CT volume.

    Args:
        vae: the frozen VAE.
        volume_hu: (z, y, x) in HU, any real dtype; the axes may stand in another order, see ``axis_order``.
        hu_window: lower and upper HU.
        window_slices, overlap_slices: see ``Reconstruction.for_vae``.
        axis_order: transposition that brings the volume into (body axis, front-back, left-right); see
            ``orientation.axial_order``. It is undone on the result.
        on_slices: called after each window with the slices done and the slices in all, for a progress bar.

    Returns:
        float32 in HU, same shape and axes as ``volume_hu``, inside the window.

    Raises:
        UserError: the volume is not 3-dimensional, empty or not finite, or the VAE's output is not finite.
    """
    if volume_hu.ndim != 3 or 0 in volume_hu.shape:
        raise UserError(f"a CT volume has three axes (z, y, x) and at least one voxel, got shape {volume_hu.shape}")
    if not np.isfinite(volume_hu).all():
        raise UserError("the volume holds values that are not finite (NaN or infinite)")
    settings = Reconstruction.for_vae(
        vae.spec, hu_window=hu_window, window_slices=window_slices, overlap_slices=overlap_slices
    )
    axial_hu = volume_hu.transpose(axis_order)
    result = np.empty(axial_hu.shape, dtype=np.float32)
    for start, stop in slice_windows(len(axial_hu), settings.window_slices, settings.overlap_slices):
        window_hu = torch.from_numpy(np.array(axial_hu[start:stop], dtype=np.float32, order="C"))
        piece = reconstruct_window(vae, window_hu, settings.hu_window).cpu().numpy()
        blend_window(result, piece, start, settings.overlap_slices)
        if on_slices is not None:
            on_slices(stop, len(axial_hu))
    return result.transpose(tuple(np.argsort(axis_order)))


def reconstruct_to_int16(vae: FrozenVAE, volume_hu: np.ndarray, **options: Any) -> np.ndarray:
    """``reconstruct_volume`` with the same arguments, rounded to int16 HU: what views and image files hold."""
    return round_to_int16(reconstruct_volume(vae, volume_hu, **options))


@dataclass(frozen=True)
class Fidelity:
    """How near a reconstruction is to the raw volume clipped to the same HU window.

    Attributes:
        psnr_db: peak signal-to-noise ratio; the peak is the width of the window. Infinite if equal.
        mean_absolute_error_hu: mean absolute difference.
    """

    psnr_db: float
    mean_absolute_error_hu: float


def fidelity(volume_hu: np.ndarray, reconstruction_hu: np.ndarray, hu_window: tuple[float, float]) -> Fidelity:
    """PSNR and mean absolute error of a reconstruction; both arrays of one shape, in HU."""
    lower, upper = hu_window
    squared, absolute = 0.0, 0.0
    for raw_slice, reconstructed_slice in zip(volume_hu, reconstruction_hu, strict=True):
        difference = reconstructed_slice.astype(np.float64) - np.clip(raw_slice.astype(np.float64), lower, upper)
        squared += float(np.square(difference).sum())
        absolute += float(np.abs(difference).sum())
    mean_square = squared / volume_hu.size
    psnr_db = float("inf") if mean_square == 0 else 10 * np.log10((upper - lower) ** 2 / mean_square)
    return Fidelity(float(psnr_db), absolute / volume_hu.size)
