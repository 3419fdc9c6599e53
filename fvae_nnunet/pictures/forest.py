"""Forest plots: rows of estimates with intervals; the estimates of a row are below one another in several colours."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

GREY = "#8b9099"

ROW_INCHES, ESTIMATE_INCHES = 0.16, 0.14
"""Height of a row, and of each estimate in it."""


@dataclass(frozen=True)
class Estimate:
    """One dot with its line.

    Attributes:
        value: estimate; with NaN, nothing is drawn.
        interval: both ends, NaN if there is no interval.
        colour: colour of dot and line.
        is_sure: whether the dot is filled; otherwise it is a ring.
        gid: id of the dot in an SVG, for tooltips.
    """

    value: float
    interval: tuple[float, float]
    colour: str
    is_sure: bool = True
    gid: str = ""


def forest_height_inches(rows: int, estimates: int) -> float:
    """Height of the rows, without axis and legend."""
    return rows * (ROW_INCHES + ESTIMATE_INCHES * estimates)


def draw_forest(axes: Axes, rows: Sequence[Sequence[Estimate]], *, reference: float) -> None:
    """Draw rows from the top, at y = 0, 1, 2 and so on, and the line of no effect.

    Args:
        axes: axes to draw in; the limits of x (with room for all intervals) and y are set.
        rows: rows of equal length, or empty ones.
        reference: value of no effect.
    """
    axes.axvline(reference, color=GREY, linewidth=0.8, linestyle=":", zorder=0)
    for y, row in enumerate(rows):
        for place, estimate in enumerate(row):
            if math.isfinite(estimate.value):
                _draw(axes, estimate, y + 0.62 * ((place + 0.5) / len(row) - 0.5))
    margin = 0.06 * (max(_ends(rows, reference)) - min(_ends(rows, reference))) or 0.05
    axes.set_xlim(min(_ends(rows, reference)) - margin, max(_ends(rows, reference)) + margin)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def legend_dot(colour: str, name: str) -> Line2D:
    """Entry of a legend for the estimates of one colour."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, marker="o", markersize=5, linewidth=1.5, label=name)


def _draw(axes: Axes, estimate: Estimate, y: float) -> None:
    low, high = estimate.interval
    if math.isfinite(low) and math.isfinite(high):
        axes.plot([low, high], [y, y], color=estimate.colour, linewidth=1.5, solid_capstyle="butt", zorder=1)
    size, width = (5.0, 0.0) if estimate.is_sure else (5.5, 1.3)
    axes.plot(
        [estimate.value], [y], "o", color=estimate.colour, markersize=size, markeredgewidth=width, zorder=2,
        markerfacecolor=estimate.colour if estimate.is_sure else "none", gid=estimate.gid or None,
    )  # fmt: skip


def _ends(rows: Sequence[Sequence[Estimate]], reference: float) -> Iterator[float]:
    yield reference
    for row in rows:
        for estimate in row:
            yield from (end for end in (estimate.value, *estimate.interval) if math.isfinite(end))
