"""What models are compared by: for each label DSC, NSD, HD95, and detection, DSC and false positives of lesions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from fvae_nnunet.evaluation.segmentation.lesion_summary import ALL_SIZES, SIZES, is_of_size
from fvae_nnunet.evaluation.segmentation.lesions import CaseLesions
from fvae_nnunet.evaluation.segmentation.scores import HD95_KEY, ScoredCase, Scores, nsd_key
from fvae_nnunet.nnunet.labels import Label


@dataclass(frozen=True)
class Measure:
    """One figure of one label.

    Attributes:
        label: label or region.
        key: in files, such as ``NSD_2mm``.
        name: in tables, such as ``NSD 2 mm``.
        unit: "", "mm" or "per case".
        higher_is_better: whether a larger value is the better one.
        mean_over: "cases", or "lesions".
        values: for each model, in the order of the folders: case -> values (n,), NaN where there is none. One value for
            the case, or one for each of its lesions of the size in question, the same lesions for every model.
    """

    label: Label
    key: str
    name: str
    unit: str
    higher_is_better: bool
    mean_over: str
    values: tuple[Mapping[str, np.ndarray], ...]


def measures(scores: Scores) -> Iterator[Measure]:
    """Every measure of every label, in the order of dataset.json."""
    for label in scores.scheme.names:
        overlaps = [("Dice", "DSC"), *((nsd_key(mm), f"NSD {mm:g} mm") for mm in scores.tolerances_mm)]
        for key, name in overlaps:
            yield _measure(scores, label, key, name, "", True, "cases", _metric(label, key))
        yield _measure(scores, label, HD95_KEY, "HD95", "mm", False, "cases", _metric(label, HD95_KEY))
        if label not in scores.lesion_rule.labels:
            continue
        for key, name, unit, higher_is_better, mean_over, values in (
            ("detection_rate", "detection rate", "", True, "lesions", _detected),
            ("dice_of_detected", "DSC of detected", "", True, "lesions", _dice),
            ("false_positives_per_case", "false positives", "per case", False, "cases", _false_positives),
        ):
            for size in SIZES:
                yield _measure(
                    scores,
                    label,
                    key if size == ALL_SIZES else f"{key}_{size}",
                    name if size == ALL_SIZES else f"{name}, {SIZES[size]}",
                    unit,
                    higher_is_better,
                    mean_over,
                    _of_lesions(label, values, size),
                )


def _measure(
    scores: Scores,
    label: Label,
    key: str,
    name: str,
    unit: str,
    higher_is_better: bool,
    mean_over: str,
    values: Callable[[ScoredCase], np.ndarray],
) -> Measure:
    of_models = tuple({case.case: values(case) for case in folder.cases} for folder in scores.folders)
    return Measure(label, key, name, unit, higher_is_better, mean_over, of_models)


def _metric(label: Label, key: str) -> Callable[[ScoredCase], np.ndarray]:
    return lambda case: np.array([case.metrics[label][key]])


def _of_lesions(
    label: Label, values: Callable[[CaseLesions, str], np.ndarray], size: str
) -> Callable[[ScoredCase], np.ndarray]:
    return lambda case: values(case.lesions[label], size)


def _detected(lesions: CaseLesions, size: str) -> np.ndarray:
    return np.array(lesions.detected, dtype=float)[is_of_size(lesions.diameters_mm, size)]


def _dice(lesions: CaseLesions, size: str) -> np.ndarray:
    return np.array(lesions.dice, dtype=float)[is_of_size(lesions.diameters_mm, size)]


def _false_positives(lesions: CaseLesions, size: str) -> np.ndarray:
    return np.array([is_of_size(lesions.false_positive_diameters_mm, size).sum()], dtype=float)
