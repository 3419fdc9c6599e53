"""Outlines of masks along pixel edges, with a dark casing that makes them visible on any tissue."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

CASING_COLOUR, CASING_WIDTH = "black", 0.9
"""Colour of the casing, and its width in points on either side of a line."""

DASHES: tuple[Any, ...] = ("solid", (0, (4, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))


@dataclass(frozen=True)
class Outline:
    """Style of an outline: colour, width in points, and dashes in matplotlib's format."""

    colour: str
    width: float = 1.4
    dashes: Any = DASHES[0]

    def draw(self, panel: Axes, mask: np.ndarray, extent_mm: tuple[float, float, float, float]) -> None:
        """Draw the border of a mask (rows, columns) in a panel whose image has this extent (left, right, bottom, top).

        An empty mask draws nothing.
        """
        from matplotlib.collections import LineCollection

        left, right, bottom, top = extent_mm
        pixel = np.array([(right - left) / mask.shape[1], (bottom - top) / mask.shape[0]])
        loops = [np.array([left, top]) + loop[:, ::-1] * pixel for loop in pixel_edges(mask)]
        if not loops:
            return
        casing = LineCollection(loops, colors=CASING_COLOUR, linewidths=self.width + 2 * CASING_WIDTH)
        lines = LineCollection(loops, colors=self.colour, linewidths=self.width, linestyles=[self.dashes])
        for collection in (casing, lines):
            panel.add_collection(collection, autolim=False)

    def in_legend(self, name: str) -> Line2D:
        """Legend handle for the outline."""
        from matplotlib.lines import Line2D

        return Line2D([], [], color=self.colour, linewidth=self.width, linestyle=self.dashes, label=name)


def pixel_edges(mask: np.ndarray) -> list[np.ndarray]:
    """Closed lines along pixel edges that separate a mask from its background, also at the border of the image.

    Args:
        mask: bool (rows, columns).

    Returns:
        Corners (n, 2) of each line as row and column, with the first one repeated at the end; pixel (r, c) extends from
        (r, c) to (r + 1, c + 1). Lines are clockwise on the screen around the mask and counter-clockwise around holes,
        so that the enclosed areas add up to the number of pixels. Empty for an empty mask.
    """
    inside = np.pad(mask.astype(bool), 1)
    core = inside[1:-1, 1:-1]
    follow: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for neighbour, begin, end in (
        (inside[:-2, 1:-1], (0, 0), (0, 1)),
        (inside[1:-1, 2:], (0, 1), (1, 1)),
        (inside[2:, 1:-1], (1, 1), (1, 0)),
        (inside[1:-1, :-2], (1, 0), (0, 0)),
    ):
        for row, column in np.argwhere(core & ~neighbour).tolist():
            follow[row + begin[0], column + begin[1]].append((row + end[0], column + end[1]))
    loops = []
    while follow:
        loop = [next(iter(follow))]
        while loop[-1] in follow:
            ends = follow[loop[-1]]
            following = ends.pop()
            if not ends:
                del follow[loop[-1]]
            loop.append(following)
        loops.append(np.array(loop))
    return loops
