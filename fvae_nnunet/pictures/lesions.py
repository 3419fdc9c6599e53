"""Lesions one by one, as pictures name them: which are missed, and which are not there."""

from __future__ import annotations

import numpy as np

from fvae_nnunet.ct.boxes import bounding_box


def lesions_of(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """The connected components of a mask (z, y, x), neighbours sharing a face, edge or corner: numbered from 1 in a
    volume of 0, and their number."""
    from scipy import ndimage

    numbered = np.zeros(mask.shape, np.int32)
    if not mask.any():
        return numbered, 0
    box = bounding_box(mask)
    numbered[box], number = ndimage.label(mask[box], structure=np.ones((3, 3, 3), dtype=bool))
    return numbered, int(number)


def largest_lesion(mask: np.ndarray) -> np.ndarray:
    """The largest component of a mask (z, y, x) as bool; of an empty one the mask."""
    numbered, number = lesions_of(mask)
    return numbered == np.bincount(numbered[mask]).argmax() if number else mask


def missed_lesions(reference: np.ndarray, prediction: np.ndarray, detection_overlap: float) -> np.ndarray:
    """The lesions of the reference of which less than this share of their voxels is predicted.

    Args:
        reference, prediction: bool (z, y, x).
        detection_overlap: in (0, 1], see ``evaluation.segmentation.lesions``.

    Returns:
        bool (z, y, x), those lesions whole.
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
