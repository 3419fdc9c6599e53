"""Evaluation of single lesions: detected lesions of the reference, and false positives, by size.

A lesion is a connected component of a label; voxels that share a face, an edge or a corner are connected (26). Its
size is the diameter of the ball of equal volume. A lesion of the reference is detected if at least
`DETECTION_OVERLAP` of its voxels are predicted, by any number of predicted components. A predicted component that
shares no voxel with any lesion of the reference is a false positive. One that overlaps a lesion too little to detect it
is neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fvae_nnunet.ct.boxes import bounding_box
from fvae_nnunet.ct.lesions import are_detected, numbered_lesions
from fvae_nnunet.errors import UserError
from fvae_nnunet.nnunet.labels import Label
from fvae_nnunet.nnunet.lesion_labels import LESION_NAME

DETECTION_OVERLAP = 0.1
"""Fraction of a lesion's voxels that must be predicted, so that a minimal overlap does not count as detection."""

SIZE_CLASSES = ("below_10mm", "10_to_20mm", "above_20mm")
"""Size classes by equivalent diameter; 10 mm and 20 mm themselves belong to the middle class."""


@dataclass(frozen=True)
class LesionRule:
    """The labels that are evaluated by lesion, and the minimum overlap of a detected lesion."""

    labels: tuple[Label, ...]
    detection_overlap: float = DETECTION_OVERLAP

    def __post_init__(self) -> None:
        if not 0 < self.detection_overlap <= 1:
            raise UserError(f"`detection_overlap` must be above 0 and at most 1, got {self.detection_overlap:g}")


@dataclass(frozen=True)
class CaseLesions:
    """The lesions of one label in one case; the first four have one entry for each lesion of the reference.

    Attributes:
        diameters_mm: equivalent diameters.
        overlaps: fraction of the lesion's voxels that are predicted, in [0, 1].
        detected: whether the overlap suffices for a detection.
        dice: DSC of the lesion with all predicted components that overlap it, each taken whole: a prediction that
            merges two lesions is too large for both. NaN if the lesion is not detected.
        false_positive_diameters_mm: equivalent diameters of the false positives.
    """

    diameters_mm: tuple[float, ...]
    overlaps: tuple[float, ...]
    detected: tuple[bool, ...]
    dice: tuple[float, ...]
    false_positive_diameters_mm: tuple[float, ...]


def choose_lesion_labels(names: Mapping[Label, str], wanted: Sequence[str] | None = None) -> tuple[Label, ...]:
    """The labels to evaluate by lesion.

    Args:
        names: label or region -> name.
        wanted: names; empty: none. Default: names that match `LESION_NAME`, else the only label, else none.

    Raises:
        UserError: there is no label with a wanted name.
    """
    if wanted is not None:
        unknown = sorted(set(wanted) - set(names.values()))
        if unknown:
            raise UserError(f"no label is named {', '.join(unknown)}; dataset.json has {', '.join(names.values())}")
        return tuple(label for label, name in names.items() if name in wanted)
    named = tuple(label for label, name in names.items() if LESION_NAME.search(name))
    return named or (tuple(names) if len(names) == 1 else ())


def size_class(diameter_mm: float) -> str:
    """The size class, one of `SIZE_CLASSES`."""
    return SIZE_CLASSES[0] if diameter_mm < 10 else SIZE_CLASSES[1] if diameter_mm <= 20 else SIZE_CLASSES[2]


def match_lesions(
    reference: np.ndarray, prediction: np.ndarray, *, spacing_mm: Sequence[float], detection_overlap: float
) -> CaseLesions:
    """Find the lesions of two masks and match them, see the module's docstring.

    Args:
        reference, prediction: bool masks (z, y, x) of equal shape.
        spacing_mm: voxel size (z, y, x).
        detection_overlap: fraction in (0, 1].

    Returns:
        The lesions; an empty mask has no entries.
    """
    either = reference | prediction
    if not either.any():
        return CaseLesions((), (), (), (), ())
    box = bounding_box(either)
    reference, prediction = reference[box], prediction[box]
    true, true_voxels = _components(reference)
    found, found_voxels = _components(prediction)
    both = reference & prediction
    pairs, pair_voxels = np.unique(
        (true[both] - 1) * np.int64(max(1, len(found_voxels))) + found[both] - 1, return_counts=True
    )
    true_of_pair, found_of_pair = np.divmod(pairs, max(1, len(found_voxels)))
    shared_voxels = np.bincount(true_of_pair, weights=pair_voxels, minlength=len(true_voxels))
    overlapping_voxels = np.bincount(true_of_pair, weights=found_voxels[found_of_pair], minlength=len(true_voxels))
    overlaps = shared_voxels / true_voxels
    detected = are_detected(shared_voxels, true_voxels, detection_overlap)
    dice = np.where(detected, 2 * shared_voxels / (true_voxels + overlapping_voxels), np.nan)
    is_false = np.ones(len(found_voxels), dtype=bool)
    is_false[found_of_pair] = False
    return CaseLesions(
        _diameters_mm(true_voxels, spacing_mm),
        tuple(overlaps.tolist()),
        tuple(detected.tolist()),
        tuple(dice.tolist()),
        _diameters_mm(found_voxels[is_false], spacing_mm),
    )


def _components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The components, numbered from 1 on a background of 0, and the number of voxels of each (n,)."""
    numbered, n = numbered_lesions(mask)
    return numbered, np.bincount(numbered[mask], minlength=n + 1)[1:]


def _diameters_mm(voxels: np.ndarray, spacing_mm: Sequence[float]) -> tuple[float, ...]:
    return tuple(np.cbrt(6 / np.pi * voxels * np.prod(np.asarray(spacing_mm, dtype=float))).tolist())
