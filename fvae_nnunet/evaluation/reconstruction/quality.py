"""Effects of a view on one CT volume: fidelity, errors by tissue and label, noise, boundaries, seams.

Raw volume and view are both clipped to the HU window before measuring, so that the window does not count as an error of
the view. For definitions and their reasons, see docs/reconstruction_quality.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fvae_nnunet.ct.hu_windows import check_hu_window
from fvae_nnunet.ct.noise import homogeneous_region, measure_noise, noise_figures
from fvae_nnunet.ct.padding import padding_as_air
from fvae_nnunet.ct.places import EDGE_HU_PER_PIXEL, slopes, soft_tissue, tissue_masks
from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.reconstruction.boundary import NO_SURFACE, SLOPE_NOISE_PART, EdgePair
from fvae_nnunet.evaluation.reconstruction.seams import seam_score
from fvae_nnunet.nnunet.labels import Label

COARSE_PIXELS = 3.0
"""In-plane Gaussian that suppresses noise and edges: the remaining error is a change of brightness."""

SSIM_WINDOW_VOXELS = 7
"""Edge length of the uniformly weighted cube for SSIM, scikit-image's default."""

_SLAB_SLICES = 32


@dataclass(frozen=True)
class Errors:
    """HU errors of the view, view minus raw, over a set of voxels; NaN if it is empty."""

    voxels: int
    mae_hu: float
    bias_hu: float


NO_ERRORS = Errors(0, math.nan, math.nan)

LABEL_IN_NO_VOXEL = asdict(NO_ERRORS) | asdict(NO_SURFACE)
"""The figures of a label that is absent from a case."""


def evaluate_view(
    raw_hu: np.ndarray,
    view_hu: np.ndarray,
    *,
    spacing_mm: Sequence[float],
    hu_window: tuple[float, float],
    segmentation: np.ndarray | None = None,
    labels: Sequence[Label] = (),
    borders: Sequence[int] = (),
) -> dict[str, Any]:
    """All measurements in one case.

    Args:
        raw_hu, view_hu: volumes (z, y, x) in HU, any real dtype, axial slices first.
        spacing_mm: voxel size (z, y, x).
        hu_window: HU window for clipping; its width is the peak of PSNR and the data range of SSIM.
        segmentation: label map (z, y, x), or None.
        labels: values, or tuples of values (regions), to measure in.
        borders: slices at which a window of the VAE begins, for the seam score; empty: no score.

    Returns:
        ``volume``, ``tissues`` and ``labels`` of a case as described in `reconstruction.summary`; the keys of labels
        are ``str(label)``.

    Raises:
        UserError: shapes differ or are not 3-dimensional, spacing or window is invalid, or values are not finite.
    """
    _check(raw_hu, view_hu, spacing_mm, segmentation)
    lower, upper = check_hu_window(hu_window)
    # before clipping: in a narrow window, air and bone would be soft tissue
    tissue_hu = padding_as_air(raw_hu)
    in_tissues, soft = tissue_masks(tissue_hu), soft_tissue(tissue_hu)
    soft_edges = soft & (slopes(tissue_hu.astype(np.float32)) >= EDGE_HU_PER_PIXEL)
    region = homogeneous_region(tissue_hu)
    flat = region if segmentation is None else homogeneous_region(tissue_hu, flattest_part=SLOPE_NOISE_PART)
    raw_hu, view_hu = (np.clip(volume.astype(np.float32), lower, upper) for volume in (raw_hu, view_hu))
    difference_hu = view_hu - raw_hu
    whole = _errors(difference_hu)
    mse_hu2 = float(np.square(difference_hu).mean(dtype=np.float64))
    raw_noise, view_noise = (measure_noise(volume_hu, region) for volume_hu in (raw_hu, view_hu))
    volume = {
        "psnr_db": math.inf if mse_hu2 == 0 else 10 * math.log10((upper - lower) ** 2 / mse_hu2),
        "ssim": ssim_3d(raw_hu, view_hu, data_range=upper - lower),
        "mse_hu2": mse_hu2,
        "mse_normalised": mse_hu2 / (upper - lower) ** 2,
        "mae_hu": whole.mae_hu,
        "bias_hu": whole.bias_hu,
        **_soft_tissue_errors(difference_hu, soft, soft_edges),
        **noise_figures(raw_noise, view_noise),
        "noise_ratio": _ratio(view_noise.total_hu, raw_noise.total_hu),
        "noise_fine_ratio": _ratio(view_noise.fine_hu, raw_noise.fine_hu),
        "noise_coarse_ratio": _ratio(view_noise.coarse_hu, raw_noise.coarse_hu),
        "noise_voxels": int(region.sum()),
        "seam_score": seam_score(raw_hu, view_hu, borders),
    }
    tissues = {name: asdict(_errors(difference_hu[mask])) for name, mask in in_tissues.items()}
    in_labels = {}
    if segmentation is not None:
        edges = EdgePair(raw_hu, view_hu, spacing_mm=spacing_mm, region=flat)
        for label in labels:
            mask = np.isin(segmentation, label)
            in_labels[str(label)] = asdict(_errors(difference_hu[mask])) | asdict(edges.shift_at(mask))
    return {"volume": volume, "tissues": tissues, "labels": in_labels}


def _soft_tissue_errors(difference_hu: np.ndarray, soft: np.ndarray, soft_edges: np.ndarray) -> dict[str, float]:
    """Mean absolute errors in `places.SOFT_HU`: in all of it, at its edges, and of the smoothed error."""
    from scipy import ndimage

    coarse_hu = ndimage.gaussian_filter(difference_hu, (0, COARSE_PIXELS, COARSE_PIXELS), mode="nearest")
    places = {"soft": difference_hu[soft], "soft_edges": difference_hu[soft_edges], "soft_coarse": coarse_hu[soft]}
    return {f"{name}_mae_hu": _errors(errors_hu).mae_hu for name, errors_hu in places.items()}


def ssim_3d(raw: np.ndarray, view: np.ndarray, *, data_range: float) -> float:
    """Mean structural similarity (Wang et al., IEEE TIP 13:600, 2004) of two volumes, over cubes.

    Equals `skimage.metrics.structural_similarity(raw, view, data_range=data_range)` of the whole volume, but is
    computed in slabs, because that function holds a dozen arrays of the volume's size.

    Args:
        raw, view: volumes (z, y, x), floating point.
        data_range: range of possible values.

    Returns:
        Mean over all cubes of ``SSIM_WINDOW_VOXELS`` inside the volume, at most 1; NaN if there is none.
    """
    from skimage.metrics import structural_similarity

    if min(raw.shape) < SSIM_WINDOW_VOXELS:
        return math.nan
    margin = SSIM_WINDOW_VOXELS // 2
    total, count = 0.0, 0
    for first in range(margin, len(raw) - margin, _SLAB_SLICES):
        last = min(first + _SLAB_SLICES, len(raw) - margin)
        slab = slice(first - margin, last + margin)
        _, similarity = structural_similarity(
            raw[slab], view[slab], win_size=SSIM_WINDOW_VOXELS, data_range=data_range, full=True
        )
        inside = similarity[margin:-margin, margin:-margin, margin:-margin]
        total += float(inside.sum(dtype=np.float64))
        count += inside.size
    return total / count


def _ratio(view: float, raw: float) -> float:
    return view / raw if raw else math.nan


def _errors(difference_hu: np.ndarray) -> Errors:
    if not difference_hu.size:
        return NO_ERRORS
    absolute = float(np.abs(difference_hu).mean(dtype=np.float64))
    return Errors(difference_hu.size, absolute, float(difference_hu.mean(dtype=np.float64)))


def _check(
    raw_hu: np.ndarray, view_hu: np.ndarray, spacing_mm: Sequence[float], segmentation: np.ndarray | None
) -> None:
    shapes = {"raw volume": raw_hu.shape, "view": view_hu.shape}
    if segmentation is not None:
        shapes["segmentation"] = segmentation.shape
    if raw_hu.ndim != 3 or 0 in raw_hu.shape or len(set(shapes.values())) > 1:
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise UserError(f"volumes of equal shape (z, y, x) are needed, got {found}")
    if len(spacing_mm) != 3 or not all(math.isfinite(edge) and edge > 0 for edge in spacing_mm):
        raise UserError(f"the spacing must be three positive numbers in mm (z, y, x), got {tuple(spacing_mm)}")
    for name, volume in (("raw volume", raw_hu), ("view", view_hu)):
        if volume.dtype.kind == "f" and not np.isfinite(volume).all():
            raise UserError(f"the {name} holds values that are not finite (NaN or infinite)")
