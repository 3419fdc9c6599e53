"""Sizes of synthetic lesions: classes of equivalent diameter with shares, real distributions, or a single range.

A distribution is given by some of its quantiles. Diameters are uniform between two quantiles, so a distribution, too,
consists of ranges with shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fvae_nnunet.errors import UserError
from fvae_nnunet.synthesis.lesions.placement import NothingFits
from fvae_nnunet.synthesis.lesions.shapes import MIN_VOXELS, equivalent_diameter_mm

SIZE_RANGES_MM = {"small": (5.0, 20.0), "medium": (20.0, 40.0), "large": (40.0, 70.0)}
"""Ranges of the equivalent diameter. A tumour below 20 mm is commonly called small; there synthetic ones help most."""

DEFAULT_SHARES = {"small": 0.6, "medium": 0.3, "large": 0.1}

PERCENTILES = (5, 25, 50, 75, 95)

DISTRIBUTIONS_MM = {
    "msd-lung": (4.4, 14.3, 21.1, 28.8, 53.6),
    "msd-pancreas": (13.1, 17.4, 22.2, 26.9, 41.9),
}
"""``PERCENTILES`` of the equivalent diameters of single tumours in the Medical Segmentation Decathlon (tasks 6 and 7),
measured on their public masks in ULS23. Sizes beyond the 5th and 95th percentile are unknown and not drawn."""

REAL = "real"
"""Name for the distribution of the dataset's own lesions."""

DEFAULT_GROWTH = (0.7, 1.5)
"""Range of the factor on the diameter of a changing lesion: RECIST 1.1 calls 0.7 a partial response, 1.2 a
progression."""


@dataclass(frozen=True)
class LesionSizes:
    """Ranges of the equivalent diameter in mm, and the share of lesions in each (they sum to 1)."""

    ranges_mm: tuple[tuple[float, float], ...]
    shares: tuple[float, ...]

    @classmethod
    def parse(cls, texts: Sequence[str] | None) -> LesionSizes | None:
        """Parse classes with shares such as ``small=0.5``, which need not sum to 1, or the name of a distribution.

        Returns:
            The sizes; None for ``REAL``; ``DEFAULT_SHARES`` if ``texts`` is None.

        Raises:
            UserError: a text is neither, a class is given twice, or a share is not a positive number.
        """
        if texts is None:
            texts = [f"{name}={share}" for name, share in DEFAULT_SHARES.items()]
        alone = texts[0] if len(texts) == 1 else ""
        if alone == REAL:
            return None
        if alone in DISTRIBUTIONS_MM:
            return cls._between(DISTRIBUTIONS_MM[alone], PERCENTILES)
        wanted: dict[str, float] = {}
        for text in texts:
            name, _, number = text.partition("=")
            try:
                share = float(number) if number else 1.0
            except ValueError:
                share = float("nan")
            if name not in SIZE_RANGES_MM or name in wanted or not 0 < share < float("inf"):
                raise UserError(
                    f"`sizes={text}`: expected one of {', '.join(DISTRIBUTIONS_MM)} and {REAL} alone, or each of "
                    f"{', '.join(SIZE_RANGES_MM)} at most once with a positive share, such as small=0.5 medium=0.3 "
                    "large=0.2"
                )
            wanted[name] = share
        total = sum(wanted.values())
        return cls(tuple(SIZE_RANGES_MM[name] for name in wanted), tuple(share / total for share in wanted.values()))

    @classmethod
    def of_lesions(cls, diameters_mm: Sequence[float]) -> LesionSizes:
        """The sizes of lesions with these diameters (at least one): from smallest to largest, by their deciles."""
        deciles = np.linspace(0, 100, 11)
        return cls._between(np.percentile(diameters_mm, deciles).tolist(), deciles.tolist())

    @classmethod
    def _between(cls, diameters_mm: Sequence[float], percentiles: Sequence[float]) -> LesionSizes:
        shares = np.diff(percentiles) / (percentiles[-1] - percentiles[0])
        return cls(tuple(pairwise(diameters_mm)), tuple(shares.tolist()))

    @classmethod
    def of_range(cls, smallest_mm: float, largest_mm: float) -> LesionSizes:
        """All lesions in one range; UserError if the range is invalid."""
        if not 0 < smallest_mm <= largest_mm < float("inf"):
            raise UserError(f"`diameter_mm` needs 0 < MIN <= MAX, got {smallest_mm:g} {largest_mm:g}")
        return cls(((smallest_mm, largest_mm),), (1.0,))

    def draw_range(self, rng: np.random.Generator, spacing_mm: Sequence[float]) -> tuple[float, float]:
        """Draw a range by its share, among those that allow ``MIN_VOXELS`` voxels, and cut it to these diameters.

        Raises:
            NothingFits: no range allows as many voxels.
        """
        least = equivalent_diameter_mm(MIN_VOXELS, spacing_mm)
        possible = [(max(low, least), high) for low, high in self.ranges_mm]
        shares = np.array([share * (low <= high) for share, (low, high) in zip(self.shares, possible, strict=True)])
        if not shares.any():
            smallest, largest = np.min(self.ranges_mm), np.max(self.ranges_mm)
            raise NothingFits(
                f"lesions of {smallest:g} to {largest:g} mm have fewer than {MIN_VOXELS} voxels of "
                f"{' x '.join(f'{step:g}' for step in spacing_mm)} mm; choose larger ones (`sizes`, `diameter_mm` or "
                "`growth`)"
            )
        return possible[rng.choice(len(shares), p=shares / shares.sum())]
