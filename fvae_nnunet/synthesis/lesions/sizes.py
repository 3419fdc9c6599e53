"""How large synthetic lesions are: classes of equivalent diameter and their shares, real distributions, or one range.

A distribution is given by some of its quantiles. Between two of them diameters are uniform, so it is ranges and their
shares, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fvae_nnunet.errors import UserError
from fvae_nnunet.synthesis.lesions.shapes import MIN_VOXELS, equivalent_diameter_mm

SIZE_RANGES_MM = {"small": (5.0, 20.0), "medium": (20.0, 40.0), "large": (40.0, 70.0)}
"""Equivalent diameter. Below 20 mm a tumour is commonly called small; there synthetic ones help most."""

DEFAULT_SHARES = {"small": 0.6, "medium": 0.3, "large": 0.1}

PERCENTILES = (5, 25, 50, 75, 95)

DISTRIBUTIONS_MM = {
    "msd-lung": (4.4, 14.3, 21.1, 28.8, 53.6),
    "msd-pancreas": (13.1, 17.4, 22.2, 26.9, 41.9),
}
"""`PERCENTILES` of the equivalent diameters of single tumours of the Medical Segmentation Decathlon (tasks 6 and 7),
measured on their public masks in ULS23. What lies beyond the 5th and the 95th is not known and not drawn."""

REAL = "real"
"""In the place of a distribution's name: that of the dataset's own lesions."""

DEFAULT_GROWTH = (0.7, 1.5)
"""Times the diameter of a lesion that changes: RECIST 1.1 calls 0.7 a partial response and 1.2 a progression."""


@dataclass(frozen=True)
class LesionSizes:
    """Ranges of the equivalent diameter in mm, and the share of lesions in each (they sum to 1)."""

    ranges_mm: tuple[tuple[float, float], ...]
    shares: tuple[float, ...]

    @classmethod
    def parse(cls, texts: Sequence[str] | None) -> LesionSizes | None:
        """What a user gives: classes with shares such as ``small=0.5``, which need not sum to 1, or a distribution.

        Returns:
            None for `REAL`. Where nothing is given: `DEFAULT_SHARES`.

        Raises:
            UserError: neither, a class that is named twice, or a share that is no positive number.
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
        """As lesions of these diameters, one at least: from the smallest to the largest, by their deciles."""
        deciles = np.linspace(0, 100, 11)
        return cls._between(np.percentile(diameters_mm, deciles).tolist(), deciles.tolist())

    @classmethod
    def _between(cls, diameters_mm: Sequence[float], percentiles: Sequence[float]) -> LesionSizes:
        shares = np.diff(percentiles) / (percentiles[-1] - percentiles[0])
        return cls(tuple(pairwise(diameters_mm)), tuple(shares.tolist()))

    @classmethod
    def of_range(cls, smallest_mm: float, largest_mm: float) -> LesionSizes:
        """All lesions in one range; UserError where it is none."""
        if not 0 < smallest_mm <= largest_mm < float("inf"):
            raise UserError(f"`diameter_mm` needs 0 < MIN <= MAX, got {smallest_mm:g} {largest_mm:g}")
        return cls(((smallest_mm, largest_mm),), (1.0,))

    def draw_range(self, rng: np.random.Generator, spacing_mm: Sequence[float]) -> tuple[float, float]:
        """One of the ranges, by the shares of those with lesions of `MIN_VOXELS` voxels; it begins where they do.

        Raises:
            UserError: none of them.
        """
        least = equivalent_diameter_mm(MIN_VOXELS, spacing_mm)
        possible = [(max(low, least), high) for low, high in self.ranges_mm]
        shares = np.array([share * (low <= high) for share, (low, high) in zip(self.shares, possible, strict=True)])
        if not shares.any():
            smallest, largest = np.min(self.ranges_mm), np.max(self.ranges_mm)
            raise UserError(
                f"lesions of {smallest:g} to {largest:g} mm have fewer than {MIN_VOXELS} voxels of "
                f"{' x '.join(f'{step:g}' for step in spacing_mm)} mm; choose larger ones (`sizes`, `diameter_mm`)"
            )
        return possible[rng.choice(len(shares), p=shares / shares.sum())]
