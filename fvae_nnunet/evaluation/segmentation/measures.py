"""Measures to compare models: DSC, NSD and HD95 of each label, and detection, DSC and false positives of lesions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fvae_nnunet.evaluation.segmentation.lesion_summary import ALL_SIZES, SIZES, is_of_size
from fvae_nnunet.evaluation.segmentation.scores import HD95_KEY, ScoredCase, nsd_key
from fvae_nnunet.nnunet.labels import Label
from fvae_nnunet.numbers_as_text import nsd_name

LESION_METRICS = {
    "detection_rate": ("detection rate", "", True, "lesions"),
    "dice_of_detected": ("DSC of detected", "", True, "lesions"),
    "false_positives_per_case": ("false positives", "per case", False, "cases"),
}
"""Metrics of lesions, each for all sizes and for every size class: name in tables, unit, whether higher is better, and
the items of the mean."""


@dataclass(frozen=True)
class Measure:
    """One figure of one label.

    Attributes:
        label, label_name: key and name of the label.
        metric: key in the scores of a case, or one of `LESION_METRICS`.
        metric_name: name in tables.
        unit: "", "mm" or "per case".
        higher_is_better: whether a larger value is better.
        mean_over: items of the mean, "cases" or "lesions".
        size: size of the lesions that count, a key of `SIZES`; None: not a measure of lesions.
    """

    label: str
    label_name: str
    metric: str
    metric_name: str
    unit: str
    higher_is_better: bool
    mean_over: str
    size: str | None = None

    @property
    def description(self) -> dict[str, Any]:
        """Description of the measure in ``comparison.json``."""
        of_class = self.size not in (None, ALL_SIZES)
        return {
            "label": self.label,
            "label_name": self.label_name,
            "key": f"{self.metric}_{self.size}" if of_class else self.metric,
            "name": f"{self.metric_name}, {SIZES[str(self.size)]}" if of_class else self.metric_name,
            "unit": self.unit,
            "higher_is_better": self.higher_is_better,
            "mean_over": self.mean_over,
        }

    def values(self, label: Label, case: ScoredCase) -> np.ndarray:
        """Values of one case (n,): one value, or one for each of its lesions of the size; NaN if undefined."""
        if self.size is None:
            return np.array([case.metrics[label][self.metric]])
        lesions = case.lesions[label]
        if self.metric == "false_positives_per_case":
            return np.array([is_of_size(lesions.false_positive_diameters_mm, self.size).sum()], dtype=float)
        of_lesions = lesions.detected if self.metric == "detection_rate" else lesions.dice
        return np.array(of_lesions, dtype=float)[is_of_size(lesions.diameters_mm, self.size)]


def sizes_with_lesions(of_label: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The size classes that have lesions; empty if all lesions are in one class, which adds no information.

    Args:
        of_label: key -> one of the ``measures`` of ``comparison.json``, all of the same label.
    """
    rates = {size: of_label.get(f"detection_rate_{size}", {"models": []}) for size in SIZES if size != ALL_SIZES}
    found = [size for size, rate in rates.items() if any(entry["items"] for entry in rate["models"])]
    return found if len(found) > 1 else []


def measures(label: str, name: str, tolerances_mm: Sequence[float], *, has_lesions: bool) -> Iterator[Measure]:
    """Yield all measures of a label, given its key and name."""
    overlaps = [("Dice", "DSC"), *((nsd_key(mm), nsd_name(mm)) for mm in tolerances_mm)]
    yield from (Measure(label, name, metric, shown, "", True, "cases") for metric, shown in overlaps)
    yield Measure(label, name, HD95_KEY, "HD95", "mm", False, "cases")
    if has_lesions:
        for metric, facts in LESION_METRICS.items():
            yield from (Measure(label, name, metric, *facts, size) for size in SIZES)
