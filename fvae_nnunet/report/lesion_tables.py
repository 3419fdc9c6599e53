"""Tables of the lesions of one label, by size class and by case."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fvae_nnunet.evaluation.segmentation.lesion_summary import ALL_SIZES, SIZES
from fvae_nnunet.evaluation.segmentation.measures import LESION_METRICS, sizes_with_lesions
from fvae_nnunet.numbers_as_text import interval_of, number
from fvae_nnunet.report.blocks import Block, Column, Details, Table
from fvae_nnunet.report.measure_tables import differences_table
from fvae_nnunet.report.results import Results

_GROUPS = ("detection rate", "DSC of detected", "false positives per case")


def lesion_blocks(results: Results, label: str) -> Iterator[Block]:
    """Yield the table by size class, and the collapsed differences between models."""
    name = results.label_names[label]
    measures = {measure["key"]: measure for measure in results.measures_of(label)}
    rows = []
    for size in (ALL_SIZES, *sizes_with_lesions(measures)):
        of_size = [measures[key if size == ALL_SIZES else f"{key}_{size}"] for key in LESION_METRICS]
        for place, model in enumerate(results.models):
            entries = [measure["models"][place] for measure in of_size]
            values = [
                text
                for measure, entry in zip(of_size, entries, strict=True)
                for text in (number(entry["mean"], measure["unit"]), interval_of(entry, measure["unit"]))
            ]
            rows.append([SIZES[size] if place == 0 else "", model, number(entries[0]["items"], "count"), *values])
    columns = [Column("size", "text"), Column("model", "text"), Column("lesions")]
    columns += [Column(part, group=group) for group in _GROUPS for part in ("mean", "95 % interval")]
    notes = ["false positives count by their own size"]
    yield Table(columns, rows, f"Lesions of {name}, by equivalent diameter", notes)
    if results.is_comparison:
        shown = ("", *(f"_{size}" for size in sizes_with_lesions(measures)))
        of_lesions = [measures[f"{key}{size}"] for key in LESION_METRICS for size in shown]
        yield Details(f"Differences in the lesions of {name}", [differences_table(of_lesions)])


def lesions_of_cases(results: Results, label: str) -> Table:
    """Table of the number of lesions, lesions detected by each model, and false positives of each model, by case."""
    of_label: Mapping[str, Mapping[str, Mapping[str, Any]]] = results.content["lesions"][label]
    rows = []
    for case in results.cases:
        of_case = [of_label[model].get(case) for model in results.models]
        known = next((lesions for lesions in of_case if lesions is not None), None)
        rows.append(
            [
                case,
                "missing" if known is None else str(len(known["diameters_mm"])),
                *("missing" if lesions is None else str(sum(lesions["detected"])) for lesions in of_case),
                *(
                    "missing" if lesions is None else str(len(lesions["false_positive_diameters_mm"]))
                    for lesions in of_case
                ),
            ]
        )
    columns = [Column("case", "text"), Column("lesions")]
    columns += [Column(model, group=group) for group in ("detected", "false positives") for model in results.models]
    return Table(columns, rows, "Lesions of every case")
