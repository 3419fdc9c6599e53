"""The strength at which a control removes as much noise as a view, so that the two are compared fairly.

How much noise a view leaves is read from its records (``reconstruction.volume.fidelity``): noise in the view divided by
noise in the raw image, median over the cases. The control is measured in the same way on some of these cases. One
strength cannot match fine and coarse noise apart, so it is all noise that is matched; what is left of each part is
given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import astuple, dataclass

import numpy as np
from scipy import optimize

from fvae_nnunet.ct.noise import Noise, evenly_spread, measure_noise, measured_region, measured_slices, noise_figures
from fvae_nnunet.errors import UserError
from fvae_nnunet.jobs.manifest import Manifest
from fvae_nnunet.reconstruction.settings import ReconstructionSettings
from fvae_nnunet.reconstruction.volume import reconstruct_to_int16
from fvae_nnunet.vae.denoisers import Control, find_control

MATCHED_CASES = 8
"""Cases on which the control is measured."""

RATIO_TOLERANCE = 0.002
"""How far the control's median ratio may be from the view's."""

STRENGTH_DIGITS = 4
"""Significant digits of a strength: more are of no use, and machines whose sums differ in the last bit agree."""


@dataclass(frozen=True)
class Left:
    """What is left of noise, divided by what there was: of all, of the fine part, of the coarse part (``noise.Noise``).

    A part is NaN where there was none.
    """

    total: float
    fine: float
    coarse: float

    @classmethod
    def of(cls, before: Noise, after: Noise) -> Left:
        """With noise before."""
        return cls(
            after.total_hu / before.total_hu,
            after.fine_hu / before.fine_hu if before.fine_hu else math.nan,
            after.coarse_hu / before.coarse_hu if before.coarse_hu else math.nan,
        )

    @classmethod
    def median(cls, cases: Iterable[Left]) -> Left:
        """Of each part over the cases that had it."""
        known = [np.array(part)[np.isfinite(part)] for part in zip(*(astuple(left) for left in cases), strict=True)]
        return cls(*(float(np.median(part)) if part.size else math.nan for part in known))


@dataclass(frozen=True)
class NoiseOfView:
    """What a view does to noise.

    Attributes:
        left: what the view leaves, for each case that has soft tissue.
        sample: at most ``MATCHED_CASES`` of them, evenly spread from the smallest to the largest ratio, so that the
            median of the sample is about that of all; with the noise of their raw images in HU.
    """

    left: dict[str, Left]
    sample: dict[str, float]

    @property
    def median(self) -> Left:
        """Over the cases."""
        return Left.median(self.left.values())


@dataclass(frozen=True)
class Match:
    """A strength, and what the control leaves with it in each case of the sample."""

    strength: float
    left: list[Left]

    @property
    def median(self) -> Left:
        """Over the sample."""
        return Left.median(self.left)


def noise_of_view(manifest: Manifest, cases: Iterable[str], *, make: Callable[..., str]) -> NoiseOfView:
    """What a view does to noise, from the records of its cases.

    Args:
        manifest: of the view.
        cases: all that the view must hold.
        make: the command that makes the view, with further parameters, for the message.

    Raises:
        UserError: a case is missing, was recorded without noise, or no case has soft tissue.
    """
    raw_hu, left = {}, {}
    for case in sorted(cases):
        record = manifest.read_case(case)
        if record is None:
            raise UserError(f"{manifest.folder} is not complete: {case} is missing. Complete it with: {make()}")
        if not record.keys() >= noise_figures(None, None).keys():
            raise UserError(
                f"{manifest.folder} was made by an older version, which did not record noise, or fine noise only "
                f"({case}); make it anew with: {make(overwrite=True)}"
            )
        # without noise in the raw image there is none to remove
        if record["noise_raw_hu"]:
            raw, view = (
                Noise(*(record[f"noise_{part}{volume}_hu"] for part in ("", "fine_", "coarse_")))
                for volume in ("raw", "view")
            )
            raw_hu[case] = raw.total_hu
            left[case] = Left.of(raw, view)
    if not left:
        raise UserError(f"no case of {manifest.folder} has noise in soft tissue, so there is nothing to match")
    ranked = sorted(left, key=lambda case: (left[case].total, case))
    sample = {ranked[place]: raw_hu[ranked[place]] for place in evenly_spread(len(ranked), MATCHED_CASES)}
    return NoiseOfView(left, sample)


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
        settings: ReconstructionSettings,
    ) -> None:
        self._settings = settings
        self._cases: list[tuple[Noise, list[tuple[np.ndarray, np.ndarray]]]] = []
        for case, recorded_hu in raw_noise_hu.items():
            slices_and_regions, noise = [], []
            for volume_hu in read_axial(case):
                region, of_channel = measured_region(volume_hu, settings.hu_window)
                if of_channel is not None:
                    slices_and_regions.append((measured_slices(volume_hu), region))
                    noise.append(of_channel)
            if not noise or not np.isclose(_mean(noise).total_hu, recorded_hu, rtol=1e-3):
                raise UserError(f"the raw image of {case} has changed since the view was made; make the view anew")
            self._cases.append((_mean(noise), slices_and_regions))

    def left(self, control: Control, on_case: Callable[[], object] | None = None) -> list[Left]:
        """What the control leaves of the noise, case by case."""
        cases = []
        for raw, slices_and_regions in self._cases:
            filtered = [
                measure_noise(reconstruct_to_int16(control, slices_hu, self._settings), region)
                for slices_hu, region in slices_and_regions
            ]
            cases.append(Left.of(raw, _mean(filtered)))
            if on_case is not None:
                on_case()
        return cases


def match_strength(
    name: str, target_ratio: float, sample: NoiseSample, *, on_case: Callable[[], object] | None = None
) -> Match:
    """The strength of a control with which its median ratio is ``target_ratio`` within ``RATIO_TOLERANCE``.

    Doubling and Brent's method; equal arguments give an equal result. A view that removes no noise is matched by
    strength 0.

    Args:
        name: a key of ``CONTROLS``, not the identity.
        target_ratio: ``NoiseOfView.median.total``.
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
            tried[rounded] = Match(rounded, sample.left(Control(name, rounded), on_case))
        return tried[rounded]

    def excess(strength: float) -> float:
        difference = match_of(strength).median.total - target_ratio
        return 0.0 if abs(difference) <= RATIO_TOLERANCE else difference

    if target_ratio >= 1 - RATIO_TOLERANCE:
        return match_of(0.0)
    weak, strong = 0.0, denoiser.usual_strength
    while excess(strong) > 0:
        if strong >= denoiser.largest_strength:
            raise UserError(
                f"{name} cannot remove as much noise as the view, which leaves {target_ratio:.3f} of it: even with "
                f"`strength={strong:g}` ({denoiser.unit}) {match_of(strong).median.total:.3f} are left"
            )
        weak, strong = strong, min(2 * strong, denoiser.largest_strength)
    match = match_of(optimize.brentq(excess, weak, strong, rtol=10.0**-STRENGTH_DIGITS / 2))
    if excess(match.strength) != 0:
        raise UserError(
            f"{name}: no strength leaves {target_ratio:.3f} of the noise; near `strength={match.strength:g}` it jumps "
            f"to {match.median.total:.3f}"
        )
    return match


def _mean(channels: list[Noise]) -> Noise:
    return Noise(*np.mean([astuple(noise) for noise in channels], axis=0).tolist())
