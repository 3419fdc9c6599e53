"""The summary of one model in the shape of a comparison, so that a report reads both alike.

Nothing is computed that ``summary.json`` does not hold: there are no intervals and no comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fvae_nnunet.evaluation.segmentation.lesion_summary import ALL_SIZES, SIZES
from fvae_nnunet.evaluation.segmentation.lesions import SIZE_CLASSES
from fvae_nnunet.evaluation.segmentation.scores import HD95_KEY, nsd_key
from fvae_nnunet.nnunet.labels import VOLUME_ENDINGS

NO_INTERVAL = {"interval": [math.nan, math.nan], "interval_method": "none"}


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
            measure
            for label in facts["labels"]
            for measure in (
                *_case_measures(summary, label, model, cases),
                *_lesion_measures(label, model, sizes.get(label["key"])),
            )
        ],
        "lesions": {
            label["key"]: {model: {case: of_case[label["key"]] for case, of_case in lesions["cases"].items()}}
            for label in lesions["labels"]
        },
    }


def _case_measures(
    summary: Mapping[str, Any], label: Mapping[str, Any], model: str, cases: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    facts = summary["fvae"]
    nsds = [(nsd_key(mm), f"NSD {mm:g} mm", "") for mm in facts["tolerances_mm"]]
    for key, name, unit in (("Dice", "DSC", ""), *nsds, (HD95_KEY, "HD95", "mm")):
        values = {case: metrics[label["key"]][key] for case, metrics in cases.items()}
        valid = {case: value for case, value in values.items() if not math.isnan(value)}
        higher_is_better = key != HD95_KEY
        entry = {
            "model": model,
            "mean": summary["mean"][label["key"]][key],
            **NO_INTERVAL,
            "n": len(valid),
            "items": len(valid),
            "nan": len(values) - len(valid),
            "missing": facts["cases"]["missing"],
            "values": values,
            "best_first": sorted(valid, key=valid.__getitem__, reverse=higher_is_better),
        }
        if key == HD95_KEY:
            entry["one_empty"] = label["one_empty"]
        yield _measure(label, key, name, unit, higher_is_better, "cases", entry)


def _lesion_measures(
    label: Mapping[str, Any], model: str, sizes: Mapping[str, Mapping[str, float]] | None
) -> Iterator[dict[str, Any]]:
    if sizes is None:
        return
    for key, name, unit, higher_is_better, mean_over, items in (
        ("detection_rate", "detection rate", "", True, "lesions", "lesions"),
        ("dice_of_detected", "DSC of detected", "", True, "lesions", "detected"),
        ("false_positives_per_case", "false positives", "per case", False, "cases", None),
    ):
        for size, size_name in SIZES.items():
            counts, is_all = sizes[size], size == ALL_SIZES
            entry: dict[str, Any] = {
                "model": model,
                "mean": counts[key],
                **NO_INTERVAL,
                "n": None,
                "items": counts[items] if items else None,
                "nan": None,
                "missing": None,
                "values": {},
                "best_first": [],
            }
            yield _measure(
                label,
                key if is_all else f"{key}_{size}",
                name if is_all else f"{name}, {size_name}",
                unit,
                higher_is_better,
                mean_over,
                entry,
            )


def _measure(
    label: Mapping[str, Any],
    key: str,
    name: str,
    unit: str,
    higher_is_better: bool,
    mean_over: str,
    entry: dict[str, Any],
) -> dict[str, Any]:
    return {
        "label": label["key"],
        "label_name": label["name"],
        "key": key,
        "name": name,
        "unit": unit,
        "higher_is_better": higher_is_better,
        "mean_over": mean_over,
        "models": [entry],
        "comparisons": [],
    }
