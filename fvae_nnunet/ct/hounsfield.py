"""Check whether the values of a volume, or of a dataset's foreground by its fingerprint, can be HU.

A channel called CT is not necessarily in HU: it may be scaled, stored with an offset of 1000 or 1024, or be PET that
got this name for nnU-Net's normalisation. The checks use known HU ranges: air and lung near -1000, fat near -100, soft
tissue within 150 of 0, and only a little bone near 1000. Cropped, clipped, padded or masked CT keeps enough of this.
Measured error rates: docs/hounsfield.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fvae_nnunet.errors import UserError
from fvae_nnunet.numbers_as_text import counted

AIR_HU = (-1100.0, -700.0)
"""Air (-1000 HU) with its noise, and aerated lung (about -850 HU)."""

SOFT_TISSUE_HU = (-150.0, 150.0)
"""Fat (about -100 HU), water (0), muscle and blood (about 50), with noise."""

ORGANS_HU = (20.0, 150.0)
"""Muscle, organs and blood, with and without contrast: at least a fifth of a body, see ``implausible_volume``."""

AIR_LUNG_FAT_HU = (-1100.0, -30.0)

POSSIBLE_HU = (-1500.0, 3100.0)
"""From air with low-dose noise to 3071, the largest 12-bit value."""

OFFSET_TISSUE_HU = (850.0, 1174.0)
"""Range of soft tissue after 1000 or 1024 was added. In real CT less than 1 % of the voxels are here, all dense bone;
similar shares are then below (``TRABECULAR_HU``) or above it (``CORTICAL_HU``)."""

TRABECULAR_HU, CORTICAL_HU = (324.0, 850.0), (1174.0, 2024.0)

PADDING_SHARE = 0.01
"""Share of the voxels with the lowest value from which on they count as padding around the reconstruction circle."""

MASKED_SHARE = 0.05
"""Share of voxels of exactly 0 from which on they count as masked out."""

AS_IT_IS = "If the values are HU nevertheless, accept them with `hu_as_is=True`"

FEWEST_VALUES = 1000
"""With fewer values only the range is checked, because shares would be random."""

LEAVE_OUT = "leave the channel out (`channels`, with the numbers of the others)"

_SAMPLE = 1 << 21


def sample_of(volume: np.ndarray) -> np.ndarray:
    """About two million values of an array; the step is odd, so that it does not keep hitting the same columns."""
    values = volume.reshape(-1)
    return values[:: max(1, values.size // _SAMPLE) | 1]


def without_padding(values: np.ndarray) -> np.ndarray:
    """The values without the lowest one if it is padding (``PADDING_SHARE``) and other values are left."""
    padding = values == values.min()
    return values[~padding] if PADDING_SHARE <= padding.mean() < 1 else values


def share_between(values: np.ndarray, ends: tuple[float, float]) -> float:
    """The share of values in a range, both ends included."""
    return float(np.mean((values >= ends[0]) & (values <= ends[1])))


def check_volume_hu(volume: np.ndarray, where: object) -> None:
    """Raise UserError, with the likely cause, if a volume cannot be in HU.

    Args:
        volume: any shape, real dtype. Volumes with voxels that are not finite are not checked here.
        where: file or name for the message.
    """
    reason = implausible_volume(volume)
    if reason is not None:
        raise UserError(f"{where} cannot be in HU: {reason}. Convert it to HU. {AS_IT_IS}")


def implausible_volume(volume: np.ndarray) -> str | None:
    """Why the values of a volume cannot be HU, or None. Empty, constant and non-finite volumes pass."""
    everything = sample_of(volume).astype(np.float32)
    if everything.size == 0 or not np.isfinite(everything).all() or everything.min() == everything.max():
        return None
    values = without_padding(everything)
    masked = values == 0
    if MASKED_SHARE <= masked.mean() < 1:
        values = values[~masked]
    low, middle, high = (float(value) for value in np.percentile(values, (1, 50, 99)))
    said = f"98 % of the values are between {low:.4g} and {high:.4g}, with a median of {middle:.4g}"
    left = np.unique(np.rint(values)).size
    within_5 = share_between(values, (-5, 5)) - share_between(values, (0, 0))
    if (everything.min() >= -20 and high <= 20) or within_5 >= 0.4:
        return f"{said}; rounded, they have {counted(left, 'distinct value')}. {_SCALED}"
    if everything.size < FEWEST_VALUES:
        return None
    if share_between(values, POSSIBLE_HU) < 0.7:
        return f"{said}, so most are not HU of a body. {_ELSE}"
    dense = share_between(values, OFFSET_TISSUE_HU)
    bone = max(share_between(values, TRABECULAR_HU), 2 * share_between(values, CORTICAL_HU))
    if dense >= 0.03 and dense > max(bone, share_between(values, AIR_HU)):
        return f"{dense:.0%} of the voxels are near 1000, where a body has almost none. {_OFFSET}"
    body = values[values > AIR_HU[1]]
    organs = share_between(body, ORGANS_HU) if body.size else 0.0
    if organs < 0.04 or share_between(values, ORGANS_HU) < 0.01:
        ends = f"{ORGANS_HU[0]:g} to {ORGANS_HU[1]:g} HU"
        return f"{said}; only {organs:.1%} of the body is in the range of organs, {ends}. {_ELSE}"
    if share_between(everything, AIR_LUNG_FAT_HU) >= 0.01:
        return None
    # no air, lung or fat: possible for a cropped organ or brain if it looks like soft tissue
    most = everything.max()
    eight_bits = everything.min() == 0 and 150 < most <= 255 and (most == 255 or np.mean(everything == most) < 1e-3)
    if share_between(values, (-30, 300)) >= 0.8 and 15 <= middle <= 105 and not eight_bits:
        return None
    return f"{said}; there is no air, lung or fat (below -30 HU). {_SCALED if high <= 255 else _ELSE}"


def check_foreground_hu(
    plans: Mapping[str, Any],
    names: Sequence[str],
    channels: Sequence[int],
    *,
    leave_out: str = LEAVE_OUT,
    as_it_is: str = AS_IT_IS,
) -> None:
    """Raise UserError if the foreground of a channel cannot be in HU, judged by the fingerprint stored in the plans.

    Args:
        plans: content of the plans file.
        names: names of all channels.
        channels: indices of the channels that count as CT.
        leave_out: how to leave a channel out, used if there are several.
        as_it_is: what to do if the values are HU nevertheless; a sentence without its full stop.
    """
    for channel in channels:
        properties = plans.get("foreground_intensity_properties_per_channel", {}).get(str(channel))
        reason = None if properties is None else implausible_foreground(properties)
        if reason is not None:
            raise UserError(
                f"channel {channel} ({names[channel]}) cannot be in HU: {reason}. Convert the images to HU and plan "
                f"and preprocess again{f', or {leave_out}' if names[1:] else ''}. {as_it_is}"
            )


def implausible_foreground(properties: Mapping[str, float]) -> str | None:
    """Why the foreground voxels of a dataset cannot be HU, or None.

    Only values that are impossible for any tissue are refused; ``implausible_volume`` is stricter.

    Args:
        properties: a channel of nnU-Net's fingerprint: mean, std, median, min, max, percentile_00_5, ...
    """
    low, high = float(properties["percentile_00_5"]), float(properties["percentile_99_5"])
    middle, sd = float(properties["median"]), float(properties["std"])
    least, most = float(properties["min"]), float(properties["max"])
    said = (
        f"99 % of the foreground is between {low:.4g} and {high:.4g} (median {middle:.4g}, standard deviation {sd:.3g})"
    )
    if max(-low, high) <= 20 or 0 < sd < 5 or (least >= 0 and middle < 10):
        return f"{said}. {_SCALED}"
    if least >= 0 and most <= 255 and middle > 105 and sd < 12:
        return f"{said}, all of it between 0 and 255. {_SCALED}"
    if 700 <= middle <= 1400 and high - middle < 400:
        return f"{said}. {_OFFSET}"
    if not POSSIBLE_HU[0] <= middle <= POSSIBLE_HU[1]:
        return f"{said}. {_ELSE}"
    return None


_SCALED = "It seems to be scaled (to 0-1, to 0-255, or standardised) or not CT (such as PET in SUV)"
_OFFSET = "It seems to have an offset of 1000 or 1024 (or an inverted sign, or a scaled range)"
_ELSE = "It seems not to be CT (but PET or MR), or to be scaled or stored with another slope or intercept"
