"""Whether values can be HU at all: of a volume, and of a dataset's foreground by its fingerprint.

A channel called CT need not be in HU: it may be scaled, stored with 1000 or 1024 added, or be PET that was given the
name for nnU-Net's normalisation. What is known of HU decides: air and lung lie near -1000, fat near -100, soft tissue
within 150 of 0, and nothing but a little bone near 1000. CT that was cropped, clipped to a window, padded or masked
keeps enough of this. Measured rates: docs/hounsfield.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fvae_nnunet.errors import UserError

AIR_HU = (-1100.0, -700.0)
"""Air (-1000 HU) with its noise, and aerated lung (about -850 HU)."""

SOFT_TISSUE_HU = (-150.0, 150.0)
"""Fat (about -100 HU), water (0), muscle and blood (about 50), with noise."""

ORGANS_HU = (20.0, 150.0)
"""Muscle, organs and blood, with and without contrast: a fifth and more of a body, see ``implausible_volume``."""

AIR_LUNG_FAT_HU = (-1100.0, -30.0)

POSSIBLE_HU = (-1500.0, 3100.0)
"""Air with the noise of a low dose, to the largest value of 12 bits, 3071."""

OFFSET_TISSUE_HU = (850.0, 1174.0)
"""Where soft tissue is after 1000 or 1024 was added. Of real CT less than 1 % lies here, all of it dense bone, of which
there is then as much below (``TRABECULAR_HU``) or above (``CORTICAL_HU``)."""

TRABECULAR_HU, CORTICAL_HU = (324.0, 850.0), (1174.0, 2024.0)

PADDING_SHARE = 0.01
"""A lowest value that at least this share of the voxels has is what surrounds the circle of the reconstruction."""

MASKED_SHARE = 0.05
"""Voxels of exactly 0 above this share are what was masked out."""

AS_IT_IS = "If the values are HU all the same, take them with `hu_as_is=True`"

FEWEST_VALUES = 1000
"""Of fewer only the range is judged; shares would be chance."""

LEAVE_OUT = "leave the channel out (`channels`, with the numbers of the others)"

_SAMPLE = 1 << 21


def sample_of(volume: np.ndarray) -> np.ndarray:
    """About two million values of an array; the step is odd, so as not to fall on the same columns again and again."""
    values = volume.reshape(-1)
    return values[:: max(1, values.size // _SAMPLE) | 1]


def without_padding(values: np.ndarray) -> np.ndarray:
    """The values without the lowest, where that is a padding (``PADDING_SHARE``) and not all."""
    padding = values == values.min()
    return values[~padding] if PADDING_SHARE <= padding.mean() < 1 else values


def share_between(values: np.ndarray, ends: tuple[float, float]) -> float:
    """The share of the values from one end to the other."""
    return float(np.mean((values >= ends[0]) & (values <= ends[1])))


def check_volume_hu(volume: np.ndarray, where: object) -> None:
    """Raise UserError where a volume cannot be in HU, with the likely cause.

    Args:
        volume: any shape, real dtype. Voxels that are not finite are for others to refuse.
        where: the file, for the message.
    """
    reason = implausible_volume(volume)
    if reason is not None:
        raise UserError(f"{where} cannot be in HU: {reason}. Convert it to HU. {AS_IT_IS}")


def implausible_volume(volume: np.ndarray) -> str | None:
    """Why the values of a volume cannot be HU, or None. Empty and not finite volumes pass."""
    everything = sample_of(volume).astype(np.float32)
    if everything.size == 0 or not np.isfinite(everything).all() or everything.min() == everything.max():
        return None
    values = without_padding(everything)
    masked = values == 0
    if MASKED_SHARE <= masked.mean() < 1:
        values = values[~masked]
    low, middle, high = (float(value) for value in np.percentile(values, (1, 50, 99)))
    said = f"98 % of the values lie from {low:.4g} to {high:.4g}, half of them below {middle:.4g}"
    left = np.unique(np.rint(values)).size
    within_5 = share_between(values, (-5, 5)) - share_between(values, (0, 0))
    if (everything.min() >= -20 and high <= 20) or within_5 >= 0.4:
        return f"{said}; {left} distinct whole HU would be left. {_SCALED}"
    if everything.size < FEWEST_VALUES:
        return None
    if share_between(values, POSSIBLE_HU) < 0.7:
        return f"{said}, so that most are no HU of a body. {_ELSE}"
    dense = share_between(values, OFFSET_TISSUE_HU)
    bone = max(share_between(values, TRABECULAR_HU), 2 * share_between(values, CORTICAL_HU))
    if dense >= 0.03 and dense > max(bone, share_between(values, AIR_HU)):
        return f"{dense:.0%} of the voxels lie near 1000, where next to nothing of a body does. {_OFFSET}"
    body = values[values > AIR_HU[1]]
    organs = share_between(body, ORGANS_HU) if body.size else 0.0
    if organs < 0.04 or share_between(values, ORGANS_HU) < 0.01:
        return f"{said}; {organs:.1%} of the body lies from {ORGANS_HU[0]:g} to {ORGANS_HU[1]:g}, as organs do. {_ELSE}"
    if share_between(everything, AIR_LUNG_FAT_HU) >= 0.01:
        return None
    # nothing of air, lung and fat: an organ or a brain cut out can be so, if it looks like soft tissue
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
    """Raise UserError where the foreground of a channel cannot be in HU, by what the plans keep of the fingerprint.

    Args:
        plans: the content of the plans file.
        names: of all channels.
        channels: those that count as CT.
        leave_out: how to leave a channel out, where there are several.
        as_it_is: what to do where the values are HU nevertheless; a sentence without its full stop.
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

    Only what no tissue can be is refused here; volumes tell more (``implausible_volume``).

    Args:
        properties: of a channel in nnU-Net's fingerprint: mean, std, median, min, max, percentile_00_5, ...
    """
    low, high = float(properties["percentile_00_5"]), float(properties["percentile_99_5"])
    middle, sd = float(properties["median"]), float(properties["std"])
    least, most = float(properties["min"]), float(properties["max"])
    said = (
        f"99 % of the foreground lies from {low:.4g} to {high:.4g} (median {middle:.4g}, standard deviation {sd:.3g})"
    )
    if max(-low, high) <= 20 or 0 < sd < 5 or (least >= 0 and middle < 10):
        return f"{said}. {_SCALED}"
    if least >= 0 and most <= 255 and middle > 105 and sd < 12:
        return f"{said}, all of it from 0 to 255. {_SCALED}"
    if 700 <= middle <= 1400 and high - middle < 400:
        return f"{said}. {_OFFSET}"
    if not POSSIBLE_HU[0] <= middle <= POSSIBLE_HU[1]:
        return f"{said}. {_ELSE}"
    return None


_SCALED = "It seems to be scaled (to 0 to 1, 0 to 255, standardised) or no CT (PET in SUV)"
_OFFSET = "An offset of 1000 or 1024 seems to be added (or the sign turned, or the range scaled)"
_ELSE = "It seems to be no CT (PET, MR), scaled, or stored with another slope or intercept"
