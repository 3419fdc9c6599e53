"""Verdicts and sentences for a comparison, or for the measures of one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fvae_nnunet.evaluation.statistics import signed_rank_direction
from fvae_nnunet.numbers_as_text import NOT_DEFINED, counted, interval_of, number, p_value

Measure = Mapping[str, Any]
"""One of the ``measures`` of ``comparison.json``."""

SIGNIFICANT_P = 0.05

LEAST_CASES = 6
"""With fewer cases, no two-sided signed-rank test reaches `SIGNIFICANT_P`: with 5 the smallest p is 2 / 2^5."""

FEW_CASES = 10
"""With fewer cases, a note warns that bootstrap intervals are too narrow."""

_SENTENCES = {
    "better": "{second} is better than {first}",
    "better?": "{second} may be better than {first}",
    "worse": "{second} is worse than {first}",
    "worse?": "{second} may be worse than {first}",
    "equal": "{second} and {first} are equal in every case",
    "mixed": "the mean and the test disagree on which of {second} and {first} is better",
    "unclear": "no clear difference between {second} and {first}",
    "too few": "too few cases to say which of {second} and {first} is better",
}

EXPLANATION = (
    f"better or worse: the interval of the difference excludes 0 and the corrected p is below {SIGNIFICANT_P:g}; “may "
    "be” or “?”: only one of both; mixed: p is below it, but the test and the mean have different directions, as with "
    "many small changes one way and a few large ones the other; unclear: neither, which does not show that models are "
    f"equal; too few: fewer than {LEAST_CASES} cases, with which no p can be below {SIGNIFICANT_P:g}"
)


def deciding(measures: Sequence[Measure]) -> Measure:
    """The measure of a label that determines its verdict: NSD at the first tolerance; without any, DSC."""
    return next((measure for measure in measures if measure["key"].startswith("NSD_")), measures[0])


def verdict(measure: Measure, entry: Mapping[str, Any]) -> str:
    """Verdict on the second model relative to the first: better, worse, mixed, unclear, equal or too few.

    It ends in ``?`` if only one of interval and test shows a difference, and is `NOT_DEFINED` if no case can be
    compared.
    """
    if not entry["n"]:
        return NOT_DEFINED
    if not entry["wins"] + entry["losses"]:
        return "equal"
    if entry["n"] < LEAST_CASES:
        return "too few"
    low, high = entry["interval"]
    excludes_zero, is_significant = low > 0 or high < 0, entry["p_holm"] < SIGNIFICANT_P
    if not excludes_zero and not is_significant:
        return "unclear"
    if is_significant and signed_rank_direction([*entry["differences"].values()]) * entry["mean_difference"] < 0:
        return "mixed"
    word = "better" if (entry["mean_difference"] > 0) == measure["higher_is_better"] else "worse"
    return word if excludes_zero and is_significant else f"{word}?"


def comparison_sentence(measure: Measure, entry: Mapping[str, Any]) -> str:
    """Sentence on which model is better in a measure, by how much, and with what certainty."""
    first, second, word = entry["first"], entry["second"], verdict(measure, entry)
    if word == NOT_DEFINED:
        return f"{second} and {first} cannot be compared in {measure['name']}: no case has a value from both."
    said = _SENTENCES[word].format(first=first, second=second)
    sure = [counted(entry["n"], "case")]
    if word != "equal":
        sure = [*_interval(measure, entry, signed=True), f"p {p_value(entry['p_holm'])}", *sure]
    unit = f" {measure['unit']}" if measure["unit"] else ""
    by = f"by {number(entry['mean_difference'], measure['unit'], signed=True)}{unit}"
    means = " against ".join(number(entry[f"{which}_mean"], measure["unit"]) for which in ("second", "first"))
    return f"{said} in {measure['name']}: {means}, {by} ({', '.join(sure)})."


def model_sentence(measures: Sequence[Measure]) -> str:
    """Sentence on one model in a label: the deciding measure with its interval, DSC, and detected lesions."""
    decides = deciding(measures)
    (entry,) = decides["models"]
    sure = [*_interval(decides, entry), counted(entry["n"], "case")]
    parts = [f"{decides['name']} {number(entry['mean'], decides['unit'])} ({', '.join(sure)})"]
    parts += [f"{other['name']} {number(other['models'][0]['mean'])}" for other in measures[:1] if other is not decides]
    for measure in measures:
        if measure["key"] == "detection_rate":
            (lesions,) = measure["models"]
            if lesions["items"]:
                detected = round(lesions["mean"] * lesions["items"])
                parts.append(f"{detected} of {counted(lesions['items'], 'lesion')} detected")
    return f"{', '.join(parts)}."


def _interval(measure: Measure, entry: Mapping[str, Any], *, signed: bool = False) -> list[str]:
    if entry["interval_method"] == "none":
        return []
    return [f"95 % interval {interval_of(entry, measure['unit'], signed=signed)}"]
