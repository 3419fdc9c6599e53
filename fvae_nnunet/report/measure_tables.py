"""Tables of the measures of one label: means of models, differences between models, values of all cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fvae_nnunet.evaluation.segmentation.comparison_tables import name_of
from fvae_nnunet.evaluation.segmentation.scores import HD95_KEY
from fvae_nnunet.evaluation.segmentation.verdict import FEW_CASES
from fvae_nnunet.numbers_as_text import NOT_DEFINED, PERCENTILE_MARK, interval_of, number, p_value
from fvae_nnunet.report.blocks import Column, Table
from fvae_nnunet.report.results import Results

Measure = Mapping[str, Any]
"""One of the ``measures`` of ``comparison.json``."""


def means_table(measures: Sequence[Measure]) -> Table:
    """Table of means, with a row for each measure and model."""
    rows = []
    for measure in measures:
        name = name_of(measure)
        for entry in measure["models"]:
            counts = [number(entry[key], "count") for key in ("n", "nan", "missing")]
            one_empty = number(entry.get("one_empty"), "count")
            mean = number(entry["mean"], measure["unit"])
            rows.append([name, entry["model"], mean, interval_of(entry, measure["unit"]), *counts, one_empty])
            name = ""
    columns = [
        Column("measure", "text"), Column("model", "text"), Column("mean"), Column("95 % interval"), Column("n"),
        Column("NaN"), Column("missing"), Column("one empty"),
    ]  # fmt: skip
    return Table(columns, rows, f"Means of {measures[0]['label_name']}", _notes(measures, "models"))


def differences_table(measures: Sequence[Measure], caption: str = "") -> Table:
    """Table of differences, with a row for each measure and comparison."""
    rows = []
    for measure in measures:
        name = name_of(measure)
        for entry in measure["comparisons"]:
            rows.append(
                [
                    name,
                    f"{entry['second']} − {entry['first']}",
                    number(entry["mean_difference"], measure["unit"], signed=True),
                    interval_of(entry, measure["unit"], signed=True),
                    *(p_value(entry[key]) if entry["n"] else NOT_DEFINED for key in ("p", "p_holm")),
                    *(number(entry[key], "count") for key in ("wins", "ties", "losses", "n", "nan", "missing")),
                ]
            )
            name = ""
    columns = [
        Column("measure", "text"), Column("comparison", "text"), Column("difference"), Column("95 % interval"),
        Column("p"), Column("p Holm"), Column("wins"), Column("ties"), Column("losses"), Column("n"), Column("NaN"),
        Column("missing"),
    ]  # fmt: skip
    return Table(columns, rows, caption, _notes(measures, "comparisons"))


def cases_table(measures: Sequence[Measure], results: Results) -> Table:
    """Table of values, with a row for each case and a column for each measure and model."""
    columns = [Column("case", "text")]
    columns += [Column(model, group=name_of(measure)) for measure in measures for model in results.models]
    rows = [
        [case, *(_value_of_case(measure, entry, case) for measure in measures for entry in measure["models"])]
        for case in results.cases
    ]
    return Table(columns, rows, "Values of every case", ["“missing”: the model has no prediction for this case"])


def _value_of_case(measure: Measure, entry: Mapping[str, Any], case: str) -> str:
    return number(entry["values"][case], measure["unit"]) if case in entry["values"] else "missing"


def _notes(measures: Sequence[Measure], kind: str) -> list[str]:
    entries = [entry for measure in measures for entry in measure[kind]]
    notes = []
    if any(entry["interval_method"] == "percentile" for entry in entries):
        notes.append(f"{PERCENTILE_MARK} percentile interval, because BCa is undefined there")
    if any(entry["interval_method"] != "none" and entry["n"] < FEW_CASES for entry in entries):
        notes.append(f"with n below {FEW_CASES}, the intervals are too narrow")
    if any(entry.get("one_empty") for measure in measures if measure["key"] == HD95_KEY for entry in measure[kind]):
        notes.append(
            "one empty: cases without HD95 in which only the reference or only the prediction lacks the label; a label "
            "that a model misses completely does not count in its HD95"
        )
    return notes
