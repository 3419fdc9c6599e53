"""The one rule by which volumes lie in the same place."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fvae_nnunet.ct.geometry import Geometry, geometry_differences

HERE = Geometry((0.8, 0.8, 3.0), (-200.0, -150.0, 40.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({}, []),
        ({"spacing_mm": (0.8007, 0.8, 3.0)}, []),  # 0.09 %
        ({"spacing_mm": (0.801, 0.8, 3.0)}, ["spacing"]),
        ({"origin_mm": (-200.039, -150.0, 40.0)}, []),  # 0.05 voxels are 0.04 mm
        ({"origin_mm": (-200.041, -150.0, 40.0)}, ["origin"]),
        ({"direction": (1.0, 9e-4, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)}, []),
        ({"direction": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0)}, ["direction"]),
        ({"spacing_mm": (1.0, 1.0, 3.0), "origin_mm": (0.0, 0.0, 0.0)}, ["spacing", "origin"]),
    ],
)
def test_rounding_is_no_difference(change, parts):
    assert HERE.differing_parts(replace(HERE, **change)) == parts


def test_the_sentence_names_both_in_full():
    there = replace(HERE, origin_mm=(0.0, 0.0, 40.0))
    (sentence,) = geometry_differences(("image", (4, 5, 6), HERE), ("mask", (4, 5, 7), there))
    assert sentence.startswith("image and mask differ in shape and origin; image: shape (6, 5, 4), ")
    assert "mask: shape (7, 5, 4), spacing (0.8, 0.8, 3) mm, origin (0, 0, 40) mm" in sentence
    assert geometry_differences(("image", [4, 5, 6], HERE), ("mask", (4, 5, 6), HERE)) == []
