"""AUC of findings classifiers and their paired differences; the content of ``findings_comparison.json``.

::

    {"schema": 1, "kind": "findings_comparison", "made_with": {...},
     "settings": {"confidence": 0.95, "resamples": 9999, "seed": 0, "all_pairs": false, ...},
     "models": [{"name": "real", "file": "...", "sha256": "...", "missing": []}, ...],
     "cases": 80, "patients": 80, "without_findings": [...],
     "findings": [{"name": "Atelectasis", "positive": 21, "negative": 59, "reason": null,
                   "models": [{"model": "real", "auc": 0.68, "interval": [0.55, 0.81],
                               "interval_method": "DeLong"}, ...],
                   "comparisons": [{"first": "real", "second": "real+synthetic", "difference": 0.03,
                                    "interval": [-0.01, 0.07], "interval_method": "DeLong", "p": 0.14,
                                    "p_holm": 1.0}, ...]}, ...],
     "mean": {"findings": 18, "resamples_with_fewer_findings": 0.01, "models": [...], "comparisons": [...]},
     "paper": {...}}

AUC and differences (second minus first) are in [0, 1] and [-1, 1]. ``reason`` explains why a finding has no AUC (NaN,
as written by Python); it is then in no mean. ``p_holm`` is corrected over the findings of one comparison. The entries
of ``mean`` have the same keys, without ``p_holm``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.delong import auc_difference, auc_interval, aucs
from fvae_nnunet.evaluation.mean_auc import mean_aucs
from fvae_nnunet.evaluation.statistics import CONFIDENCE, Difference, Interval, check_resampling, holm
from fvae_nnunet.files.recorded import sha256_of_file
from fvae_nnunet.findings.truth import ScoredCases
from fvae_nnunet.jobs.manifest import versions

SCHEMA = 1
KIND = "findings_comparison"

PAPER: dict[str, Any] = {
    "source": "Chen et al., ICML 2026, Table 5",
    "measure": "mean AUC over 18 findings, CT-RATE, %",
    "rows": {"real": 67.95, "real + 500 synthetic": 70.71},
    "comparable": False,
    "why": "other cases, another network and another training; the paper gives no intervals",
}
"""The paper's Table 5."""


def compare_findings(
    scored: ScoredCases,
    *,
    names: Sequence[str],
    files: Sequence[Path],
    all_pairs: bool = False,
    seed: int = 0,
    resamples: int = 9999,
) -> dict[str, Any]:
    """Compute the AUC of each model and compare each with the first, or all pairs.

    Args:
        scored: scores of K models and the truth.
        names: (K,) names of the models, all different.
        files: (K,) files of their scores.
        all_pairs: compare every pair instead of only with the first.
        seed, resamples: seed and number of resamples of the bootstrap of the mean.

    Returns:
        The content of ``findings_comparison.json``, see the module's docstring.

    Raises:
        UserError: an invalid seed or number of resamples, or two names are equal.
    """
    check_resampling(seed, resamples)
    if len(set(names)) < len(names):
        raise UserError(f"`names` must be unique, got {', '.join(names)}")
    pairs = [pair for pair in combinations(range(len(names)), 2) if all_pairs or pair[0] == 0]
    of_findings = [_finding(scored, place, names, pairs) for place in range(len(scored.findings))]
    for number in range(len(pairs)):
        entries = [finding["comparisons"][number] for finding in of_findings]
        tested = [entry for entry in entries if np.isfinite(entry["p"])]
        for entry in entries:
            entry["p_holm"] = float("nan")
        for entry, p_holm in zip(tested, holm([entry["p"] for entry in tested]), strict=True):
            entry["p_holm"] = p_holm
    means = mean_aucs(scored.scores, scored.labels, scored.patients, seed=seed, resamples=resamples)
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "made_with": versions() | {"scipy": version("scipy")},
        "settings": {
            "confidence": CONFIDENCE,
            "resamples": resamples,
            "seed": seed,
            "all_pairs": all_pairs,
            "of_a_finding": "DeLong; cases of one patient as a cluster (Obuchowski)",
            "of_the_mean": "bootstrap over patients, percentile",
            "correction": "Holm over the findings of a comparison",
        },
        "models": [
            {"name": name, "file": str(file), "sha256": sha256_of_file(file), "missing": list(missing)}
            for name, file, missing in zip(names, files, scored.missing, strict=True)
        ],
        "cases": len(scored.cases),
        "patients": means.patients,
        "without_findings": list(scored.without_findings),
        "findings": of_findings,
        "mean": {
            "findings": sum(finding["reason"] is None for finding in of_findings),
            "resamples_with_fewer_findings": means.incomplete,
        }
        | _entries(names, pairs, means.values, means.interval, means.difference),
        "paper": PAPER,
    }


def _finding(scored: ScoredCases, place: int, names: Sequence[str], pairs: Sequence[tuple[int, int]]) -> dict[str, Any]:
    positive = scored.labels[:, place] == 1
    found = aucs(scored.scores[:, :, place], positive, scored.patients)
    lacking = "positive" if not positive.any() else "negative" if positive.all() else None
    return {
        "name": scored.findings[place],
        "positive": int(positive.sum()),
        "negative": int((~positive).sum()),
        "reason": None if lacking is None else f"no {lacking} case among {len(positive)}",
    } | _entries(names, pairs, found.values, partial(auc_interval, found), partial(auc_difference, found))


def _entries(
    names: Sequence[str],
    pairs: Sequence[tuple[int, int]],
    values: np.ndarray,
    interval: Callable[[int], Interval],
    difference: Callable[[int, int], Difference],
) -> dict[str, Any]:
    """``models`` and ``comparisons`` of a finding or of the mean; ``interval`` and ``difference`` take indices."""
    of_pairs = [(names[a], names[b], difference(a, b)) for a, b in pairs]
    return {
        "models": [
            {"model": name, "auc": float(values[place])} | _interval(interval(place))
            for place, name in enumerate(names)
        ],
        "comparisons": [
            {"first": first, "second": second, "difference": found.value} | _interval(found.interval) | {"p": found.p}
            for first, second, found in of_pairs
        ],
    }


def _interval(interval: Interval) -> dict[str, Any]:
    return {"interval": [interval.low, interval.high], "interval_method": interval.method}
