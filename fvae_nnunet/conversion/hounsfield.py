"""HU made right: whether the values of a file are HU already or still need slope and intercept.

CT-RATE's first release holds the scanner's stored values, its second HU; the metadata of both have the slope and
intercept that lead from stored values to HU. Applied twice, they put soft tissue to -1000 HU; not applied, air to about
0. The folder's name is no proof of either, so the values decide.
"""

from __future__ import annotations

import numpy as np

from fvae_nnunet.ct.hounsfield import AIR_HU, SOFT_TISSUE_HU, sample_of, share_between, without_padding
from fvae_nnunet.ct.intensity import round_to_int16
from fvae_nnunet.errors import UserError

LEAST_SHARE = 0.03
"""Of all voxels but padding. A chest has far more of both; of bone above 874 HU, which slope 1 and intercept -1024
applied twice would put among soft tissue, it has less than 1 %."""


def to_hu(volume: np.ndarray, rescale: tuple[float, float] | None, *, mode: str = "auto") -> tuple[np.ndarray, bool]:
    """The volume in HU, int16, and whether slope and intercept were applied.

    Args:
        volume: values of a file (z, y, x), with its own header's slope and intercept applied, as SimpleITK reads it.
        rescale: slope and intercept of the scanner; None where unknown.
        mode: ``auto``: what makes plausible HU, as ``implausible`` has it: the values as they are, or rescaled. If both
            do, slope and intercept must change nothing. ``hu``: as they are. ``stored``: rescaled.

    Raises:
        UserError: nothing makes plausible HU, both do, slope and intercept are needed and unknown, or HU do not fit
            int16.
    """
    if mode == "hu":
        return round_to_int16(volume), False
    if mode == "stored":
        if rescale is None:
            raise UserError("there is no metadata with its slope and intercept; give `metadata`, or `values='hu'`")
        return round_to_int16(_rescaled(volume, rescale)), True
    sample = sample_of(volume)
    against = implausible(sample)
    if rescale in (None, (1.0, 0.0)):
        if against is None:
            return round_to_int16(volume), False
        known = "slope 1 and intercept 0" if rescale else "no metadata with its slope and intercept"
        raise UserError(f"the values are no HU: {against}; there is {known}. {_REMEDY}")
    slope, intercept = rescale
    against_rescaled = implausible(_rescaled(sample, rescale))
    if against is None and against_rescaled is None:
        raise UserError(
            f"the values look like HU as they are and also with slope {slope:g} and intercept {intercept:g}. {_REMEDY}"
        )
    if against is None:
        return round_to_int16(volume), False
    if against_rescaled is None:
        return round_to_int16(_rescaled(volume, rescale)), True
    raise UserError(
        f"the values are no HU as they are ({against}), nor with slope {slope:g} and intercept {intercept:g} "
        f"({against_rescaled}). {_REMEDY}"
    )


_REMEDY = "Look at the image; if it is right, `values='hu'` (take as is) or `values='stored'` (apply both) decides"


def implausible(volume_hu: np.ndarray) -> str | None:
    """Why a volume is no chest CT in HU, or None: at least ``LEAST_SHARE`` must be air and as much soft tissue.

    Args:
        volume_hu: any shape; a regular sample of about two million voxels is looked at. Empty: implausible.
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
