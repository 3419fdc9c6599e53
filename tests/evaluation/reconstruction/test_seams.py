import numpy as np
import pytest

from fvae_nnunet.evaluation.reconstruction.seams import seam_score


def test_a_jump_of_the_error_is_measured_against_the_change_elsewhere():
    raw = np.random.default_rng(0).normal(scale=500, size=(8, 4, 4)).round()
    error = np.array([0, 1, 2, 3, 13, 14, 15, 16])[:, None, None]  # 1 HU per slice, 10 HU at slice 4
    assert seam_score(raw, raw + error, [4]) == pytest.approx(10)
    assert seam_score(raw, raw - error, [4]) == pytest.approx(10)
    assert seam_score(raw, raw + error, [2]) == pytest.approx(1 / ((5 + 10) / 6))


def test_the_anatomy_cancels_and_a_faithful_reconstruction_has_no_seams():
    raw = np.random.default_rng(0).integers(-1000, 1000, size=(8, 4, 4)).astype(np.int16)
    assert np.isnan(seam_score(raw, raw, [4]))
    step = np.repeat([0, 5], 4)[:, None, None]
    assert seam_score(raw, raw + step, [4]) == np.inf


@pytest.mark.parametrize("borders", [[], [0], [8], [1, 2, 3, 4, 5, 6, 7]])
def test_without_borders_or_other_slices_there_is_no_score(borders):
    assert np.isnan(seam_score(np.zeros((8, 2, 2)), np.ones((8, 2, 2)), borders))
