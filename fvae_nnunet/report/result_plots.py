"""Plots of the main results: forest plot of differences, NSD over tolerance, DSC over lesion size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from fvae_nnunet.evaluation.segmentation.scores import HD95_KEY
from fvae_nnunet.evaluation.segmentation.verdict import Measure, deciding, verdict
from fvae_nnunet.numbers_as_text import interval_of, number, p_value
from fvae_nnunet.pictures.forest import GREY, Estimate, draw_forest, forest_height_inches
from fvae_nnunet.pictures.series import Colours
from fvae_nnunet.report.blocks import Drawing
from fvae_nnunet.report.plots import STYLE, legend
from fvae_nnunet.short_names import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH_INCHES = 9.0

IN_FOREST = ("Dice", "NSD_", HD95_KEY, "detection_rate", "dice_of_detected")
"""Prefixes of the keys of measures in the forest plot; for lesions, only those of all sizes."""


MOST_LABELS_IN_FULL = 6
"""With more labels, the forest plot has only the deciding measures."""


def in_forest(measure: Measure) -> bool:
    of_size = measure["key"].endswith(("10mm", "20mm")) and measure["mean_over"] == "lesions"
    return measure["key"].startswith(IN_FOREST) and not of_size


def difference_forest(labels: Mapping[str, Sequence[Measure]], colours: Colours) -> Drawing:
    """Draw a row for each label and measure (with many labels only the deciding one), with better to the right.

    Args:
        labels: name -> measures, with at least one comparison.
        colours: colours of the second models.
    """
    import matplotlib
    from matplotlib.figure import Figure

    measures = [
        (name, measure)
        for name, of_label in labels.items()
        for measure in ([deciding(of_label)] if len(labels) > MOST_LABELS_IN_FULL else of_label)
        if in_forest(measure)
    ]
    pairs = measures[0][1]["comparisons"]
    tips: dict[str, str] = {}
    with matplotlib.rc_context(STYLE):
        height = 1.1 + forest_height_inches(len(measures), len(pairs))
        figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
        unitless, in_mm = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        for axes, unit in ((unitless, ""), (in_mm, "mm")):
            rows = [
                [_estimate(place, name, measure, entry, colours, tips) for entry in measure["comparisons"]]
                if measure["unit"] == unit
                else []
                for place, (name, measure) in enumerate(measures)
            ]
            draw_forest(axes, rows, reference=0)
            axes.grid(axis="x", color=GREY, alpha=0.25, linewidth=0.5)
        in_mm.invert_xaxis()
        unitless.set_xlabel("difference of DSC, NSD and rates\nworse ←    → better")
        in_mm.set_xlabel("difference of HD95 (mm)\nworse ←    → better")
        unitless.set_yticks(range(len(measures)), [_row_name(name, measure, labels) for name, measure in measures])
        for at, (name, _) in enumerate(measures[1:], start=1):
            if name != measures[at - 1][0]:
                for axes in (unitless, in_mm):
                    axes.axhline(at - 0.5, color=GREY, linewidth=0.6)
        legend(figure, {entry["second"]: colours[entry["second"]] for entry in pairs})
    return Drawing(figure, tips)


def _estimate(
    place: int, name: str, measure: Measure, entry: Mapping[str, Any], colours: Colours, tips: dict[str, str]
) -> Estimate:
    gid = f"forest{place}x{measure['comparisons'].index(entry)}"
    change = number(entry["mean_difference"], measure["unit"], signed=True)
    tips[gid] = (
        f"{name}, {measure['name']}, {entry['second']} − {entry['first']}: {change} "
        f"({interval_of(entry, measure['unit'], signed=True)}), p {p_value(entry['p_holm'])}"
    )
    is_sure = verdict(measure, entry) in ("better", "worse")
    return Estimate(entry["mean_difference"], tuple(entry["interval"]), colours[entry["second"]], is_sure, gid)


def _row_name(name: str, measure: Measure, labels: Mapping[str, Sequence[Measure]]) -> str:
    return measure["name"] if len(labels) == 1 else f"{name}: {measure['name']}"


def curves(
    measures: Sequence[Measure], lesions: Mapping[str, Mapping[str, Any]], colours: Colours
) -> tuple[Drawing, list[str]] | None:
    """Draw NSD over tolerance, and the DSC of every lesion over its diameter; None if there is nothing to draw.

    Returns:
        The drawing, and what its panels show.

    Args:
        measures: measures of one label; NSD is drawn if it has at least two tolerances, as means with intervals.
        lesions: model -> case -> attributes of ``lesions.CaseLesions``; a lesion not detected is a cross at 0.
        colours: colours of the models.
    """
    import matplotlib
    from matplotlib.figure import Figure

    nsds = sorted((_tolerance_mm(measure), measure) for measure in measures if measure["key"].startswith("NSD_"))
    of_lesions = [
        (model, case, diameter_mm, dice)
        for entry in measures[0]["models"]
        for model in [entry["model"]]
        for case, of_case in lesions.get(model, {}).items()
        for diameter_mm, dice in zip(of_case["diameters_mm"], of_case["dice"], strict=True)
    ]
    panels = {
        "mean NSD over tolerance, with 95 % intervals": partial(_draw_nsd, nsds) if len(nsds) > 1 else None,
        "DSC of each lesion of the reference over its equivalent diameter (×: not detected)": (
            partial(_draw_sizes, of_lesions) if of_lesions else None
        ),
    }
    parts = {what: draw for what, draw in panels.items() if draw is not None}
    if not parts:
        return None
    tips: dict[str, str] = {}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6 * len(parts), 3.1), layout="constrained")
        for axes, draw in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts.values(), strict=True):
            draw(axes, colours, tips)
            axes.grid(color=GREY, alpha=0.25, linewidth=0.5)
        legend(figure, {entry["model"]: colours[entry["model"]] for entry in measures[0]["models"]})
    return Drawing(figure, tips), list(parts)


def _tolerance_mm(measure: Measure) -> float:
    return float(measure["key"].removeprefix("NSD_").removesuffix("mm"))


def _draw_nsd(nsds: Sequence[tuple[float, Measure]], axes: Axes, colours: Colours, tips: dict[str, str]) -> None:
    models = [entry["model"] for entry in nsds[0][1]["models"]]
    step_mm = min(after[0] - before[0] for before, after in pairwise(nsds))
    for place, model in enumerate(models):
        # side by side, so that intervals are distinguishable
        shift_mm = 0.06 * step_mm * (place - (len(models) - 1) / 2)
        xs_mm = [tolerance_mm + shift_mm for tolerance_mm, _ in nsds]
        entries = [measure["models"][place] for _, measure in nsds]
        axes.plot(xs_mm, [entry["mean"] for entry in entries], color=colours[model], linewidth=1.2)
        for at, (x_mm, entry) in enumerate(zip(xs_mm, entries, strict=True)):
            gid = f"nsd{place}x{at}"
            tips[gid] = f"{model}, {nsds[at][1]['name']}: {number(entry['mean'])} ({interval_of(entry)})"
            if math.isfinite(entry["interval"][0]):
                axes.plot([x_mm, x_mm], entry["interval"], color=colours[model], linewidth=1.2)
            axes.plot([x_mm], [entry["mean"]], "o", color=colours[model], markersize=4.5, markeredgewidth=0, gid=gid)
    axes.set_xticks([tolerance_mm for tolerance_mm, _ in nsds])
    axes.set(xlabel="tolerance (mm)", ylabel="NSD", ylim=(None, min(1.02, axes.get_ylim()[1])))


def _draw_sizes(
    lesions: Sequence[tuple[str, str, float, float]], axes: Axes, colours: Colours, tips: dict[str, str]
) -> None:
    from matplotlib.ticker import ScalarFormatter

    axes.set_xscale("log")
    for place, (model, case, diameter_mm, dice) in enumerate(lesions):
        gid, is_detected = f"lesion{place}", math.isfinite(dice)
        said = f"DSC {number(dice)}" if is_detected else "not detected"
        tips[gid] = f"{printable(case)}, {number(diameter_mm, 'mm')} mm, {model}: {said}"
        axes.plot(
            [diameter_mm], [dice if is_detected else 0.0], "o" if is_detected else "x", color=colours[model],
            markersize=4.5, markeredgewidth=0 if is_detected else 1.3, gid=gid,
        )  # fmt: skip
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(ScalarFormatter())
    axes.tick_params(axis="x", which="minor", labelsize=7.5)
    axes.set(xlabel="diameter of the lesion (mm)", ylabel="DSC of the lesion", ylim=(-0.05, 1.02))
