"""Convert the summary of one model to the format of a comparison, so that a report handles both alike."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fvae_nnunet.evaluation.segmentation.lesions import SIZE_CLASSES
from fvae_nnunet.nnunet.labels import VOLUME_ENDINGS


def as_comparison(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The content of ``summary.json`` of fvae-evaluate with the keys of ``comparison.json``.

    There is one model, named after its folder; ``comparisons`` are empty, sha256 are None, and ``settings`` have no
    test.
    """
    facts = summary["fvae"]
    scored = summary["metric_per_case"]
    reference, prediction = (Path(scored[0][f"{kind}_file"]) for kind in ("reference", "prediction"))
    ending = next(ending for ending in VOLUME_ENDINGS if prediction.name.endswith(ending))
    cases = [Path(case["prediction_file"]).name.removesuffix(ending) for case in scored]
    model = facts["measures"][0]["models"][0]["model"]
    lesions = facts.get("lesions", {"labels": [], "cases": {}})
    return {
        "kind": "summary",
        "made_with": {"fvae_nnunet": facts["version"]},
        "settings": {
            **facts["statistics"],
            "tolerances_mm": facts["tolerances_mm"],
            "empty_masks": facts["empty_masks"],
            "ignore_label": facts.get("ignore_label"),
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
        "measures": [measure | {"comparisons": []} for measure in facts["measures"]],
        "lesions": {
            label["key"]: {model: {case: of_case[label["key"]] for case, of_case in lesions["cases"].items()}}
            for label in lesions["labels"]
        },
    }
