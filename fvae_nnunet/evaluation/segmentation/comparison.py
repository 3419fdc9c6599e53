"""Paired comparison of models on the same cases; the content of ``comparison.json``.

``comparison.json`` holds all statistics, so that a report need not compute any (NaN as in nnU-Net's summary.json)::

    {"schema": 1, "kind": "comparison", "made_with": {"scipy": "1.17.1", ...},
     "settings": {"confidence": 0.95, "bootstrap": "BCa", "resamples": 9999, "seed": 0,
                  "test": "Wilcoxon signed-rank, two-sided", "zero_method": "wilcox",
                  "correction": "Holm", "family": "all comparisons of one label and measure", "all_pairs": false,
                  "tolerances_mm": [2.0], "empty_masks": "nan", "ignore_label": null, "file_ending": ".nii.gz",
                  "lesions": {"labels": ["2"], "connectivity": 26, "detection_overlap": 0.1,
                              "size_classes": ["below_10mm", "10_to_20mm", "above_20mm"]}},
     "reference": {"folder": "labelsTs", "sha256": "...", "cases": ["case_001", ...]},
     "models": [{"name": "raw", "folder": "predictions_raw", "sha256": "...", "missing": []}, ...],
     "labels": [{"key": "2", "name": "tumour"}, ...],
     "measures": [{"label": "2", "label_name": "tumour", "key": "Dice", "name": "DSC", "unit": "",
                   "higher_is_better": true, "mean_over": "cases",
                   "models": [{"model": "raw", "mean": 0.61, "interval": [0.52, 0.69], "interval_method": "BCa",
                               "n": 19, "items": 19, "nan": 1, "missing": 0, "values": {"case_001": 0.7, ...},
                               "best_first": ["case_004", ...]}, ...],
                   "comparisons": [{"first": "raw", "second": "view", "first_mean": 0.61, "second_mean": 0.64,
                                    "mean_difference": 0.03, "interval": [0.01, 0.05], "interval_method": "BCa",
                                    "p": 0.02, "p_holm": 0.04, "test_method": "exact",
                                    "wins": 12, "ties": 1, "losses": 6, "n": 19, "items": 19, "nan": 1, "missing": 0,
                                    "differences": {"case_001": 0.02, ...}, "most_improved_first": ["case_007", ...],
                                    "bland_altman": {"means": {"case_001": 0.71, ...}, "bias": 0.03, "sd": 0.04,
                                                     "limits": [-0.05, 0.11]}}, ...]}, ...],
     "lesions": {"2": {"raw": {"case_001": {"diameters_mm": [...], ...}}, ...}}}

``sha256`` is the digest of a text with a line "<sha256 of the file>  <its name>" for each case in order. Differences
are second minus first, in the unit of the measure; a win is a case in which the second model is better. Of the cases in
``reference``, ``n`` are included, ``nan`` have no value (in a comparison: with one model or both), and ``missing`` have
no prediction (from one model or both). ``items`` is the number of cases or lesions, according to ``mean_over``, in the
mean; for lesions, the values and differences of cases are means over their lesions, and wins, ties, losses, test and
``bland_altman`` count each case once. The HD95 of a model also has ``one_empty``: the cases among ``nan`` in which only
the reference or only the prediction lacks the label. ``limits`` are bias -/+ 1.96 sd. ``lesions`` holds the attributes
of `lesions.CaseLesions` for each label, model and case.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from fvae_nnunet.ct.lesions import CONNECTIVITY
from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.segmentation.lesion_summary import lesion_records
from fvae_nnunet.evaluation.segmentation.lesions import SIZE_CLASSES
from fvae_nnunet.evaluation.segmentation.measures import Measure, measures
from fvae_nnunet.evaluation.segmentation.model_means import (
    interval_entries,
    mean_and_interval_of,
    mean_of,
    means_of_cases,
    model_entry,
    values_of,
    without_nan,
)
from fvae_nnunet.evaluation.segmentation.scores import Scores
from fvae_nnunet.evaluation.statistics import (
    CONFIDENCE,
    ROUNDING_DECIMALS,
    check_resampling,
    holm,
    signed_rank_test,
)
from fvae_nnunet.files.recorded import sha256_of_file
from fvae_nnunet.jobs.manifest import sha256_of_files, versions

SCHEMA = 1

LIMITS_OF_AGREEMENT_SD = 1.96
"""Bland and Altman, Lancet 327 (1986) 307-310: 95 % of normal differences are within this many sd of the bias."""


def model_names(folders: Sequence[Path], names: Sequence[str] | None) -> list[str]:
    """Names for folders of predictions; default: the folder names, or the paths if these are not unique.

    Raises:
        UserError: the number of names differs from that of folders, or two names are equal.
    """
    if names is None:
        own = [folder.resolve().name for folder in folders]
        return own if len(set(own)) == len(own) else [str(folder) for folder in folders]
    if len(names) != len(folders):
        raise UserError(f"`names` needs a name for each of the {len(folders)} folders, got {len(names)}")
    if len(set(names)) < len(names):
        raise UserError(f"`names` must be unique, got {', '.join(names)}")
    return list(names)


def compare(
    scores: Scores,
    *,
    names: Sequence[str] | None = None,
    all_pairs: bool = False,
    seed: int = 0,
    resamples: int = 9999,
) -> dict[str, Any]:
    """Compare scored folders, each with the first one, or all pairs.

    Args:
        scores: scores of at least two folders.
        names: names of the models, see `model_names`.
        all_pairs: compare every pair instead of only with the first.
        seed, resamples: seed and number of resamples of every bootstrap, see `statistics.bootstrap_interval`.

    Returns:
        The content of ``comparison.json``, see the module's docstring.

    Raises:
        UserError: fewer than two folders, or invalid names, seed or number of resamples.
    """
    if len(scores.folders) < 2:
        raise UserError("a comparison needs at least two folders of predictions")
    check_resampling(seed, resamples)
    models = model_names([folder.folder for folder in scores.folders], names)
    pairs = [pair for pair in combinations(range(len(models)), 2) if all_pairs or pair[0] == 0]
    predicted = scores.folders[0]
    cases = sorted([*(case.case for case in predicted.cases), *predicted.missing])
    label_names = scores.scheme.names
    compared = []
    for label, name in label_names.items():
        has_lesions = label in scores.lesion_rule.labels
        for measure in measures(str(label), name, scores.tolerances_mm, has_lesions=has_lesions):
            values = [values_of(measure, label, folder) for folder in scores.folders]
            of_models = [
                model_entry(model, measure, label, folder, seed=seed, resamples=resamples)
                for model, folder in zip(models, scores.folders, strict=True)
            ]
            of_pairs = [
                {"first": models[a], "second": models[b]}
                | _comparison(values[a], values[b], measure, cases, seed, resamples)
                for a, b in pairs
            ]
            for entry, p_holm in zip(of_pairs, holm([entry["p"] for entry in of_pairs]), strict=True):
                entry["p_holm"] = p_holm
            compared.append(measure.description | {"models": of_models, "comparisons": of_pairs})
    return {
        "schema": SCHEMA,
        "kind": "comparison",
        "made_with": versions() | {"scipy": version("scipy"), "monai": version("monai")},
        "settings": _settings(scores, all_pairs, seed, resamples),
        "reference": {
            "folder": str(scores.reference_folder),
            "sha256": _sha256(scores.reference_folder / f"{case}{scores.scheme.file_ending}" for case in cases),
            "cases": cases,
        },
        "models": [
            {
                "name": model,
                "folder": str(folder.folder),
                "sha256": _sha256(case.prediction for case in folder.cases),
                "missing": folder.missing,
            }
            for model, folder in zip(models, scores.folders, strict=True)
        ],
        "labels": [{"key": str(label), "name": name} for label, name in label_names.items()],
        "measures": compared,
        "lesions": {
            str(label): {
                model: {case.case: lesion_records(case)[str(label)] for case in folder.cases}
                for model, folder in zip(models, scores.folders, strict=True)
            }
            for label in scores.lesion_rule.labels
        },
    }


def _settings(scores: Scores, all_pairs: bool, seed: int, resamples: int) -> dict[str, Any]:
    return {
        "confidence": CONFIDENCE,
        "bootstrap": "BCa",
        "resamples": resamples,
        "seed": seed,
        "test": "Wilcoxon signed-rank, two-sided",
        "zero_method": "wilcox",
        "correction": "Holm",
        "family": "all comparisons of one label and measure",
        "all_pairs": all_pairs,
        "tolerances_mm": [float(tolerance_mm) for tolerance_mm in scores.tolerances_mm],
        "empty_masks": scores.empty_masks,
        "ignore_label": scores.scheme.ignore_label,
        "file_ending": scores.scheme.file_ending,
        "lesions": {
            "labels": [str(label) for label in scores.lesion_rule.labels],
            "connectivity": CONNECTIVITY,
            "detection_overlap": scores.lesion_rule.detection_overlap,
            "size_classes": list(SIZE_CLASSES),
        },
    }


def _comparison(
    before: Mapping[str, np.ndarray],
    after: Mapping[str, np.ndarray],
    measure: Measure,
    cases: Sequence[str],
    seed: int,
    resamples: int,
) -> dict[str, Any]:
    """Comparison of two models by one measure, without ``p_holm``, which is added later."""
    both = [case for case in cases if case in before and case in after]
    differences = without_nan({case: after[case] - before[case] for case in both})
    # only items with a value from both: a lesion not detected by one model has no DSC to compare
    kept = {case: ~np.isnan(after[case] - before[case]) for case in differences}
    first_values, second_values = ({case: of[case][kept[case]] for case in kept} for of in (before, after))
    of_cases = {case: round(value, ROUNDING_DECIMALS) for case, value in means_of_cases(differences).items()}
    mean, interval = mean_and_interval_of(differences, seed, resamples)
    test = signed_rank_test(list(of_cases.values()))
    gains = np.array(list(of_cases.values())) * (1 if measure.higher_is_better else -1)
    return {
        "first_mean": mean_of(first_values),
        "second_mean": mean_of(second_values),
        "mean_difference": mean,
        **interval_entries(interval),
        "p": test.p,
        "test_method": test.method,
        "wins": int((gains > 0).sum()),
        "ties": int((gains == 0).sum()),
        "losses": int((gains < 0).sum()),
        "n": len(differences),
        "items": sum(map(len, differences.values())),
        "nan": len(both) - len(differences),
        "missing": len(cases) - len(both),
        "differences": of_cases,
        "most_improved_first": sorted(of_cases, key=lambda case: of_cases[case], reverse=measure.higher_is_better),
        "bland_altman": _bland_altman(means_of_cases(first_values), means_of_cases(second_values), of_cases),
    }


def _bland_altman(
    before: Mapping[str, float], after: Mapping[str, float], differences: Mapping[str, float]
) -> dict[str, Any]:
    values = np.array(list(differences.values()))
    bias = float(values.mean()) if values.size else float("nan")
    sd = float(values.std(ddof=1)) if values.size > 1 else float("nan")
    return {
        "means": {case: (before[case] + after[case]) / 2 for case in differences},
        "bias": bias,
        "sd": sd,
        "limits": [bias - LIMITS_OF_AGREEMENT_SD * sd, bias + LIMITS_OF_AGREEMENT_SD * sd],
    }


def _sha256(paths: Iterable[Path]) -> str:
    return sha256_of_files({path: sha256_of_file(path) for path in paths})
