"""Results of an evaluation of segmentations: nnU-Net's ``summary.json`` with NSD, HD95 and lesions, and a CSV.

``summary.json`` is nnU-Net's (``foreground_mean``, ``mean``, ``metric_per_case``, with the same keys and values; labels
and regions as written by nnU-Net: ``"1"``, ``"(1, 2)"``), with ``NSD_2mm`` etc. and ``HD95_mm`` beside ``Dice``, and
one more entry::

    "fvae": {"version": "0.1.0", "tolerances_mm": [2.0], "empty_masks": "nan", "ignore_label": null,
             "cases": {"reference": 20, "scored": 19, "missing": 1, "missing_names": ["case_007"]},
             "labels": [{"key": "1", "name": "pancreas", "n": 18, "nan": 1, "missing": 1, "one_empty": 2}, ...],
             "statistics": {"confidence": 0.95, "bootstrap": "BCa", "resamples": 9999, "seed": 0},
             "measures": [{"label": "1", "key": "Dice", "models": [{"mean": 0.61, "interval": [...], ...}], ...}, ...],
             "lesions": {"connectivity": 26, "detection_overlap": 0.1,
                         "labels": [{"key": "2", "name": "tumour", "sizes": {"all": {...}, "below_10mm": {...}, ...}}],
                         "cases": {"case_001": {"2": {"diameters_mm": [14.2], "detected": [true], ...}}, ...}}}

For each label, ``n`` cases are in the mean, ``nan`` have no value, ``missing`` have no prediction. In ``one_empty`` of
the ``n``, only the reference or only the prediction lacks the label: Dice and NSD are 0, HD95 is NaN and not in its
mean. ``lesions`` exists if a label is evaluated by lesion; a size has the keys of `summarise_lesions`, a case those of
`CaseLesions`. ``measures`` are as in ``comparison.json`` (`comparison`), for one model and without comparisons.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import fvae_nnunet
from fvae_nnunet.ct.lesions import CONNECTIVITY
from fvae_nnunet.evaluation.segmentation.lesion_summary import lesion_records, summarise_lesions
from fvae_nnunet.evaluation.segmentation.measures import measures
from fvae_nnunet.evaluation.segmentation.model_means import holds_alone, model_entry
from fvae_nnunet.evaluation.segmentation.scores import Scores
from fvae_nnunet.evaluation.statistics import CONFIDENCE
from fvae_nnunet.nnunet.labels import VOLUME_ENDINGS


def summarise(scores: Scores, *, seed: int = 0, resamples: int = 9999) -> dict[str, Any]:
    """The content of ``summary.json`` for the first scored folder.

    Args:
        scores: scores; only the first folder is used.
        seed, resamples: seed and number of resamples of every bootstrap, see `statistics.bootstrap_interval`.

    Returns:
        See the module's docstring. ``mean`` is over cases, without NaN (NaN if no case has a value);
        ``foreground_mean`` is the mean of the labels' means, and NaN if one of them is NaN, as in nnU-Net.
    """
    names, scored, missing = scores.scheme.names, scores.folders[0].cases, scores.folders[0].missing
    metrics = list(scored[0].metrics[next(iter(names))])
    mean = {
        str(label): {metric: _mean_without_nan([case.metrics[label][metric] for case in scored]) for metric in metrics}
        for label in names
    }
    without_value = {label: sum(bool(np.isnan(case.metrics[label]["Dice"])) for case in scored) for label in names}
    summary: dict[str, Any] = {
        "foreground_mean": {
            metric: float(np.mean([of_label[metric] for of_label in mean.values()])) for metric in metrics
        },
        "mean": mean,
        "metric_per_case": [
            {
                "metrics": {str(label): dict(values) for label, values in case.metrics.items()},
                "reference_file": str(case.reference),
                "prediction_file": str(case.prediction),
            }
            for case in scored
        ],
        "fvae": {
            "version": fvae_nnunet.__version__,
            "tolerances_mm": [float(tolerance_mm) for tolerance_mm in scores.tolerances_mm],
            "empty_masks": scores.empty_masks,
            "ignore_label": scores.scheme.ignore_label,
            "cases": {
                "reference": len(scored) + len(missing),
                "scored": len(scored),
                "missing": len(missing),
                "missing_names": missing,
            },
            "labels": [
                {
                    "key": str(label),
                    "name": name,
                    "n": len(scored) - without_value[label],
                    "nan": without_value[label],
                    "missing": len(missing),
                    "one_empty": sum(holds_alone(case, label) for case in scored),
                }
                for label, name in names.items()
            ],
        },
    }
    rule, model = scores.lesion_rule, scores.folders[0].folder.resolve().name
    summary["fvae"]["statistics"] = {
        "confidence": CONFIDENCE, "bootstrap": "BCa", "resamples": resamples, "seed": seed,
    }  # fmt: skip
    summary["fvae"]["measures"] = [
        measure.description
        | {"models": [model_entry(model, measure, label, scores.folders[0], seed=seed, resamples=resamples)]}
        for label, name in names.items()
        for measure in measures(str(label), name, scores.tolerances_mm, has_lesions=label in rule.labels)
    ]
    if rule.labels:
        summary["fvae"]["lesions"] = {
            "connectivity": CONNECTIVITY,
            "detection_overlap": rule.detection_overlap,
            "labels": [
                {
                    "key": str(label),
                    "name": names[label],
                    "sizes": summarise_lesions([case.lesions[label] for case in scored]),
                }
                for label in rule.labels
            ],
            "cases": {case.case: lesion_records(case) for case in scored},
        }
    return summary


def case_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the CSV, one per case and label."""
    names = {label["key"]: label["name"] for label in summary["fvae"]["labels"]}
    return [
        {"case": _case_name(case["prediction_file"]), "label": key, "name": name, **case["metrics"][key]}
        for case in summary["metric_per_case"]
        for key, name in names.items()
    ]


def _case_name(file: str) -> str:
    name = Path(file).name
    return name.removesuffix(next(ending for ending in VOLUME_ENDINGS if name.endswith(ending)))


def _mean_without_nan(values: list[float]) -> float:
    return float("nan") if np.isnan(values).all() else float(np.nanmean(values))
