"""A comparison of findings classifiers as text for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fvae_nnunet.evaluation.text_table import text_table
from fvae_nnunet.numbers_as_text import counted, interval_of, number, p_value, percent

FEW_POSITIVE = 10
"""Below so many positive (or negative) cases the reader is told that the normal law is a guess."""


def format_findings(comparison: Mapping[str, Any]) -> str:
    """A table of AUCs, one for each comparison, the paper's numbers, and what it all is."""
    lines = [*text_table(list(_auc_rows(comparison))), ""]
    for place, entry in enumerate(comparison["mean"]["comparisons"]):
        lines += [f"{entry['second']} - {entry['first']}"]
        lines += [*(f"  {line}" for line in text_table(list(_difference_rows(comparison, place)))), ""]
    return "\n".join([*lines, *_paper(comparison["paper"]), "", *_notes(comparison)])


def _auc_rows(comparison: Mapping[str, Any]) -> Iterator[list[str]]:
    names = [model["name"] for model in comparison["models"]]
    yield ["AUC", "positive", "negative", *(cell for name in names for cell in (name, "95 % interval"))]
    for finding in comparison["findings"]:
        counts = [str(finding["positive"]), str(finding["negative"])]
        yield [finding["name"], *counts, *_cells(finding["models"])]
    mean = comparison["mean"]
    yield [f"mean of {mean['findings']}", "", "", *_cells(mean["models"])]


def _cells(models: Sequence[Mapping[str, Any]]) -> list[str]:
    return [cell for entry in models for cell in (number(entry["auc"]), interval_of(entry))]


def _difference_rows(comparison: Mapping[str, Any], place: int) -> Iterator[list[str]]:
    yield ["AUC", "difference", "95 % interval", "p", "p Holm"]
    for finding in comparison["findings"]:
        entry = finding["comparisons"][place]
        yield [
            finding["name"], number(entry["difference"], signed=True), interval_of(entry, signed=True),
            p_value(entry["p"]), p_value(entry["p_holm"]),
        ]  # fmt: skip
    entry = comparison["mean"]["comparisons"][place]
    yield [
        f"mean of {comparison['mean']['findings']}", number(entry["difference"], signed=True),
        interval_of(entry, signed=True), p_value(entry["p"]), "",
    ]  # fmt: skip


def _paper(paper: Mapping[str, Any]) -> list[str]:
    rows = list(paper["rows"].items())
    shown = ", ".join(f"{name} {number(value, 'of the paper')}" for name, value in rows)
    gain = number(rows[1][1] - rows[0][1], "of the paper", signed=True)
    return [f"{paper['source']} ({paper['measure']}): {shown} ({gain})", f"not comparable: {paper['why']}"]


def _notes(comparison: Mapping[str, Any]) -> list[str]:
    findings, settings, mean = comparison["findings"], comparison["settings"], comparison["mean"]
    lines = [
        f"{counted(comparison['cases'], 'case')} of {counted(comparison['patients'], 'patient')}",
        f"findings: interval and p by {settings['of_a_finding']}; p Holm: corrected for the findings of a comparison",
        f"mean: {settings['of_the_mean']}, {settings['resamples']} resamples, seed {settings['seed']}",
    ]
    if mean["resamples_with_fewer_findings"]:
        lines.append(
            f"in {percent(mean['resamples_with_fewer_findings'])} of the resamples a finding without positive or "
            "negative cases was left out of the mean"
        )
    lines += [f"{one['name']}: {one['reason']}; no AUC, not in the mean" for one in findings if one["reason"]]
    if few := [one["name"] for one in findings if min(one["positive"], one["negative"]) < FEW_POSITIVE]:
        lines.append(f"fewer than {FEW_POSITIVE} positive or negative cases, read with care: {', '.join(few)}")
    if any(entry["interval_method"] == "none" for one in findings if not one["reason"] for entry in one["models"]):
        lines.append("none: fewer than two patients on a side, or an AUC of 0 or 1, which knows nothing of its spread")
    for model in comparison["models"]:
        if model["missing"]:
            lines.append(
                f"{model['name']}: {counted(len(model['missing']), 'case')} without a prediction, left out for all "
                "models"
            )
    if unknown := comparison["without_findings"]:
        lines.append(
            f"{counted(len(unknown), 'case')} without findings in the reports, left out: {', '.join(unknown[:5])}"
        )
    return lines
