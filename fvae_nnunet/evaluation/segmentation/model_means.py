"""Results of one model in one measure: mean over cases with interval, and all values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fvae_nnunet.evaluation.segmentation.measures import Measure
from fvae_nnunet.evaluation.segmentation.scores import HD95_KEY, ScoredCase, ScoredFolder
from fvae_nnunet.evaluation.statistics import Interval, bootstrap_interval
from fvae_nnunet.nnunet.labels import Label

Values = Mapping[str, np.ndarray]
"""Case -> values (n,): one, or one for each of its lesions; NaN if undefined."""


def values_of(measure: Measure, label: Label, folder: ScoredFolder) -> Values:
    """Values of all cases that have a prediction."""
    return {case.case: measure.values(label, case) for case in folder.cases}


def model_entry(
    model: str, measure: Measure, label: Label, folder: ScoredFolder, *, seed: int, resamples: int
) -> dict[str, Any]:
    """An entry of ``models`` of ``comparison.json``, see `comparison`."""
    values = values_of(measure, label, folder)
    valid = without_nan(values)
    of_cases = means_of_cases(valid)
    mean, interval = mean_and_interval_of(valid, seed, resamples)
    entry = {
        "model": model,
        "mean": mean,
        **interval_entries(interval),
        "n": len(valid),
        "items": sum(map(len, valid.values())),
        "nan": len(values) - len(valid),
        "missing": len(folder.missing),
        "values": {case: of_cases.get(case, float("nan")) for case in values},
        "best_first": sorted(of_cases, key=lambda case: of_cases[case], reverse=measure.higher_is_better),
    }
    if measure.metric == HD95_KEY:
        entry["one_empty"] = sum(holds_alone(case, label) for case in folder.cases)
    return entry


def holds_alone(case: ScoredCase, label: Label) -> bool:
    """Whether exactly one of reference and prediction holds the label."""
    return (case.metrics[label]["n_ref"] == 0) != (case.metrics[label]["n_pred"] == 0)


def without_nan(values: Values) -> dict[str, np.ndarray]:
    """Values without NaN, of the cases that have any."""
    valid = {case: of_case[~np.isnan(of_case)] for case, of_case in values.items()}
    return {case: of_case for case, of_case in valid.items() if of_case.size}


def means_of_cases(values: Values) -> dict[str, float]:
    return {case: float(of_case.mean()) for case, of_case in values.items()}


def mean_of(values: Values) -> float:
    """Mean over all items of all cases; NaN if there are none."""
    return float(np.concatenate(list(values.values())).mean()) if values else float("nan")


def mean_and_interval_of(values: Values, seed: int, resamples: int) -> tuple[float, Interval]:
    """Mean over all items, with an interval from resampling cases with all their items."""
    sums, counts = [of_case.sum() for of_case in values.values()], [len(of_case) for of_case in values.values()]
    return mean_of(values), bootstrap_interval(sums, counts, seed=seed, resamples=resamples)


def interval_entries(interval: Interval) -> dict[str, Any]:
    return {"interval": [interval.low, interval.high], "interval_method": interval.method}
