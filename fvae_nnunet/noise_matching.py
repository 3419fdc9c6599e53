"""The strength at which a control removes as much noise as a view, so that the two are compared fairly.

How much noise a view leaves is read from its records (``reconstruction.fidelity``): noise in the view divided by noise
in the raw image, median over the cases. The control is measured in the same way on some of these cases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from fvae_nnunet.controls import Control, find_control
from fvae_nnunet.errors import UserError
from fvae_nnunet.manifest import Manifest
from fvae_nnunet.noise import evenly_spread, homogeneous_region, mean_of_known, measured_slices, noise_sd_hu
from fvae_nnunet.reconstruction import reconstruct_to_int16
from fvae_nnunet.reconstruction_settings import Reconstruction

MATCHED_CASES = 8
"""Cases on which the control is measured."""

RATIO_TOLERANCE = 0.002
"""How far the control's median ratio may be from the view's."""

STRENGTH_DIGITS = 4
"""Significant digits of a strength: more are of no use, and machines whose sums differ in the last bit agree."""


@dataclass(frozen=True)
class NoiseOfView:
    """What a view does to noise.

    Attributes:
        ratios: noise in the view divided by noise in the raw image, for each case that has soft tissue.
        sample: at most ``MATCHED_CASES`` of them, evenly spread from the smallest to the largest ratio, so that the
            median of the sample is about that of all; with the noise of their raw images in HU.
    """

    ratios: dict[str, float]
    sample: dict[str, float]

    @property
    def ratio(self) -> float:
        """The median over the cases."""
        return float(np.median(list(self.ratios.values())))


@dataclass(frozen=True)
class Match:
    """A strength, and the ratio that the control reaches with it in each case of the sample."""

    strength: float
    ratios: list[float]

    @property
    def ratio(self) -> float:
        """The median over the sample."""
        return float(np.median(self.ratios))


def noise_of_view(manifest: Manifest, cases: Iterable[str], *, remake: str) -> NoiseOfView:
    """What a view does to noise, from the records of its cases.

    Args:
        manifest: of the view.
        cases: all that the view must hold.
        remake: the command that makes the view anew, for the message.

    Raises:
        UserError: a case is missing, was recorded without noise, or no case has soft tissue.
    """
    raw_hu, ratios = {}, {}
    for case in sorted(cases):
        record = manifest.read_case(case)
        if record is None:
            raise UserError(f"{manifest.folder} is not complete: {case} is missing. Complete it with: {remake}")
        if "noise_view_hu" not in record:
            raise UserError(
                f"{manifest.folder} was made by an older version, which did not record noise ({case}); make it anew "
                f"with: {remake} --overwrite"
            )
        # without noise in the raw image there is none to remove
        if record["noise_raw_hu"]:
            raw_hu[case] = record["noise_raw_hu"]
            ratios[case] = record["noise_view_hu"] / record["noise_raw_hu"]
    if not ratios:
        raise UserError(f"no case of {manifest.folder} has noise in soft tissue, so there is nothing to match")
    ranked = sorted(ratios, key=lambda case: (ratios[case], case))
    sample = {ranked[place]: raw_hu[ranked[place]] for place in evenly_spread(len(ranked), MATCHED_CASES)}
    return NoiseOfView(ratios, sample)


class NoiseSample:
    """The measured slices of some raw images, held in memory: 25 MB for a case of 512 x 512 pixels in int16.

    Args:
        raw_noise_hu: for each case the noise of its raw image, as recorded; from ``NoiseOfView.sample``.
        read_axial: gives the CT channels (z, y, x) of a case, axial slices first, in HU.
        settings: how controls are applied.

    Raises:
        UserError: the raw image of a case has another noise than recorded, so it is another image.
    """

    def __init__(
        self,
        raw_noise_hu: Mapping[str, float],
        read_axial: Callable[[str], list[np.ndarray]],
        settings: Reconstruction,
    ) -> None:
        self._settings = settings
        self._cases: list[tuple[float, list[tuple[np.ndarray, np.ndarray]]]] = []
        for case, recorded_hu in raw_noise_hu.items():
            slices_and_regions, noise_hu = [], []
            for volume_hu in read_axial(case):
                slices_hu = measured_slices(volume_hu)
                clipped_hu = np.clip(slices_hu.astype(np.float32), *settings.hu_window)
                region = homogeneous_region(clipped_hu)
                if region.any():
                    slices_and_regions.append((slices_hu, region))
                    noise_hu.append(noise_sd_hu(clipped_hu, region))
            if not np.isclose(mean_of_known(noise_hu) or 0, recorded_hu, rtol=1e-3):
                raise UserError(f"the raw image of {case} has changed since the view was made; make the view anew")
            self._cases.append((recorded_hu, slices_and_regions))

    def ratios(self, control: Control, on_case: Callable[[], object] | None = None) -> list[float]:
        """Noise that the control leaves divided by noise in the raw image, case by case."""
        ratios = []
        for raw_hu, slices_and_regions in self._cases:
            left_hu = [
                noise_sd_hu(reconstruct_to_int16(control, slices_hu, self._settings), region)
                for slices_hu, region in slices_and_regions
            ]
            ratios.append(float(np.mean(left_hu)) / raw_hu)
            if on_case is not None:
                on_case()
        return ratios


def match_strength(
    name: str, target_ratio: float, sample: NoiseSample, *, on_case: Callable[[], object] | None = None
) -> Match:
    """The strength of a control with which its median ratio is ``target_ratio`` within ``RATIO_TOLERANCE``.

    Doubling and Brent's method; equal arguments give an equal result. A view that removes no noise is matched by
    strength 0.

    Args:
        name: a key of ``CONTROLS``, not the identity.
        target_ratio: ``NoiseOfView.ratio``.
        sample: where to measure.
        on_case: called when a case has been filtered and measured.

    Raises:
        UserError: not even the largest strength removes so much noise.
    """
    denoiser = find_control(name)
    tried: dict[float, Match] = {}

    def match_of(strength: float) -> Match:
        rounded = float(f"{strength:.{STRENGTH_DIGITS}g}")
        if rounded not in tried:
            tried[rounded] = Match(rounded, sample.ratios(Control(name, rounded), on_case))
        return tried[rounded]

    def excess(strength: float) -> float:
        difference = match_of(strength).ratio - target_ratio
        return 0.0 if abs(difference) <= RATIO_TOLERANCE else difference

    if target_ratio >= 1 - RATIO_TOLERANCE:
        return match_of(0.0)
    weak, strong = 0.0, denoiser.usual_strength
    while excess(strong) > 0:
        if strong >= denoiser.largest_strength:
            raise UserError(
                f"{name} cannot remove as much noise as the view, which leaves {target_ratio:.3f} of it: even with "
                f"--strength {strong:g} ({denoiser.unit}) {match_of(strong).ratio:.3f} are left"
            )
        weak, strong = strong, min(2 * strong, denoiser.largest_strength)
    match = match_of(optimize.brentq(excess, weak, strong, rtol=10.0**-STRENGTH_DIGITS / 2))
    if excess(match.strength) != 0:
        raise UserError(
            f"{name}: no strength leaves {target_ratio:.3f} of the noise; near --strength {match.strength:g} it jumps "
            f"to {match.ratio:.3f}"
        )
    return match
