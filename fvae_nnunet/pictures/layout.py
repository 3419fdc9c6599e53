"""Layout of panels, colour bars and legend of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fvae_nnunet.pictures.marks import write_on

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fvae_nnunet.pictures.outlines import Outline


class Layout:
    """Positions of panels, colour bars and legend; lengths are in inches, so that panels keep the slices' proportions.

    ``font_size`` is in points.
    """

    GAP, BAR = 0.12, 0.16

    def __init__(self, columns: int, *, panel_width: float = 3.6, font_size: float = 11.0, plain: bool = False) -> None:
        self.columns, self.panel_width, self.font_size, self.plain = columns, panel_width, font_size, plain
        scale = font_size / 11
        self.bar_label, self.legend_line = 0.5 * scale, 0.25 * scale
        # plain: no title above the panels, and names of planes inside them
        self.left, self.top = (0.15 * scale, 0.32 * scale) if plain else (0.3 * scale, 0.75 * scale)
        self.width = self.left + columns * (panel_width + self.GAP)

    @classmethod
    def for_page(cls, columns: int) -> Layout:
        """A layout for pictures shown about 11 inches wide, with the same text size for any number of columns."""
        return cls(columns, panel_width=2.8, font_size=max(8.0, 0.75 * columns * 2.92), plain=True)

    def begin(self, proportions: Sequence[float], *, entries: int, legend_columns: int, heading_lines: int) -> Figure:
        """Create the empty figure, for rows of panels with these ratios of height to width, and a legend."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.row_inches = [self.panel_width * float(np.clip(proportion, 0.15, 2.5)) for proportion in proportions]
        self.top += (heading_lines - 1) * 1.35 * 12 / 11 * self.font_size / 72
        self.legend_ncols = 2 * legend_columns
        legend_inches = self.legend_line * (-(-entries // self.legend_ncols) + 0.5)
        self.legend_inches = legend_inches
        self.below = self.top + sum(self.row_inches) + self.GAP * len(self.row_inches)
        self.height = self.below + max(self.BAR + self.bar_label, legend_inches)
        self.figure = Figure(figsize=(self.width, self.height))
        FigureCanvasAgg(self.figure)
        return self.figure

    @property
    def title_y(self) -> float:
        return 1 - 0.2 * self.font_size / 11 / self.height

    def panel(self, row: int, column: int) -> Axes:
        from_top = self.top + sum(self.row_inches[:row]) + self.GAP * row
        return self._axes(column, from_top, self.row_inches[row])

    def say_plane(self, panel: Axes, name: str) -> None:
        """Label a row with its slice."""
        if self.plain:
            text = name.replace("slice ", "").replace(" of ", "/")
            write_on(panel, 0.02, 0.1, text, font_size=10 / 11 * self.font_size, ha="left", va="bottom")
        else:
            panel.set_ylabel(name, fontsize=self.font_size)

    def colour_bar(self, panel: Axes, column: int, label: str, *, columns: int = 1, extend: str = "neither") -> None:
        """Draw the colour bar of a panel's image below ``columns`` columns."""
        place = self._axes(column, self.below, self.BAR, columns=columns)
        bar = self.figure.colorbar(panel.images[0], cax=place, orientation="horizontal", extend=extend)
        bar.set_label(label, fontsize=10 / 11 * self.font_size)
        place.tick_params(labelsize=10 / 11 * self.font_size)

    def legend(self, column: int, entries: Sequence[tuple[str, Outline]]) -> None:
        """Draw the legend of names and lines, from this column to the last."""
        place = self._axes(column, self.below, self.legend_inches, columns=self.columns - column)
        place.set_axis_off()
        if entries:
            place.legend(
                handles=[outline.in_legend(name) for name, outline in entries], loc="upper center",
                ncols=self.legend_ncols, frameon=False, borderaxespad=0.2, fontsize=10 / 11 * self.font_size,
            )  # fmt: skip

    def _axes(self, column: int, from_top: float, height: float, *, columns: int = 1) -> Axes:
        left = self.left + column * (self.panel_width + self.GAP)
        width = columns * self.panel_width + (columns - 1) * self.GAP
        low = self.height - from_top - height
        return self.figure.add_axes((left / self.width, low / self.height, width / self.width, height / self.height))
