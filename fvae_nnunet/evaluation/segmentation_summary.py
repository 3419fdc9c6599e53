"""The outcome of an evaluation of segmentations: nnU-Net's ``summary.json`` with NSD, a CSV, a table.

``summary.json`` is nnU-Net's (``foreground_mean``, ``mean``, ``metric_per_case``; the same keys and values, labels and
regions as nnU-Net writes them: ``"1"``, ``"(1, 2)"``), with ``NSD_2mm`` and the like beside ``Dice``, and a further
entry::

    "fvae": {"version": "0.1.0", "tolerances_mm": [2.0], "empty_masks": "nan",
             "cases": {"reference": 20, "scored": 19, "missing": 1, "missing_names": ["case_007"]},
             "labels": [{"key": "1", "name": "pancreas", "n": 18, "nan": 1, "missing": 1}, ...]}

For each label ``n`` cases enter the mean, ``nan`` have no value, ``missing`` have no prediction.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import fvae_nnunet
from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.label_scheme import VOLUME_ENDINGS, Label
from fvae_nnunet.manifest import atomic_write, write_json

CaseMetrics = Mapping[Label, Mapping[str, float]]
"""Label or region -> metric -> value."""


@dataclass(frozen=True)
class ScoredCase:
    """One case with the files that were compared."""

    case: str
    reference: Path
    prediction: Path
    metrics: CaseMetrics


def nsd_key(tolerance_mm: float) -> str:
    """The key of the NSD in a summary: ``NSD_2mm``, ``NSD_0.5mm``."""
    return f"NSD_{tolerance_mm:g}mm"


def summarise(
    scored: Sequence[ScoredCase],
    *,
    names: Mapping[Label, str],
    missing: Sequence[str],
    tolerances_mm: Sequence[float],
    empty_masks: str,
) -> dict[str, Any]:
    """The content of ``summary.json``.

    Args:
        scored: at least one case, in the order of the summary.
        names: the labels and regions that were scored, with their names.
        missing: the cases without a prediction.
        tolerances_mm, empty_masks: with which the cases were scored.

    Returns:
        See the module's docstring. ``mean`` is over cases, without NaN (NaN if no case has a value);
        ``foreground_mean`` is the mean of the labels' means, and NaN if one of them is, as in nnU-Net.
    """
    metrics = list(scored[0].metrics[next(iter(names))])
    mean = {
        str(label): {metric: _mean_without_nan([case.metrics[label][metric] for case in scored]) for metric in metrics}
        for label in names
    }
    without_value = {label: sum(bool(np.isnan(case.metrics[label]["Dice"])) for case in scored) for label in names}
    return {
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
            "tolerances_mm": [float(tolerance_mm) for tolerance_mm in tolerances_mm],
            "empty_masks": empty_masks,
            "cases": {
                "reference": len(scored) + len(missing),
                "scored": len(scored),
                "missing": len(missing),
                "missing_names": list(missing),
            },
            "labels": [
                {
                    "key": str(label),
                    "name": name,
                    "n": len(scored) - without_value[label],
                    "nan": without_value[label],
                    "missing": len(missing),
                }
                for label, name in names.items()
            ],
        },
    }


def write_summary(summary: dict[str, Any], path: Path) -> Path:
    """Write ``summary.json`` and beside it a CSV of the same name with a row for each case and label.

    Returns:
        The path of the CSV.

    Raises:
        UserError: one of them cannot be written.
    """
    table = path.with_suffix(".csv")
    names = {label["key"]: label["name"] for label in summary["fvae"]["labels"]}
    rows = [
        {"case": _case_name(case["prediction_file"]), "label": key, "name": name, **case["metrics"][key]}
        for case in summary["metric_per_case"]
        for key, name in names.items()
    ]
    try:
        with atomic_write(table) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        write_json(path, summary)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; choose another file with -o") from error
    return table


def format_table(summary: dict[str, Any]) -> str:
    """A summary as text: a line for each label with mean DSC, mean NSD at each tolerance, and the numbers of cases."""
    facts, cases = summary["fvae"], summary["fvae"]["cases"]
    metrics = ["Dice", *map(nsd_key, facts["tolerances_mm"])]
    headings = ["DSC", *(f"NSD {tolerance_mm:g} mm" for tolerance_mm in facts["tolerances_mm"])]
    rows = [["label", *headings, "n", "NaN", "missing"]]
    for label in facts["labels"]:
        means = [f"{summary['mean'][label['key']][metric]:.4f}" for metric in metrics]
        rows.append([label["name"], *means, *(str(label[count]) for count in ("n", "nan", "missing"))])
    rows.append(["mean of labels", *(f"{summary['foreground_mean'][metric]:.4f}" for metric in metrics), "", "", ""])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    empty = "1" if facts["empty_masks"] == "flare" else "NaN, which the mean leaves out"
    lines += [
        f"{cases['scored']} of {cases['reference']} cases scored; n: cases in the mean",
        f"a label that reference and prediction both lack scores {empty}; one that only one of them lacks scores 0",
    ]
    if cases["missing"]:
        lines.append(f"{cases['missing']} predictions missing: {', '.join(cases['missing_names'])}")
    return "\n".join(lines)


def _case_name(file: str) -> str:
    name = Path(file).name
    return name.removesuffix(next(ending for ending in VOLUME_ENDINGS if name.endswith(ending)))


def _mean_without_nan(values: list[float]) -> float:
    return float("nan") if np.isnan(values).all() else float(np.nanmean(values))
