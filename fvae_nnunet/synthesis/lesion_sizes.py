"""How large synthetic lesions are: classes of equivalent diameter and their shares, or one range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fvae_nnunet.errors import UserError
from fvae_nnunet.synthesis.shapes import MIN_VOXELS, equivalent_diameter_mm

SIZE_RANGES_MM = {"small": (5.0, 20.0), "medium": (20.0, 40.0), "large": (40.0, 70.0)}
"""Equivalent diameter. Below 20 mm a tumour is commonly called small; there synthetic ones help most."""

DEFAULT_SHARES = {"small": 0.6, "medium": 0.3, "large": 0.1}


@dataclass(frozen=True)
class LesionSizes:
    """Ranges of the equivalent diameter in mm, and the share of lesions in each (they sum to 1)."""

    ranges_mm: tuple[tuple[float, float], ...]
    shares: tuple[float, ...]

    @classmethod
    def of_classes(cls, shares: Sequence[str] | None) -> LesionSizes:
        """From texts such as ``small=0.5``, which need not sum to 1; None: `DEFAULT_SHARES`.

        Raises:
            UserError: an unknown class, one that is named twice, or a share that is no positive number.
        """
        wanted: dict[str, float] = {}
        for text in [f"{name}={share}" for name, share in DEFAULT_SHARES.items()] if shares is None else shares:
            name, _, number = text.partition("=")
            try:
                share = float(number) if number else 1.0
            except ValueError:
                share = float("nan")
            if name not in SIZE_RANGES_MM or name in wanted or not 0 < share < float("inf"):
                raise UserError(
                    f"--sizes {text}: expected each of {', '.join(SIZE_RANGES_MM)} at most once with a positive share, "
                    "such as small=0.5 medium=0.3 large=0.2"
                )
            wanted[name] = share
        total = sum(wanted.values())
        return cls(tuple(SIZE_RANGES_MM[name] for name in wanted), tuple(share / total for share in wanted.values()))

    @classmethod
    def of_range(cls, smallest_mm: float, largest_mm: float) -> LesionSizes:
        """All lesions in one range; UserError where it is none."""
        if not 0 < smallest_mm <= largest_mm < float("inf"):
            raise UserError(f"--diameter-mm needs 0 < MIN <= MAX, got {smallest_mm:g} {largest_mm:g}")
        return cls(((smallest_mm, largest_mm),), (1.0,))

    def draw_range(self, rng: np.random.Generator) -> tuple[float, float]:
        """One of the ranges, by the shares."""
        return self.ranges_mm[rng.choice(len(self.shares), p=self.shares)]


def draw_diameter_mm(rng: np.random.Generator, range_mm: tuple[float, float], spacing_mm: Sequence[float]) -> float:
    """A diameter, uniform in the part of the range whose lesions have at least `MIN_VOXELS` voxels.

    Raises:
        UserError: none has.
    """
    smallest, largest = range_mm
    least = max(smallest, equivalent_diameter_mm(MIN_VOXELS, spacing_mm))
    if least > largest:
        raise UserError(
            f"lesions of {smallest:g} to {largest:g} mm have fewer than {MIN_VOXELS} voxels of "
            f"{' x '.join(f'{step:g}' for step in spacing_mm)} mm; choose larger ones (--sizes, --diameter-mm)"
        )
    return float(rng.uniform(least, largest))
