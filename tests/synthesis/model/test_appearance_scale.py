"""The scale of the appearance of lesions that a network is told."""

from __future__ import annotations

import math

import pytest
import torch

from fvae_nnunet.synthesis.model.lesion_detail import MOST_SDS, AppearanceScale


def test_unknown_appearances_do_not_count_and_are_the_mean():
    scale = AppearanceScale.of([[30.0, 8.0], [math.nan, math.nan], [50.0, 12.0]])
    assert scale == AppearanceScale((40.0, 10.0), (10.0, 2.0))
    values = torch.tensor([30.0, math.nan]).view(1, 2, 1, 1, 1)
    assert scale.scaled(values).flatten().tolist() == [-1.0, 0.0]
    assert AppearanceScale.of([[math.nan, math.nan]]) == AppearanceScale.of([])


def test_brightness_far_from_that_of_the_training_is_limited():
    scale = AppearanceScale((36.0, 10.0), (9.0, 2.0))
    asked = torch.tensor([-650.0, 10.0]).view(1, 2, 1, 1, 1)
    assert scale.scaled(asked).flatten().tolist() == pytest.approx([-MOST_SDS, 0.0])
