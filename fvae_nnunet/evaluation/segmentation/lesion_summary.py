"""Counts of lesions, detected lesions and false positives in all cases, by size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from fvae_nnunet.evaluation.segmentation.lesions import SIZE_CLASSES, CaseLesions, size_class
from fvae_nnunet.evaluation.segmentation.scores import ScoredCase

ALL_SIZES = "all"

SIZES = {ALL_SIZES: "all sizes"} | {size: size.replace("_", " ").replace("mm", " mm") for size in SIZE_CLASSES}
"""Names in tables of all sizes together and of each size class."""


def is_of_size(diameters_mm: Sequence[float], size: str) -> np.ndarray:
    """Which diameters (n,) belong to a size, a key of `SIZES`, as bool (n,)."""
    return np.array([size in (ALL_SIZES, size_class(diameter_mm)) for diameter_mm in diameters_mm], dtype=bool)


def summarise_lesions(cases: Sequence[CaseLesions]) -> dict[str, dict[str, float]]:
    """Count the lesions of one label.

    Args:
        cases: at least one.

    Returns:
        For each key of `SIZES`: number of ``lesions`` in the reference, number ``detected``, ``detection_rate`` (NaN
        without lesions), ``false_positives`` by their own size, ``false_positives_per_case`` over all cases, and
        ``dice_of_detected``, the mean over detected lesions (NaN without any).
    """
    summary = {}
    for size in SIZES:
        of_size = is_of_size([diameter_mm for case in cases for diameter_mm in case.diameters_mm], size)
        detected = np.array([flag for case in cases for flag in case.detected], dtype=bool)[of_size]
        dice = np.array([value for case in cases for value in case.dice], dtype=float)[of_size][detected]
        n_false = sum(int(is_of_size(case.false_positive_diameters_mm, size).sum()) for case in cases)
        summary[size] = {
            "lesions": detected.size,
            "detected": int(detected.sum()),
            "detection_rate": float(detected.mean()) if detected.size else float("nan"),
            "false_positives": n_false,
            "false_positives_per_case": n_false / len(cases),
            "dice_of_detected": float(dice.mean()) if dice.size else float("nan"),
        }
    return summary


def lesion_records(case: ScoredCase) -> dict[str, dict[str, Any]]:
    """The lesions of a case for JSON: key of the label -> the attributes of `CaseLesions`."""
    return {str(label): asdict(lesions) for label, lesions in case.lesions.items()}
