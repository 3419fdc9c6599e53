"""Forest plots: estimates with intervals in rows, those of one row in several colours below one another."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GREY = "#8b9099"

ROW_INCHES, ESTIMATE_INCHES = 0.16, 0.14
"""Of a row, and of each estimate in it."""


@dataclass(frozen=True)
class Estimate:
    """One dot with its line.

    Attributes:
        value: NaN: nothing is drawn.
        interval: its two ends, NaN where there are none.
        colour: of both.
        is_sure: a filled dot, else a ring.
        gid: of the dot, for who draws tips.
    """

    value: float
    interval: tuple[float, float]
    colour: str
    is_sure: bool = True
    gid: str = ""


def forest_height_inches(rows: int, estimates: int) -> float:
    """Of the rows alone, without axis and legend."""
    return rows * (ROW_INCHES + ESTIMATE_INCHES * estimates)


def draw_forest(axes: Axes, rows: Sequence[Sequence[Estimate]], *, reference: float) -> None:
    """Draw rows from the top, y = 0, 1, 2 and so on, around the line of no effect.

    Args:
        axes: their y axis is set, their x axis has room for all intervals.
        rows: of equal lengths, or empty ones.
        reference: the value of no effect.
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
