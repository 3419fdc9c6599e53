"""The chapter on the quality of views, from ``reconstruction_quality.json`` and from the records of the views."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fvae_nnunet.evaluation.reconstruction.summary import IN_TABLE, SIGNED, STATISTICS_SHOWN, statistics_as_text
from fvae_nnunet.numbers_as_text import counted, is_number, number
from fvae_nnunet.pictures.series import Colours
from fvae_nnunet.report.blocks import Block, Column, Details, Figure, Heading, Paragraph, Table
from fvae_nnunet.report.case_images import View, unique_names
from fvae_nnunet.report.plots import Values, paired_dots
from fvae_nnunet.report.quality_files import Quality

RECORDED = {
    "psnr_db": IN_TABLE["psnr_db"],
    "mean_absolute_error_hu": IN_TABLE["mae_hu"],
    "noise_raw_hu": IN_TABLE["noise_raw_hu"],
    "noise_view_hu": IN_TABLE["noise_view_hu"],
    "noise_coarse_raw_hu": ("coarse noise of image (HU)", "HU"),
    "noise_coarse_view_hu": ("coarse noise of view (HU)", "HU"),
}
"""Values in a manifest's record of a case: name and quantity in tables."""

_IN_PLOT = ("psnr_db", "ssim", "mae_hu", "noise_ratio", "seam_score")


def quality_blocks(qualities: Sequence[Quality], views: Sequence[View], colours: Colours) -> Iterator[Block]:
    """Yield the chapter; nothing without any quality."""
    recorded = [view for view in views if view.records]
    if not qualities and not recorded:
        return
    yield Heading("Quality of the views")
    if qualities:
        yield from _measured_blocks(qualities, colours)
    if recorded:
        yield from _recorded_blocks(recorded, colours)


def _measured_blocks(qualities: Sequence[Quality], colours: Colours) -> Iterator[Block]:
    names = unique_names([(quality.name, quality.path) for quality in qualities])
    of_series = {name: colours[quality.name] for name, quality in zip(names, qualities, strict=True)}
    of_names = dict(zip(names, (quality.content for quality in qualities), strict=True))
    yield Paragraph(
        "Errors and shifts are view minus image, with outward shifts positive; PSNR and SSIM refer to the HU window. "
        "For definitions, see docs/reconstruction_quality.md."
    )
    yield _summary_table(of_names, ("volume", "labels"))
    yield Details("By tissue", [_summary_table(of_names, ("tissues",))])
    yield from _dots(
        {name: {case["case"]: case["volume"] for case in content["cases"]} for name, content in of_names.items()},
        {key: IN_TABLE[key] for key in _IN_PLOT},
        of_series,
    )
    for name, content in of_names.items():
        yield Details(f"Every case: {name}, {counted(len(content['cases']), 'case')}", [_cases_table(content)])


def _recorded_blocks(views: Sequence[View], colours: Colours) -> Iterator[Block]:
    names = unique_names([(view.name, view.folder) for view in views])
    of_series = {name: colours[view.name] for name, view in zip(names, views, strict=True)}
    of_names = dict(zip(names, (view.records for view in views), strict=True))
    yield Heading("As recorded when the views were made", 3)
    yield Paragraph("From the manifests of the views; the peak of the PSNR is the width of the HU window.")
    figures = {
        key: heading
        for key, heading in RECORDED.items()
        if any(record.get(key) is not None for records in of_names.values() for record in records.values())
    }
    yield from _dots(of_names, figures, of_series)
    for name, records in of_names.items():
        columns = [Column("case", "text"), *(Column(heading) for heading, _ in figures.values())]
        rows = [
            [case, *(number(record.get(key), quantity) for key, (_, quantity) in figures.items())]
            for case, record in records.items()
        ]
        yield Details(f"Every case: {name}, {counted(len(records), 'case')}", [Table(columns, rows)])


def _dots(
    of_names: Mapping[str, Mapping[str, Mapping[str, Any]]], figures: Mapping[str, tuple[str, str]], colours: Colours
) -> Iterator[Block]:
    """Yield a plot with a panel for each figure that any case has; nothing if there are none."""
    panels = [
        Values(
            heading,
            {
                name: {case: found for case, values in cases.items() if (found := values.get(key)) is not None}
                for name, cases in of_names.items()
            },
            quantity=quantity,
        )
        for key, (heading, quantity) in figures.items()
        if any(is_number(values.get(key)) for cases in of_names.values() for values in cases.values())
    ]
    if not panels:
        return
    several = "; a line joins the dots of a case" if len(of_names) > 1 else ""
    yield Figure(
        paired_dots(panels, colours),
        f"Each dot is a case{several}.",
        f"Dots of every case by view, for {', '.join(panel.title for panel in panels)}",
    )


def _cases_table(content: Mapping[str, Any]) -> Table:
    names = {label["key"]: label["name"] for label in content["labels"]}
    parts: list[tuple[str, str, str | None]] = [("whole volume", "volume", None)]
    parts += [(f"label {name}", "labels", key) for key, name in names.items()]
    columns = [Column("case", "text")]
    cells: list[list[str]] = [[case["case"]] for case in content["cases"]]
    for part, group, key in parts:
        of_cases = [case[group] if key is None else case[group][key] for case in content["cases"]]
        for figure, (heading, quantity) in IN_TABLE.items():
            if any(is_number(figures.get(figure)) for figures in of_cases):
                columns.append(Column(heading, group=part))
                for row, figures in zip(cells, of_cases, strict=True):
                    row.append(number(figures[figure], quantity, signed=figure in SIGNED))
    return Table(columns, cells)


def _summary_table(of_names: Mapping[str, Mapping[str, Any]], groups: Sequence[str]) -> Table:
    """Table with a row for each figure of any view, and mean, spread and number of cases for each view."""
    summaries = {name: dict(_parts(content, groups)) for name, content in of_names.items()}
    rows = []
    for part in dict.fromkeys(part for of_parts in summaries.values() for part in of_parts):
        shown = part
        for key, (heading, _) in IN_TABLE.items():
            figures = [of_parts.get(part, {}).get(key, {"n": 0}) for of_parts in summaries.values()]
            if not any(figure["n"] for figure in figures):
                continue
            rows.append([shown, heading, *(cell for figure in figures for cell in statistics_as_text(key, figure))])
            shown = ""
    columns = [Column("", "text"), Column("figure", "text")]
    columns += [Column(of, group=name) for name in of_names for of in STATISTICS_SHOWN]
    return Table(columns, rows, "Over all cases")


def _parts(content: Mapping[str, Any], groups: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the parts of a volume by name, with the summary of each figure."""
    names = {label["key"]: label["name"] for label in content["labels"]}
    summary = content["summary"]
    if "volume" in groups:
        yield "whole volume", summary["volume"]
    if "tissues" in groups:
        yield from ((tissue, summary["tissues"][tissue]) for tissue in content["settings"]["tissues_hu"])
    if "labels" in groups:
        yield from ((f"label {names[key]}", figures) for key, figures in summary["labels"].items())
