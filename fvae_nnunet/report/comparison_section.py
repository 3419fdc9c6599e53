"""The results of one file by label: means, differences, lesions, plots, all cases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fvae_nnunet.evaluation.segmentation.comparison_tables import name_of
from fvae_nnunet.numbers_as_text import listed
from fvae_nnunet.pictures.series import Colours
from fvae_nnunet.report.blocks import Block, Details, Figure, Heading
from fvae_nnunet.report.lesion_tables import lesion_blocks, lesions_of_cases
from fvae_nnunet.report.measure_tables import Measure, cases_table, differences_table, means_table
from fvae_nnunet.report.plots import (
    Differences,
    Values,
    difference_plots,
    paired_dots,
    panels_in_a_row,
)
from fvae_nnunet.report.result_plots import curves
from fvae_nnunet.report.results import Results, is_of_lesions


def label_blocks(results: Results, label: str, colours: Colours) -> Iterator[Block]:
    """Yield everything on one label (its key) except the pictures of cases."""
    name = results.label_names[label]
    of_label = results.measures_of(label)
    of_cases = [measure for measure in of_label if not is_of_lesions(measure)]
    yield Heading(name, 3)
    yield means_table(of_cases)
    if results.is_comparison:
        yield differences_table(of_cases, f"Differences in {name}")
    if label in results.lesion_labels:
        yield from lesion_blocks(results, label)
    drawn = curves(results.measures_of(label), results.content["lesions"].get(label, {}), colours)
    if drawn is not None:
        drawing, panels = drawn
        yield Figure(drawing, f"{name}: {listed(panels)}.", f"{name}, by model: {listed(panels)}")
    yield _dots_figure(of_cases, results, name, colours)
    if results.is_comparison:
        columns = panels_in_a_row(len(of_cases))
        for start in range(0, len(of_cases), columns):
            yield _differences_figure(of_cases[start : start + columns], results, name, colours)
    details: list[Block] = [cases_table(of_cases, results)]
    if label in results.lesion_labels:
        details.append(lesions_of_cases(results, label))
    yield Details(f"Every case: {name}", details)


def _dots_figure(measures: Sequence[Measure], results: Results, label_name: str, colours: Colours) -> Figure:
    panels = [
        Values(
            name_of(measure),
            {entry["model"]: entry["values"] for entry in measure["models"]},
            quantity=measure["unit"],
            means={entry["model"]: entry["mean"] for entry in measure["models"]},
            intervals={entry["model"]: tuple(entry["interval"]) for entry in measure["models"]},
        )
        for measure in measures
    ]
    joined = "; a line joins the dots of a case" if results.is_comparison else ""
    return Figure(
        paired_dots(panels, colours),
        f"{label_name}: each dot is a case{joined}; diamonds: mean and 95 % interval. Lower is better in "
        "HD95, higher in the others.",
        f"Dots of every case by model, for {listed([panel.title for panel in panels])} of {label_name}",
    )


def _differences_figure(measures: Sequence[Measure], results: Results, label_name: str, colours: Colours) -> Figure:
    pairs = range(len(measures[0]["comparisons"]))
    panels = [
        Differences(
            name_of(measure),
            f"{entry['second']}\n− {entry['first']}",
            colours[entry["second"]],
            measure["unit"],
            entry,
        )
        for pair in pairs
        for measure in measures
        for entry in [measure["comparisons"][pair]]
    ]
    pairs_named = [f"{entry['second']} − {entry['first']}" for entry in measures[0]["comparisons"]]
    return Figure(
        difference_plots(panels, columns=len(measures)),
        f"{label_name}: difference in each case over the mean of both models (Bland and Altman). Coloured line: mean "
        "difference; band: its 95 % interval; dashed: limits of agreement, bias ± 1.96 sd.",
        f"Difference plots of {label_name}: {listed(pairs_named)}",
    )
