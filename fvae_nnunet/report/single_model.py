"""The summary of one model in the shape of a comparison, so that a report reads both alike.

Nothing is computed that ``summary.json`` does not hold: there are no intervals and no comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fvae_nnunet.evaluation.segmentation.lesions import SIZE_CLASSES
from fvae_nnunet.evaluation.segmentation.measures import Measure, measures
from fvae_nnunet.evaluation.segmentation.scores import HD95_KEY
from fvae_nnunet.nnunet.labels import VOLUME_ENDINGS

NO_INTERVAL = {"interval": [math.nan, math.nan], "interval_method": "none"}

_ITEMS = {"detection_rate": "lesions", "dice_of_detected": "detected"}
"""Of metrics whose mean is over lesions: which of the counted lesions it is over."""


def as_comparison(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The content of ``summary.json`` of fvae-evaluate with the keys of ``comparison.json``.

    One model, named after its folder; ``comparisons`` are empty; what is not recorded is None: sha256, and of lesion
    measures the number of cases ``n`` and ``nan``. ``settings`` lack bootstrap and test.
    """
    facts = summary["fvae"]
    scored = summary["metric_per_case"]
    reference, prediction = (Path(scored[0][f"{kind}_file"]) for kind in ("reference", "prediction"))
    ending = next(ending for ending in VOLUME_ENDINGS if prediction.name.endswith(ending))
    cases = {Path(case["prediction_file"]).name.removesuffix(ending): case["metrics"] for case in scored}
    model = prediction.resolve().parent.name
    lesions = facts.get("lesions", {"labels": [], "cases": {}})
    sizes = {label["key"]: label["sizes"] for label in lesions["labels"]}
    return {
        "kind": "summary",
        "made_with": {"fvae_nnunet": facts["version"]},
        "settings": {
            "tolerances_mm": facts["tolerances_mm"],
            "empty_masks": facts["empty_masks"],
            "file_ending": ending,
            "lesions": {
                "labels": [label["key"] for label in lesions["labels"]],
                "connectivity": lesions.get("connectivity"),
                "detection_overlap": lesions.get("detection_overlap"),
                "size_classes": list(SIZE_CLASSES),
            },
        },
        "reference": {
            "folder": str(reference.parent),
            "sha256": None,
            "cases": sorted([*cases, *facts["cases"]["missing_names"]]),
        },
        "models": [
            {
                "name": model,
                "folder": str(prediction.parent),
                "sha256": None,
                "missing": facts["cases"]["missing_names"],
            }
        ],
        "labels": [{"key": label["key"], "name": label["name"]} for label in facts["labels"]],
        "measures": [
            measure.description | {"models": [entry], "comparisons": []}
            for label in facts["labels"]
            for measure, entry in _entries(summary, label, model, cases, sizes.get(label["key"]))
        ],
        "lesions": {
            label["key"]: {model: {case: of_case[label["key"]] for case, of_case in lesions["cases"].items()}}
            for label in lesions["labels"]
        },
    }


def _entries(
    summary: Mapping[str, Any],
    label: Mapping[str, Any],
    model: str,
    cases: Mapping[str, Any],
    sizes: Mapping[str, Mapping[str, float]] | None,
) -> Iterator[tuple[Measure, dict[str, Any]]]:
    """Every measure of a label with the model's entry; ``sizes`` of its lesions, if they were evaluated one by one."""
    facts = summary["fvae"]
    for measure in measures(label["key"], label["name"], facts["tolerances_mm"], has_lesions=sizes is not None):
        entry: dict[str, Any] = {"model": model, **NO_INTERVAL}
        if measure.size is not None and sizes is not None:
            counts = sizes[measure.size]
            items = counts[_ITEMS[measure.metric]] if measure.metric in _ITEMS else None
            entry |= {"mean": counts[measure.metric], "n": None, "items": items, "nan": None, "missing": None}
            yield measure, entry | {"values": {}, "best_first": []}
            continue
        values = {case: metrics[label["key"]][measure.metric] for case, metrics in cases.items()}
        valid = {case: value for case, value in values.items() if not math.isnan(value)}
        entry |= {
            "mean": summary["mean"][label["key"]][measure.metric],
            "n": len(valid),
            "items": len(valid),
            "nan": len(values) - len(valid),
            "missing": facts["cases"]["missing"],
            "values": values,
            "best_first": sorted(valid, key=valid.__getitem__, reverse=measure.higher_is_better),
        }
        if measure.metric == HD95_KEY:
            entry["one_empty"] = label["one_empty"]
        yield measure, entry
