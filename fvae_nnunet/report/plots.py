"""Plots of cases: paired dots, and differences over means (Bland and Altman)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fvae_nnunet.numbers_as_text import number
from fvae_nnunet.pictures.forest import GREY
from fvae_nnunet.pictures.series import Colours
from fvae_nnunet.report.blocks import Drawing
from fvae_nnunet.report.inline_svg import INK
from fvae_nnunet.short_names import printable, short_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_INCHES = 11.5
MOST_PANELS_IN_A_ROW = 5

ROOM_FOR_NAMES = 30
"""Maximum number of characters of the names below a panel; with more, a legend is used."""

STYLE: Any = {
    "text.parse_math": False,
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@dataclass(frozen=True)
class Values:
    """One panel of `paired_dots`: values of each series (model or view) by case, NaN if undefined.

    ``means`` and ``intervals`` are drawn beside the dots of the series that have them.
    """

    title: str
    series: Mapping[str, Mapping[str, float]]
    quantity: str = ""
    means: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Differences:
    """One panel of `difference_plots`: a comparison of ``comparison.json`` in one measure."""

    title: str
    name: str
    colour: str
    quantity: str
    entry: Mapping[str, Any]


def paired_dots(panels: Sequence[Values], colours: Colours) -> Drawing:
    """Draw a dot for each case and series, a line joining the dots of a case, and mean and interval beside them."""
    import matplotlib

    tips: dict[str, str] = {}
    in_legend: dict[str, str] = {}
    needs_legend = False
    with matplotlib.rc_context(STYLE):
        figure, places = _panels(len(panels), height_inches=2.9)
        for number_of_panel, (place, panel) in enumerate(zip(places, panels, strict=True)):
            names = list(panel.series)
            cases = sorted({case for values in panel.series.values() for case in values})
            # a case has the same horizontal offset in every series, which separates dots of equal height
            spread = dict(zip(cases, np.linspace(-0.13, 0.13, len(cases)) if len(cases) > 1 else [0.0], strict=True))
            for number_of_case, case in enumerate(cases):
                found = [
                    (at, values[case])
                    for at, values in enumerate(panel.series.values())
                    if math.isfinite(values.get(case, math.nan))
                ]
                if not found:
                    continue
                gid = f"case{number_of_panel}x{number_of_case}"
                tip = [f"{names[at]} {number(value, panel.quantity)}" for at, value in found]
                tips[gid] = f"{printable(case)}: {printable(', '.join(tip))}"
                xs = [at + spread[case] for at, _ in found]
                ys = [value for _, value in found]
                place.plot(xs, ys, color=GREY, linewidth=0.6, alpha=0.55, zorder=1, gid=gid)
                for mark, (x, (at, y)) in enumerate(zip(xs, found, strict=True)):
                    colour = colours[names[at]]
                    mark_gid = f"{gid}x{mark}"
                    tips[mark_gid] = tips[gid]
                    place.plot([x], [y], "o", color=colour, markersize=3.4, markeredgewidth=0, zorder=2, gid=mark_gid)
            for at, name in enumerate(names):
                _mean(place, at + 0.3, panel.means.get(name, math.nan), panel.intervals.get(name))
            place.set(xlim=(-0.5, len(names) - 0.3), title=panel.title)
            shown = short_names(names)
            in_legend |= {shown[name]: colours[name] for name in names}
            has_room = max(map(len, shown.values())) * len(names) <= ROOM_FOR_NAMES
            place.set_xticks(range(len(names)), shown.values() if has_room else [""] * len(names))
            place.tick_params(axis="x", length=0)
            needs_legend |= not has_room
            place.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.5)
        if needs_legend:
            legend(figure, in_legend)
    return Drawing(figure, tips)


def difference_plots(panels: Sequence[Differences], columns: int) -> Drawing:
    """Draw difference over mean of each case for each comparison, with bias, its interval and limits of agreement.

    Args:
        panels: panels, row by row.
        columns: number of panels in a row.
    """
    import matplotlib

    tips: dict[str, str] = {}
    with matplotlib.rc_context(STYLE):
        figure, places = _panels(len(panels), height_inches=2.35, columns=columns)
        for number_of_panel, (place, panel) in enumerate(zip(places, panels, strict=True)):
            agreement = panel.entry["bland_altman"]
            low, high = panel.entry["interval"]
            if math.isfinite(low) and math.isfinite(high):
                place.axhspan(low, high, color=panel.colour, alpha=0.18, linewidth=0)
            place.axhline(0, color=INK, linewidth=0.6)
            if math.isfinite(panel.entry["mean_difference"]):
                place.axhline(panel.entry["mean_difference"], color=panel.colour, linewidth=1.2)
            for limit in agreement["limits"]:
                if math.isfinite(limit):
                    place.axhline(limit, color=panel.colour, linewidth=0.8, linestyle=(0, (4, 3)))
            for number_of_case, (case, difference) in enumerate(panel.entry["differences"].items()):
                gid = f"pair{number_of_panel}x{number_of_case}"
                mean = agreement["means"][case]
                shown = number(difference, panel.quantity, signed=True)
                tips[gid] = f"{printable(case)}: {shown}, mean {number(mean, panel.quantity)}"
                place.plot([mean], [difference], "o", color=panel.colour, markersize=3.6, markeredgewidth=0, gid=gid)
            row, column = divmod(number_of_panel, columns)
            place.set_title(panel.title if row == 0 else "")
            if column == 0:
                place.set_ylabel(panel.name)
            place.set_xlabel("mean of both" if number_of_panel >= len(panels) - columns else "")
            if not panel.entry["differences"]:
                place.text(0.5, 0.6, "no case with both", transform=place.transAxes, ha="center", color=GREY)
    return Drawing(figure, tips)


def panels_in_a_row(count: int) -> int:
    """Number of panels per row that makes all rows about equally long."""
    rows = -(-count // MOST_PANELS_IN_A_ROW)
    return -(-count // max(1, rows))


def _panels(count: int, *, height_inches: float, columns: int | None = None) -> tuple[Figure, list[Axes]]:
    """Create a figure with ``count`` panels, row by row; few panels are wide, but not as wide as the page."""
    from matplotlib.figure import Figure

    columns = columns or panels_in_a_row(count)
    rows = -(-count // columns)
    width = min(WIDTH_INCHES, 3.6 * columns)
    figure = Figure(figsize=(width, height_inches * rows + 0.1), layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for place in places[count:]:
        place.set_axis_off()
    return figure, places[:count]


def legend(figure: Figure, colours: Colours) -> None:
    """Draw a legend of names with their colours, below all panels."""
    from matplotlib.lines import Line2D

    dots = [Line2D([], [], linestyle="", marker="o", markersize=5, color=colours[name], label=name) for name in colours]
    figure.legend(handles=dots, loc="outside lower left", ncols=4, frameon=False, handletextpad=0.2)


def _mean(place: Axes, x: float, mean: float, interval: tuple[float, float] | None) -> None:
    if not math.isfinite(mean):
        return
    if interval is not None and all(map(math.isfinite, interval)):
        place.plot([x, x], interval, color=INK, linewidth=1.4, zorder=3)
    place.plot([x], [mean], "D", color=INK, markersize=4, markeredgewidth=0, zorder=3)
