"""Single lesions for pictures: missed lesions and false positives."""

from __future__ import annotations

import numpy as np

from fvae_nnunet.ct.boxes import bounding_box


def lesions_of(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Connected components of a mask (z, y, x), with neighbours sharing a face, edge or corner: a volume of components,
    numbered from 1 on a background of 0, and their number."""
    from scipy import ndimage

    numbered = np.zeros(mask.shape, np.int32)
    if not mask.any():
        return numbered, 0
    box = bounding_box(mask)
    numbered[box], number = ndimage.label(mask[box], structure=np.ones((3, 3, 3), dtype=bool))
    return numbered, int(number)


def largest_lesion(mask: np.ndarray) -> np.ndarray:
    """The largest component of a mask (z, y, x) as bool; an empty mask is returned unchanged."""
    numbered, number = lesions_of(mask)
    return numbered == np.bincount(numbered[mask]).argmax() if number else mask


def missed_lesions(reference: np.ndarray, prediction: np.ndarray, detection_overlap: float) -> np.ndarray:
    """The lesions of the reference with less than this fraction of their voxels predicted.

    Args:
        reference, prediction: bool masks (z, y, x).
        detection_overlap: fraction in (0, 1], see ``evaluation.segmentation.lesions``.

    Returns:
        Mask of the complete missed lesions, bool (z, y, x).
    """
    numbered, number = lesions_of(reference)
    voxels, shared = (np.bincount(numbered[mask], minlength=number + 1) for mask in (reference, prediction))
    missed = shared < detection_overlap * voxels * (1 - 1e-12)
    missed[0] = False
    return missed[numbered]


def false_positives(reference: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """The predicted lesions that share no voxel with the reference; masks and result bool (z, y, x)."""
    numbered, number = lesions_of(prediction)
    is_false = np.bincount(numbered[reference], minlength=number + 1) == 0
    is_false[0] = False
    return is_false[numbered]
