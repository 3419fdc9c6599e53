"""What a comparison says in a word, in a sentence, and in tables of 80 columns."""

import math

import numpy as np
import pytest
from scipy.stats import wilcoxon

from fvae_nnunet.evaluation.segmentation.results_text import format_comparison
from fvae_nnunet.evaluation.segmentation.verdict import (
    LEAST_CASES,
    SIGNIFICANT_P,
    comparison_sentence,
    deciding,
    model_sentence,
    verdict,
)

NAN = math.nan


def measure(key="NSD_2mm", name="NSD 2 mm", *, unit="", higher=True, label="1", of_lesions=False, **entry):
    """One measure with two models and their comparison."""
    compared = {
        "first": "raw", "second": "view", "first_mean": 0.6, "second_mean": 0.7, "mean_difference": 0.1,
        "interval": [0.05, 0.15], "interval_method": "BCa", "p": 0.01, "p_holm": 0.01, "wins": 8, "ties": 0,
        "losses": 2, "n": 10, "items": 10, "nan": 0, "missing": 0,
    } | entry  # fmt: skip
    compared.setdefault("differences", {"case": compared["mean_difference"]})
    models = [
        {"model": compared[which], "mean": 0.5, "interval": [0.4, 0.6], "interval_method": "BCa", "n": 10, "items": 4,
         "nan": 0, "missing": 0, "one_empty": 0}
        for which in ("first", "second")
    ]  # fmt: skip
    return {
        "label": label, "label_name": "tumour", "key": key, "name": name, "unit": unit, "higher_is_better": higher,
        "mean_over": "lesions" if of_lesions else "cases", "models": models, "comparisons": [compared],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("higher", "entry", "word"),
    [
        (True, {}, "better"),
        (False, {}, "worse"),
        (True, {"mean_difference": -0.1, "interval": [-0.2, -0.05]}, "worse"),
        (False, {"mean_difference": -0.1, "interval": [-0.2, -0.05]}, "better"),
        (True, {"p_holm": 0.06}, "better?"),
        (False, {"p_holm": 0.06}, "worse?"),
        (True, {"interval": [-0.01, 0.2]}, "better?"),
        (True, {"interval": [NAN, NAN], "interval_method": "none", "p_holm": 0.5}, "unclear"),
        (True, {"interval": [-0.01, 0.2], "p_holm": 0.3}, "unclear"),
        (True, {"wins": 0, "losses": 0, "ties": 10}, "equal"),
        (True, {"n": 0, "mean_difference": NAN}, "n/a"),
        (True, {"differences": {"a": -0.01, "b": -0.02, "c": -0.03, "d": 0.16}}, "mixed"),
        (False, {"differences": {"a": -0.01, "b": -0.02, "c": -0.03, "d": 0.16}, "interval": [-0.01, 0.2]}, "mixed"),
        (True, {"differences": {"a": -0.01, "b": -0.02, "c": -0.03, "d": 0.16}, "p_holm": 0.06}, "better?"),
        (True, {"n": 5, "p_holm": 0.0625}, "too few"),
        (True, {"n": 6, "p_holm": 0.03125}, "better"),
    ],
)
def test_a_verdict_needs_interval_and_test(higher, entry, word):
    found = measure(higher=higher, **entry)
    assert verdict(found, found["comparisons"][0]) == word


def test_with_fewer_cases_no_test_could_reach_what_is_asked_for():
    smallest_p = [wilcoxon(np.arange(1, n + 1)).pvalue for n in (LEAST_CASES - 1, LEAST_CASES)]
    assert smallest_p[0] > SIGNIFICANT_P > smallest_p[1]


def test_a_sentence_says_which_by_how_much_and_how_sure():
    found = measure()
    assert comparison_sentence(found, found["comparisons"][0]) == (
        "view is better than raw in NSD 2 mm: 0.700 against 0.600, by +0.100 (95 % interval +0.050 to +0.150, p 0.010, "
        "10 cases)."
    )
    none = measure(n=0)
    assert comparison_sentence(none, none["comparisons"][0]) == (
        "view and raw cannot be compared in NSD 2 mm: no case has a value from both."
    )
    equal = measure(wins=0, losses=0, mean_difference=-0.0, n=1)
    assert comparison_sentence(equal, equal["comparisons"][0]).endswith("by 0.000 (1 case).")
    distance = measure("HD95_mm", "HD95", unit="mm", higher=False, mean_difference=-2.04, interval=[-3.0, -1.0])
    assert "view is better than raw in HD95: 0.7 against 0.6, by −2.0 mm (95 %" in comparison_sentence(
        distance, distance["comparisons"][0]
    )


def test_the_nsd_at_the_first_tolerance_decides():
    measures = [measure("Dice", "DSC"), measure("NSD_1mm", "NSD 1 mm"), measure()]
    assert deciding(measures)["name"] == "NSD 1 mm" and deciding(measures[:1])["name"] == "DSC"


def test_one_model_has_a_sentence_too():
    measures = [measure("Dice", "DSC"), measure(), measure("detection_rate", "detection rate", of_lesions=True)]
    for one in measures:
        del one["models"][1]
    assert model_sentence(measures) == (
        "NSD 2 mm 0.500 (95 % interval 0.400 to 0.600, 10 cases), DSC 0.500, 2 of 4 lesions detected."
    )


def comparison_of(measures, names=("raw", "view"), label="tumour"):
    for one in measures:
        one["comparisons"][0] |= dict(zip(("first", "second"), names, strict=True))
        for entry, name in zip(one["models"], names, strict=True):
            entry["model"] = name
    return {
        "labels": [{"key": "1", "name": label}], "measures": measures, "reference": {"cases": ["case"] * 10},
        "settings": {"bootstrap": "BCa", "resamples": 9999, "seed": 0,
                     "lesions": {"labels": ["1"], "detection_overlap": 0.1}},
        "models": [{"name": name, "missing": []} for name in names],
    }  # fmt: skip


def widest(text):
    return max(map(len, text.splitlines()))


def with_lesions(sizes):
    """Measures of a label whose lesions are of these sizes."""
    rate = measure("detection_rate", "detection rate", of_lesions=True)
    of_sizes = []
    for size in ("below_10mm", "10_to_20mm", "above_20mm"):
        of_size = measure(f"detection_rate_{size}", f"detection rate, {size}", of_lesions=True)
        for entry in of_size["models"]:
            entry["items"] = 2 if size in sizes else 0
        of_sizes.append(of_size)
    return [measure("Dice", "DSC"), rate, *of_sizes]


@pytest.mark.parametrize("names", [("raw", "view"), (f"{'a' * 34}_{'b' * 35}", f"{'c' * 34}_{'d' * 35}")])
def test_tables_fit_into_eighty_columns(names):
    far = {"mean_difference": -123.4, "interval": [-223.4, -101.1], "first_mean": 200.0, "second_mean": 100.0}
    measures = [measure("NSD_0.25mm", "NSD 0.25 mm"), measure("HD95_mm", "HD95", unit="mm", higher=False, **far)]
    measures.append(measure("dice_of_detected", "DSC of detected", of_lesions=True))
    text = format_comparison(comparison_of(measures, names, label="a label of a very long name " * 3))
    assert widest(text) <= 80 and "−223.4 to −101.1" in text
    assert all(name in text for name in names), "in full, once"


def test_sizes_are_shown_only_where_there_are_lesions():
    text = format_comparison(comparison_of(with_lesions(("below_10mm", "above_20mm"))))
    assert "  below 10 mm" in text and "  above 20 mm" in text and "10 to 20 mm" not in text
    text = format_comparison(comparison_of(with_lesions(("above_20mm",))))
    assert "20 mm" not in text, "one size is all sizes"


def test_no_case_has_no_p():
    text = format_comparison(comparison_of([measure(n=0, p=1.0, p_holm=1.0, mean_difference=NAN)]))
    (row,) = [line for line in text.splitlines() if line.startswith("  NSD 2 mm")]
    assert row.split()[-2:] == ["n/a", "n/a"] and "1.000" not in row
