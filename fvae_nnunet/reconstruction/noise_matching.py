"""Find the strength at which a control removes as much noise as a view, for a fair comparison.

The noise that a view leaves is read from its records (``reconstruction.volume.fidelity``): noise in the view divided by
noise in the raw image, median over the cases. The control is measured in the same way on a sample of these cases. One
strength cannot match fine and coarse noise separately, so total noise is matched; the remaining share of each part is
reported.
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
"""Number of cases on which the control is measured."""

RATIO_TOLERANCE = 0.002
"""Tolerance between the median ratios of control and view."""

STRENGTH_DIGITS = 4
"""Significant digits of a strength: more have no effect, and machines whose sums differ in the last bit agree."""


@dataclass(frozen=True)
class Left:
    """The remaining fraction of noise: of the total, the fine part and the coarse part (``noise.Noise``).

    The fraction of a part is NaN if there was none before.
    """

    total: float
    fine: float
    coarse: float

    @classmethod
    def of(cls, before: Noise, after: Noise) -> Left:
        """The fractions ``after / before``; the total before must not be 0."""
        return cls(
            after.total_hu / before.total_hu,
            after.fine_hu / before.fine_hu if before.fine_hu else math.nan,
            after.coarse_hu / before.coarse_hu if before.coarse_hu else math.nan,
        )

    @classmethod
    def median(cls, cases: Iterable[Left]) -> Left:
        """The median of each part over the cases that have it."""
        known = [np.array(part)[np.isfinite(part)] for part in zip(*(astuple(left) for left in cases), strict=True)]
        return cls(*(float(np.median(part)) if part.size else math.nan for part in known))


@dataclass(frozen=True)
class NoiseOfView:
    """The effect of a view on noise.

    Attributes:
        left: case -> remaining noise, for each case with noise in soft tissue.
        sample: case -> noise of its raw image in HU, for at most ``MATCHED_CASES`` cases, evenly spread from the
            smallest to the largest ratio, so that their median is about that of all cases.
    """

    left: dict[str, Left]
    sample: dict[str, float]

    @property
    def median(self) -> Left:
        """The median over all cases."""
        return Left.median(self.left.values())


@dataclass(frozen=True)
class Match:
    """A strength of a control, and the noise it leaves in each case of the sample."""

    strength: float
    left: list[Left]

    @property
    def median(self) -> Left:
        """The median over the sample."""
        return Left.median(self.left)


def noise_of_view(manifest: Manifest, cases: Iterable[str], *, make: Callable[..., str]) -> NoiseOfView:
    """Read the effect of a view on noise from the records of its cases.

    Args:
        manifest: manifest of the view.
        cases: all cases that the view must contain.
        make: returns the command that makes the view, with further parameters, for messages.

    Raises:
        UserError: a case is missing or was recorded without noise, or no case has noise in soft tissue.
    """
    raw_hu, left = {}, {}
    for case in sorted(cases):
        record = manifest.read_case(case)
        if record is None:
            raise UserError(f"{manifest.folder} is not complete: {case} is missing. Complete it with: {make()}")
        if not record.keys() >= noise_figures(None, None).keys():
            raise UserError(
                f"{manifest.folder} was made by an older version, which recorded no noise, or fine noise only "
                f"({case}); make it again with: {make(overwrite=True)}"
            )
        # a raw image without noise has none to remove
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
    """The measured slices of raw images, held in memory: 25 MB per case of 512 x 512 pixels and one int16 channel.

    Args:
        raw_noise_hu: case -> recorded noise of its raw image, from ``NoiseOfView.sample``.
        read_axial: returns the CT channels of a case, each (z, y, x) with axial slices, in HU.
        settings: settings with which controls are applied.

    Raises:
        UserError: the noise of a raw image differs from its record, so the image has changed.
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
                raise UserError(f"the raw image of {case} has changed since the view was made; make the view again")
            self._cases.append((_mean(noise), slices_and_regions))

    def left(self, control: Control, on_case: Callable[[], object] | None = None) -> list[Left]:
        """The noise that a control leaves in each case."""
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
    """Find the strength at which the median ratio of a control is ``target_ratio`` within ``RATIO_TOLERANCE``.

    Uses doubling and Brent's method, and is deterministic. A view that removes no noise is matched by strength 0.

    Args:
        name: a key of ``CONTROLS``, not the identity.
        target_ratio: ``NoiseOfView.median.total``.
        sample: slices on which to measure.
        on_case: called after each case that has been filtered and measured.

    Raises:
        UserError: even the largest strength leaves more noise, or no strength reaches the ratio.
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
                f"{name} cannot remove as much noise as the view: the view leaves {target_ratio:.3f} of it, the "
                f"control with `strength={strong:g}` ({denoiser.unit}) still {match_of(strong).median.total:.3f}"
            )
        weak, strong = strong, min(2 * strong, denoiser.largest_strength)
    match = match_of(optimize.brentq(excess, weak, strong, rtol=10.0**-STRENGTH_DIGITS / 2))
    if excess(match.strength) != 0:
        raise UserError(
            f"{name}: no strength leaves {target_ratio:.3f} of the noise; near `strength={match.strength:g}` the ratio "
            f"jumps to {match.median.total:.3f}"
        )
    return match


def _mean(channels: list[Noise]) -> Noise:
    return Noise(*np.mean([astuple(noise) for noise in channels], axis=0).tolist())
