"""Which slices a generated image and its nearest training case are shown in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from segmentations_for_tests import write

from fvae_nnunet.evaluation.generation.picture import pair_of
from fvae_nnunet.pictures.hu_windows import LUNG_HU_WINDOW
from fvae_nnunet.pictures.planes import Plane

SPACING_MM = (3.0, 1.0, 1.0)


@pytest.fixture
def cases(tmp_path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A generated image with a lesion in slice 5, and the training case of which it is a copy, 3 slices up."""
    rng = np.random.default_rng(0)
    training_hu = np.repeat(np.repeat(rng.integers(-900, 60, (14, 8, 8)), 4, axis=1), 4, axis=2).astype(np.int16)
    labels = np.zeros((10, 32, 32), np.uint8)
    labels[2:9, 4:8, 4:8] = 1
    labels[5, 10:20, 10:20] = labels[6, 12:15, 12:15] = 2
    for name, array in (("fake", training_hu[3:13]), ("train", training_hu), ("label", labels)):
        write(tmp_path / f"{name}.nii.gz", array, spacing_mm=SPACING_MM)
    fake = {"image": str(tmp_path / "fake.nii.gz"), "label": str(tmp_path / "label.nii.gz")}
    return fake, {"image": str(tmp_path / "train.nii.gz"), "label": None}


def test_the_generated_image_is_cut_through_its_lesion_and_the_training_case_where_it_is_most_alike(
    cases: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    pair = pair_of(*cases)
    assert pair.planes == (Plane(0, 5), Plane(0, 8))
    assert pair.hu_window == LUNG_HU_WINDOW and pair.spacing_mm == (SPACING_MM, SPACING_MM)
    np.testing.assert_array_equal(pair.planes[0].cut(pair.volumes[0]), pair.planes[1].cut(pair.volumes[1]))


def test_without_labels_it_is_cut_in_its_middle(cases: tuple[dict[str, Any], dict[str, Any]]) -> None:
    fake, train = cases
    assert pair_of(fake | {"label": None}, train).planes == (Plane(0, 5), Plane(0, 8))
