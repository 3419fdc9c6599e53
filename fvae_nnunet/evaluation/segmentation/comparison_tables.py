"""A comparison as text for the terminal, and as the rows of three CSVs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fvae_nnunet.evaluation.segmentation.scores import HD95_KEY
from fvae_nnunet.evaluation.text_table import text_table
from fvae_nnunet.numbers_as_text import PERCENTILE_MARK, counted, interval_of, number, p_value, percent

FEW_CASES = 10
"""Below so many cases the reader is told that a bootstrap cannot show all of the spread."""


def format_comparison(comparison: Mapping[str, Any]) -> str:
    """For each label a table of the models and one of the comparisons, then what the numbers are."""
    lines = []
    for label in comparison["labels"]:
        of_label = [measure for measure in comparison["measures"] if measure["label"] == label["key"]]
        lines += [label["name"], *_indented(text_table(list(_model_rows(of_label)), left=2)), ""]
        lines += [*_indented(text_table(list(_comparison_rows(of_label)), left=2)), ""]
    return "\n".join(lines + _notes(comparison))


def comparison_csvs(path: Path) -> list[Path]:
    """The CSVs beside a ``comparison.json``: of comparisons, models and cases."""
    return [path.with_suffix(".csv"), *(path.with_name(f"{path.stem}_{of}.csv") for of in ("models", "cases"))]


def comparison_rows(comparison: Mapping[str, Any], path: Path) -> dict[Path, Iterable[dict[str, Any]]]:
    """The rows of the CSVs beside a ``comparison.json``.

    ``comparison.csv`` has a row for each label, measure and comparison, ``comparison_models.csv`` one for each label,
    measure and model, ``comparison_cases.csv`` one for each label, measure, model and case.
    """
    of_comparisons, of_models, of_cases = comparison_csvs(path)
    return {
        of_comparisons: _flat(comparison, "comparisons"),
        of_models: _flat(comparison, "models"),
        of_cases: [
            _measure_columns(measure) | {"model": entry["model"], "case": case, "value": value}
            for measure in comparison["measures"]
            for entry in measure["models"]
            for case, value in entry["values"].items()
        ],
    }


def _measure_columns(measure: Mapping[str, Any]) -> dict[str, Any]:
    columns = ("label", "label_name", "key", "unit", "higher_is_better", "mean_over")
    return {("measure" if column == "key" else column): measure[column] for column in columns}


def _flat(comparison: Mapping[str, Any], kind: str) -> Iterator[dict[str, Any]]:
    """The models or comparisons of all measures as rows: what is a single value, and the ends of intervals."""
    for measure in comparison["measures"]:
        for entry in measure[kind]:
            row = _measure_columns(measure)
            for key, value in entry.items():
                if key == "interval":
                    row |= {"interval_low": value[0], "interval_high": value[1]}
                elif key == "bland_altman":
                    row |= {"sd": value["sd"], "limit_low": value["limits"][0], "limit_high": value["limits"][1]}
                elif not isinstance(value, (dict, list)):
                    row[key] = value
            yield row


def _model_rows(measures: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    yield ["measure", "model", "mean", "95 % interval", "lesions", "n", "NaN", "missing"]
    for measure in measures:
        name = name_of(measure)
        for entry in measure["models"]:
            lesions = str(entry["items"]) if measure["mean_over"] == "lesions" else ""
            counts = [str(entry[count]) for count in ("n", "nan", "missing")]
            yield [
                name,
                entry["model"],
                number(entry["mean"], measure["unit"]),
                interval_of(entry, measure["unit"]),
                lesions,
                *counts,
            ]
            name = ""


def _comparison_rows(measures: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    yield [
        "measure", "comparison", "difference", "95 % interval", "p", "p Holm",
        "wins", "ties", "losses", "n", "NaN", "missing",
    ]  # fmt: skip
    for measure in measures:
        name = name_of(measure)
        for entry in measure["comparisons"]:
            counts = [str(entry[count]) for count in ("wins", "ties", "losses", "n", "nan", "missing")]
            yield [
                name,
                f"{entry['second']} - {entry['first']}",
                number(entry["mean_difference"], measure["unit"], signed=True),
                interval_of(entry, measure["unit"], signed=True),
                p_value(entry["p"]),
                p_value(entry["p_holm"]),
                *counts,
            ]
            name = ""


def _notes(comparison: Mapping[str, Any]) -> list[str]:
    settings, n = comparison["settings"], len(comparison["reference"]["cases"])
    entries = [
        entry for measure in comparison["measures"] for kind in ("models", "comparisons") for entry in measure[kind]
    ]
    family = len(comparison["measures"][0]["comparisons"])
    lines = [
        f"{counted(n, 'case')}; n: cases used, NaN: cases without a value, missing: cases without a prediction",
        f"interval: bootstrap over cases, {settings['bootstrap']}, {settings['resamples']} resamples, "
        f"seed {settings['seed']}; none where fewer than 2 cases or no spread",
    ]
    if any(entry["interval_method"] != "none" and entry["n"] < FEW_CASES for entry in entries):
        lines.append(f"with n below {FEW_CASES} such intervals are too narrow")
    if any(entry["interval_method"] == "percentile" for entry in entries):
        lines.append(f"{PERCENTILE_MARK} percentile interval, because BCa is not defined there")
    lines += [
        "p: Wilcoxon signed-rank over cases, two-sided, equal cases left out; "
        f"p Holm: corrected for the {counted(family, 'comparison')} of each label and measure",
        "a win is a case in which the model named first is better",
    ]
    for measure in comparison["measures"]:
        if measure["key"] == HD95_KEY and any(entry["one_empty"] for entry in measure["models"]):
            counts = ", ".join(f"{entry['model']} {entry['one_empty']}" for entry in measure["models"])
            lines.append(
                f"HD95 of {measure['label_name']} leaves out the cases that only the reference or only the prediction "
                f"lacks: {counts}"
            )
    lesions = settings["lesions"]
    if lesions["labels"]:
        lines.append(
            f"a lesion is detected if at least {percent(lesions['detection_overlap'])} of its voxels are predicted; "
            "false positives are predicted components that touch no lesion, by their own size"
        )
    for model in comparison["models"]:
        if model["missing"]:
            lines.append(f"{model['name']}: {len(model['missing'])} missing: {', '.join(model['missing'])}")
    return lines


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def name_of(measure: Mapping[str, Any]) -> str:
    """A measure's name with its unit."""
    return f"{measure['name']} ({measure['unit']})" if measure["unit"] else measure["name"]
