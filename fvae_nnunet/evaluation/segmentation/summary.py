"""The outcome of an evaluation of segmentations: nnU-Net's ``summary.json`` with NSD, HD95 and lesions, a CSV, a table.

``summary.json`` is nnU-Net's (``foreground_mean``, ``mean``, ``metric_per_case``; the same keys and values, labels and
regions as nnU-Net writes them: ``"1"``, ``"(1, 2)"``), with ``NSD_2mm`` and the like and ``HD95_mm`` beside ``Dice``,
and a further entry::

    "fvae": {"version": "0.1.0", "tolerances_mm": [2.0], "empty_masks": "nan",
             "cases": {"reference": 20, "scored": 19, "missing": 1, "missing_names": ["case_007"]},
             "labels": [{"key": "1", "name": "pancreas", "n": 18, "nan": 1, "missing": 1, "one_empty": 2}, ...],
             "lesions": {"connectivity": 26, "detection_overlap": 0.1,
                         "labels": [{"key": "2", "name": "tumour", "sizes": {"all": {...}, "below_10mm": {...}, ...}}],
                         "cases": {"case_001": {"2": {"diameters_mm": [14.2], "detected": [true], ...}}, ...}}}

For each label ``n`` cases enter the mean, ``nan`` have no value, ``missing`` have no prediction. In ``one_empty`` of
the ``n``, either reference or prediction lacks the label: Dice and NSD are 0 there, HD95 is NaN and not in its mean.
``lesions`` is there if a label is evaluated lesion by lesion; a size has the keys of `summarise_lesions`, a case those
of `CaseLesions`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import fvae_nnunet
from fvae_nnunet.evaluation.segmentation.lesion_summary import lesion_records, lesion_table, summarise_lesions
from fvae_nnunet.evaluation.segmentation.lesions import CONNECTIVITY
from fvae_nnunet.evaluation.segmentation.scores import HD95_KEY, ScoredCase, Scores, nsd_key
from fvae_nnunet.evaluation.text_table import text_table
from fvae_nnunet.nnunet.labels import VOLUME_ENDINGS, Label
from fvae_nnunet.numbers_as_text import nsd_name, number, percent


def summarise(scores: Scores) -> dict[str, Any]:
    """The content of ``summary.json`` for the first folder of some scores.

    Returns:
        See the module's docstring. ``mean`` is over cases, without NaN (NaN if no case has a value);
        ``foreground_mean`` is the mean of the labels' means, and NaN if one of them is, as in nnU-Net.
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
    rule = scores.lesion_rule
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
    """A row for each case and label, for the CSV."""
    names = {label["key"]: label["name"] for label in summary["fvae"]["labels"]}
    return [
        {"case": _case_name(case["prediction_file"]), "label": key, "name": name, **case["metrics"][key]}
        for case in summary["metric_per_case"]
        for key, name in names.items()
    ]


def format_table(summary: Mapping[str, Any]) -> str:
    """A summary as text.

    A line for each label with mean DSC, mean NSD at each tolerance, mean HD95 and the numbers of cases, and a table for
    each label that is evaluated lesion by lesion.
    """
    facts, cases = summary["fvae"], summary["fvae"]["cases"]
    metrics = ["Dice", *map(nsd_key, facts["tolerances_mm"])]
    headings = ["DSC", *map(nsd_name, facts["tolerances_mm"]), "HD95 mm"]
    rows = [["label", *headings, "n", "NaN", "missing"]]
    for name, means, counts in [
        *((label["name"], summary["mean"][label["key"]], label) for label in facts["labels"]),
        ("mean of labels", summary["foreground_mean"], {"n": "", "nan": "", "missing": ""}),
    ]:
        numbers = [*(number(means[metric]) for metric in metrics), number(means[HD95_KEY], "mm")]
        rows.append([name, *numbers, *(str(counts[count]) for count in ("n", "nan", "missing"))])
    empty = "1" if facts["empty_masks"] == "flare" else "NaN, which the mean leaves out"
    lines = [
        *text_table(rows),
        f"{cases['scored']} of {cases['reference']} cases scored; n: cases in the mean",
        f"a label that reference and prediction both lack scores {empty}; one that only one of them lacks scores 0",
    ]
    without_distance = [f"{label['name']} {label['one_empty']}" for label in facts["labels"] if label["one_empty"]]
    if without_distance:
        lines.append(f"cases that only one of them lacks, which HD95 leaves out: {', '.join(without_distance)}")
    if cases["missing"]:
        lines.append(f"{cases['missing']} predictions missing: {', '.join(cases['missing_names'])}")
    if "lesions" in facts:
        for label in facts["lesions"]["labels"]:
            lines += ["", f"lesions of {label['name']}", *lesion_table(label["sizes"])]
        lines.append(
            f"detected: at least {percent(facts['lesions']['detection_overlap'])} of the lesion's voxels predicted"
        )
    return "\n".join(lines)


def holds_alone(case: ScoredCase, label: Label) -> bool:
    """Whether reference or prediction holds the label, and the other does not."""
    return (case.metrics[label]["n_ref"] == 0) != (case.metrics[label]["n_pred"] == 0)


def _case_name(file: str) -> str:
    name = Path(file).name
    return name.removesuffix(next(ending for ending in VOLUME_ENDINGS if name.endswith(ending)))


def _mean_without_nan(values: list[float]) -> float:
    return float("nan") if np.isnan(values).all() else float(np.nanmean(values))
