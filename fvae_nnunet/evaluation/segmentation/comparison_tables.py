"""A comparison as rows of three CSVs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


def comparison_csvs(path: Path) -> list[Path]:
    """Paths of the CSVs beside a ``comparison.json``: comparisons, models and cases."""
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
    """The models or comparisons of all measures as rows, with single values and the ends of intervals."""
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


def name_of(measure: Mapping[str, Any]) -> str:
    """A measure's name with its unit."""
    return f"{measure['name']} ({measure['unit']})" if measure["unit"] else measure["name"]
