"""Single lesions of masks."""

from __future__ import annotations

import numpy as np
import pytest

from fvae_nnunet.ct.lesions import false_positives, largest_lesion, missed_lesions, numbered_lesions
from fvae_nnunet.evaluation.segmentation.lesions import match_lesions

SHAPE = (10, 20, 40)


def test_the_largest_lesion_is_the_component_with_most_voxels() -> None:
    mask = np.zeros(SHAPE, bool)
    mask[1, 1, 1:5] = True
    mask[2, 2, 5] = True  # touches the corner of the voxel before: the same lesion
    mask[7, 10:12, 10:12] = True
    expected = mask.copy()
    expected[7] = False
    np.testing.assert_array_equal(largest_lesion(mask), expected)
    assert not largest_lesion(np.zeros(SHAPE, bool)).any()


@pytest.mark.parametrize("seed", range(4))
def test_missed_and_false_lesions_are_those_of_the_evaluation(seed: int) -> None:
    random = np.random.default_rng(seed)
    reference, prediction = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    for mask in (reference, prediction):
        for z, y, x in random.integers(0, (8, 16, 34), (8, 3)):
            mask[z : z + 2, y : y + 3, x : x + 4] = True
    expected = match_lesions(reference, prediction, spacing_mm=(1, 1, 1), detection_overlap=0.3)
    missed, false = missed_lesions(reference, prediction, 0.3), false_positives(reference, prediction)
    assert numbered_lesions(missed)[1] == expected.detected.count(False) and not (missed & ~reference).any()
    assert numbered_lesions(false)[1] == len(expected.false_positive_diameters_mm) and not (false & ~prediction).any()


def test_nothing_is_missed_where_nothing_is() -> None:
    nothing, some = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    some[3:5, 3:5, 3:5] = True
    assert not missed_lesions(nothing, some, 0.1).any() and not false_positives(some, nothing).any()
    np.testing.assert_array_equal(missed_lesions(some, nothing, 0.1), some)
    np.testing.assert_array_equal(false_positives(nothing, some), some)
