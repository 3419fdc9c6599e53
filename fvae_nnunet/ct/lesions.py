"""Single lesions: the connected components of a mask. Voxels that share a face, an edge or a corner are connected."""

from __future__ import annotations

import numpy as np

from fvae_nnunet.ct.boxes import bounding_box

CONNECTIVITY = 26
"""Number of neighbours of a voxel."""


def numbered_lesions(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """The lesions of a mask (z, y, x): a volume, int32, in which they are numbered from 1 in the order of their first
    voxels, on a background of 0; and how many there are."""
    from scipy import ndimage

    numbered = np.zeros(mask.shape, np.int32)
    if not mask.any():
        return numbered, 0
    box = bounding_box(mask)
    numbered[box], number = ndimage.label(mask[box], structure=np.ones((3, 3, 3), dtype=bool))
    return numbered, int(number)


def largest_lesion(mask: np.ndarray) -> np.ndarray:
    """The largest lesion of a bool mask (z, y, x); a mask without lesions is returned unchanged."""
    numbered, number = numbered_lesions(mask)
    return numbered == np.bincount(numbered[mask]).argmax() if number > 1 else mask


def are_detected(shared_voxels: np.ndarray, voxels: np.ndarray, detection_overlap: float) -> np.ndarray:
    """Whether lesions are detected, bool (n,).

    Args:
        shared_voxels: number of predicted voxels of each lesion (n,).
        voxels: number of voxels of each lesion (n,).
        detection_overlap: fraction of a lesion's voxels that must be predicted, in (0, 1].
    """
    # compared in voxels with a margin, so that rounding does not matter for 1 of 10 at 10 %
    return shared_voxels >= detection_overlap * voxels * (1 - 1e-12)


def missed_lesions(reference: np.ndarray, prediction: np.ndarray, detection_overlap: float) -> np.ndarray:
    """The lesions of the reference with less than this fraction of their voxels predicted.

    Args:
        reference, prediction: bool masks (z, y, x).
        detection_overlap: fraction in (0, 1].

    Returns:
        Mask of the complete missed lesions, bool (z, y, x).
    """
    numbered, number = numbered_lesions(reference)
    voxels, shared = (np.bincount(numbered[mask], minlength=number + 1) for mask in (reference, prediction))
    missed = ~are_detected(shared, voxels, detection_overlap)
    missed[0] = False
    return missed[numbered]


def false_positives(reference: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """The predicted lesions that share no voxel with the reference; masks and result bool (z, y, x)."""
    numbered, number = numbered_lesions(prediction)
    is_false = np.bincount(numbered[reference], minlength=number + 1) == 0
    is_false[0] = False
    return is_false[numbered]
