"""A comparison of findings classifiers as text for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fvae_nnunet.errors import some_of
from fvae_nnunet.evaluation.text_table import text_table, wrapped
from fvae_nnunet.numbers_as_text import NOT_DEFINED, counted, interval, number, p_value, percent
from fvae_nnunet.short_names import short_names

FEW_POSITIVE = 10
"""With fewer positive (or negative) cases, a note warns that the normal approximation is uncertain."""


LONGEST_NAME = 22
"""Longest model name that fits a table; longer names are shortened or become letters."""


def format_findings(comparison: Mapping[str, Any]) -> str:
    """A table of AUCs, one table per comparison, the paper's numbers, and notes; 80 columns wide."""
    shown = short_names([model["name"] for model in comparison["models"]], LONGEST_NAME)
    lines = [line for name, short in shown.items() if name != short for line in wrapped(f"{short}  {name}", hanging=3)]
    lines += [*text_table(list(_auc_rows(comparison, shown)), left=2), ""]
    for place, entry in enumerate(comparison["mean"]["comparisons"]):
        lines += [f"{shown[entry['second']]} − {shown[entry['first']]}"]
        lines += [*(f"  {line}" for line in text_table(list(_difference_rows(comparison, place)))), ""]
    said = [*_paper(comparison["paper"]), "", *_notes(comparison, shown)]
    return "\n".join([*lines, *(line for text in said for line in wrapped(text) or [""])])


def _auc_rows(comparison: Mapping[str, Any], shown: Mapping[str, str]) -> Iterator[list[str]]:
    yield ["finding", "model", "AUC", "95 % interval", "positive", "negative"]
    mean = comparison["mean"]
    for row in (*comparison["findings"], {"name": f"mean of {mean['findings']}", **mean}):
        name, counts = row["name"], [str(row.get(sign, "")) for sign in ("positive", "negative")]
        for entry in row["models"]:
            yield [name, shown[entry["model"]], number(entry["auc"]), interval(*entry["interval"]), *counts]
            name, counts = "", ["", ""]


def _difference_rows(comparison: Mapping[str, Any], place: int) -> Iterator[list[str]]:
    yield ["AUC", "difference", "95 % interval", "p", "p Holm"]
    for finding in comparison["findings"]:
        entry = finding["comparisons"][place]
        yield [
            finding["name"], number(entry["difference"], signed=True), interval(*entry["interval"], signed=True),
            p_value(entry["p"]), p_value(entry["p_holm"]),
        ]  # fmt: skip
    entry = comparison["mean"]["comparisons"][place]
    yield [
        f"mean of {comparison['mean']['findings']}", number(entry["difference"], signed=True),
        interval(*entry["interval"], signed=True), p_value(entry["p"]), "",
    ]  # fmt: skip


def _paper(paper: Mapping[str, Any]) -> list[str]:
    rows = list(paper["rows"].items())
    shown = ", ".join(f"{name} {number(value, 'of the paper')}" for name, value in rows)
    gain = number(rows[1][1] - rows[0][1], "of the paper", signed=True)
    return [f"{paper['source']} ({paper['measure']}): {shown} ({gain})", f"not comparable: {paper['why']}"]


def _notes(comparison: Mapping[str, Any], shown: Mapping[str, str]) -> list[str]:
    findings, settings, mean = comparison["findings"], comparison["settings"], comparison["mean"]
    lines = [
        f"{counted(comparison['cases'], 'case')} of {counted(comparison['patients'], 'patient')}",
        f"findings: interval and p by {settings['of_a_finding']}; p Holm: corrected for the findings of a comparison",
        f"mean: {settings['of_the_mean']}, {settings['resamples']} resamples, seed {settings['seed']}",
    ]
    if mean["resamples_with_fewer_findings"]:
        lines.append(
            f"in {percent(mean['resamples_with_fewer_findings'])} of the resamples, a finding without positive or "
            "negative cases was left out of the mean"
        )
    lines += [f"{one['name']}: {one['reason']}; no AUC, not in the mean" for one in findings if one["reason"]]
    if few := [one["name"] for one in findings if min(one["positive"], one["negative"]) < FEW_POSITIVE]:
        lines.append(f"fewer than {FEW_POSITIVE} positive or negative cases, interpret with care: {', '.join(few)}")
    if any(entry["interval_method"] == "none" for one in findings if not one["reason"] for entry in one["models"]):
        lines.append(
            f"{NOT_DEFINED}: fewer than two positive or negative patients, or an AUC of 0 or 1, whose spread is unknown"
        )
    for model in comparison["models"]:
        if model["missing"]:
            missing = counted(len(model["missing"]), "case")
            lines.append(f"{shown[model['name']]}: {missing} without prediction, left out for all models")
    if unknown := comparison["without_findings"]:
        lines.append(
            f"{counted(len(unknown), 'case')} without findings in the reports, left out: {some_of(unknown, 5)}"
        )
    return lines
