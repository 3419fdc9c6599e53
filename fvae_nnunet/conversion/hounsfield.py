"""Convert the values of a file to HU: decide whether slope and intercept still have to be applied.

CT-RATE's first release contains the scanner's stored values, its second release HU. The metadata of both give the slope
and intercept that convert stored values to HU. Applied twice, they move soft tissue to -1000 HU; not applied, air stays
at about 0. The folder name does not prove either, so the values decide.
"""

from __future__ import annotations

import numpy as np

from fvae_nnunet.ct.hounsfield import AIR_HU, SOFT_TISSUE_HU, sample_of, share_between, without_padding
from fvae_nnunet.ct.intensity import round_to_int16
from fvae_nnunet.errors import UserError

LEAST_SHARE = 0.03
"""Smallest share of air, and of soft tissue, among all voxels except padding. A chest has far more of both. Bone above
874 HU, which becomes soft tissue if slope 1 and intercept -1024 are applied twice, makes up less than 1 %."""


def to_hu(volume: np.ndarray, rescale: tuple[float, float] | None, *, mode: str = "auto") -> tuple[np.ndarray, bool]:
    """The volume as int16 HU, and whether slope and intercept were applied.

    Args:
        volume: values of a file (z, y, x) as SimpleITK reads them, the slope and intercept of its own header applied.
        rescale: slope and intercept of the scanner; None if unknown.
        mode: ``auto``: the values as they are or rescaled, whichever is plausible according to ``implausible``; if both
            are, it is an error unless slope and intercept change nothing. ``hu``: as they are. ``stored``: rescaled.

    Raises:
        UserError: neither or both give plausible HU, slope and intercept are needed but unknown, or the HU do not fit
            int16.
    """
    if mode == "hu":
        return round_to_int16(volume), False
    if mode == "stored":
        if rescale is None:
            raise UserError("it has no metadata with slope and intercept; give `metadata`, or `values='hu'`")
        return round_to_int16(_rescaled(volume, rescale)), True
    sample = sample_of(volume)
    against = implausible(sample)
    if rescale in (None, (1.0, 0.0)):
        if against is None:
            return round_to_int16(volume), False
        known = "its metadata has slope 1 and intercept 0" if rescale else "it has no metadata with slope and intercept"
        raise UserError(f"the values are not HU: {against}; {known}. {_REMEDY}")
    slope, intercept = rescale
    against_rescaled = implausible(_rescaled(sample, rescale))
    if against is None and against_rescaled is None:
        raise UserError(
            f"the values look like HU both as they are and with slope {slope:g} and intercept {intercept:g}. {_REMEDY}"
        )
    if against is None:
        return round_to_int16(volume), False
    if against_rescaled is None:
        return round_to_int16(_rescaled(volume, rescale)), True
    raise UserError(
        f"the values are not HU as they are ({against}), nor with slope {slope:g} and intercept {intercept:g} "
        f"({against_rescaled}). {_REMEDY}"
    )


_REMEDY = "Inspect the image; if it is correct, choose `values='hu'` (use as is) or `values='stored'` (apply both)"


def implausible(volume_hu: np.ndarray) -> str | None:
    """Why a volume is not a chest CT in HU, or None: air and soft tissue must each make up ``LEAST_SHARE`` or more.

    Args:
        volume_hu: any shape; a regular sample of about two million voxels is examined. An empty one is implausible.
    """
    values = sample_of(volume_hu)
    if values.size == 0:
        return "there are no voxels"
    values = without_padding(values)
    for name, ends in (("air", AIR_HU), ("soft tissue", SOFT_TISSUE_HU)):
        share = share_between(values, ends)
        if not share >= LEAST_SHARE:
            return f"{share:.1%} of the voxels are {name}, {ends[0]:g} to {ends[1]:g} HU"
    return None


def _rescaled(volume: np.ndarray, rescale: tuple[float, float]) -> np.ndarray:
    slope, intercept = rescale
    rescaled = volume.astype(np.float32)
    rescaled *= slope
    rescaled += intercept
    return rescaled
