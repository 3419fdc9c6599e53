import math

import pytest

from fvae_nnunet.numbers_as_text import (
    FORMATS,
    NOT_DEFINED,
    counted,
    interval,
    interval_of,
    listed,
    nsd_name,
    number,
    p_value,
    percent,
)

NAN = math.nan


def test_digits_follow_the_quantity():
    assert [number(0.12345), number(12.345, "mm"), number(12.345, "HU"), number(38.456, "dB")] == [
        "0.123", "12.3", "12.3", "38.46"
    ]  # fmt: skip
    assert number(0.5, "per case") == "0.50" and number(1e-4, "of [0, 1]²") == "1.00e−04"
    assert number(12, "count") == "12"
    assert [number(value, "distance") for value in (1234.0, 0.5, 0.00012345)] == ["1234", "0.5000", "0.0001234"]


@pytest.mark.parametrize("quantity", FORMATS)
def test_zero_has_no_sign_and_no_value_is_one_word(quantity):
    for value in (-0.0, -1e-9, 1e-9):
        text = number(value, quantity, signed=True)
        assert quantity in ("distance", "of [0, 1]²") or text[0] not in "+−-"
    assert number(NAN, quantity) == number(NAN, quantity, signed=True) == NOT_DEFINED and number(None, quantity) == ""
    assert number(-math.inf, quantity) == "−∞" and number(math.inf, quantity) == "∞"


def test_signs_are_true_signs():
    assert [number(-0.5), number(0.5, signed=True), number(-0.00049, signed=True)] == ["−0.500", "+0.500", "0.000"]


def test_intervals_name_both_ends_or_nothing():
    assert interval(-1.24, 2, "mm", signed=True) == "−1.2 to +2.0" and interval(NAN, 1.0) == NOT_DEFINED
    assert interval_of({"interval": [1, 2], "interval_method": "percentile"}, "mm") == "1.0 to 2.0*"
    assert interval_of({"interval": [NAN, NAN], "interval_method": "none"}) == NOT_DEFINED


def test_p_values_and_shares():
    assert [p_value(p) for p in (1.0, 0.04, 0.001, 0.00099, NAN)] == ["1.000", "0.040", "0.001", "<0.001", NOT_DEFINED]
    assert [percent(share) for share in (0.95, 0.1, 1.0, 0.025, 0.3333, 0.0, NAN)] == [
        "95 %", "10 %", "100 %", "2.5 %", "33.3 %", "0 %", NOT_DEFINED
    ]  # fmt: skip


def test_words_around_numbers():
    assert [counted(n, "case") for n in (0, 1, 2)] == ["0 cases", "1 case", "2 cases"]
    assert [listed([]), listed(["a"]), listed(["a", "b", "c"])] == ["", "a", "a, b and c"]
    assert [nsd_name(mm) for mm in (2.0, 0.5)] == ["NSD 2 mm", "NSD 0.5 mm"]
