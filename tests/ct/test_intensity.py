import numpy as np
import pytest
import torch

from fvae_nnunet.ct.hu_windows import PAPER_HU_WINDOW, check_hu_window
from fvae_nnunet.ct.intensity import as_stored_by_scanners, hu_to_model, model_to_hu, round_to_int16
from fvae_nnunet.errors import UserError


def test_window_ends_and_middle_map_to_minus_one_zero_one_and_metal_is_clipped():
    hu = torch.tensor([-3024, -1000, -160, 40, 240, 1000, 3071], dtype=torch.int16)
    assert hu_to_model(hu, PAPER_HU_WINDOW).tolist() == pytest.approx([-1, -1, -0.16, 0.04, 0.24, 1, 1])
    assert hu_to_model(hu, (-160, 240)).tolist() == pytest.approx([-1, -1, -1, 0, 1, 1, 1])


def test_a_scanner_stores_whole_hu_of_twelve_bits():
    stored = as_stored_by_scanners(np.array([-3024.0, -1024.4, -0.6, 0.4, 40.5, 3071.4, 9000.0]))
    assert stored.dtype == np.int16 and stored.tolist() == [-1024, -1024, -1, 0, 40, 3071, 3071]


def test_model_values_outside_the_range_are_clamped():
    assert model_to_hu(torch.tensor([-1.5, -1, 0, 0.5, 7]), (-160, 240)).tolist() == [-160, -160, 40, 140, 240]


@pytest.mark.parametrize("hu_window", [(-1000.0, 1000.0), (-160.0, 240.0), (-1024.0, 3071.0)])
def test_every_integer_hu_in_the_window_survives_the_round_trip(hu_window):
    hu = torch.arange(int(hu_window[0]), int(hu_window[1]) + 1, dtype=torch.int16)
    back = round_to_int16(model_to_hu(hu_to_model(hu, hu_window), hu_window).numpy())
    assert np.array_equal(back, hu.numpy())


@pytest.mark.parametrize("hu_window", [(100, 100), (240, -160), (float("nan"), 1), (-1000, float("inf"))])
def test_a_window_without_width_is_refused(hu_window):
    with pytest.raises(UserError, match="lower < upper"):
        check_hu_window(hu_window)


def test_hu_are_rounded_not_truncated():
    assert round_to_int16(np.array([-1.6, -1.4, 0.6, 99.9])).tolist() == [-2, -1, 1, 100]


@pytest.mark.parametrize("value", [32767.6, -32768.6, float("nan"), float("inf")])
def test_what_int16_cannot_hold_is_refused(value):
    with pytest.raises(UserError):
        round_to_int16(np.array([0.0, value]))


def test_the_limits_of_int16_pass():
    assert round_to_int16(np.array([-32768.4, 32767.4])).tolist() == [-32768, 32767]
