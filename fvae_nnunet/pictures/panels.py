"""The panels of a picture: images, differences, outlines of segmentations, close-ups and a legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fvae_nnunet.errors import UserError
from fvae_nnunet.pictures.colours import LABEL_COLOURS, PREDICTION_COLOUR, REFERENCE_COLOUR, colours_of
from fvae_nnunet.pictures.layout import Layout
from fvae_nnunet.pictures.marks import mark_panel, write_on
from fvae_nnunet.pictures.outlines import DASHES, Outline
from fvae_nnunet.pictures.planes import Extent, Plane, frame_around

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DIFFERENCE_HU = 50.0
"""Range of difference panels, -50 to 50 HU in every picture, so that pictures of different VAEs are comparable."""

REFERENCE, PREDICTION = "reference", "prediction"
REFERENCE_WIDTH, PREDICTION_WIDTH = 3.0, 1.2
"""Widths of outlines in points, so that both are visible along the same pixels."""

MOST_NOTES = 3
"""Maximum number of pieces of a mask with a note."""

Labels = Mapping[str, int | Sequence[int]]
"""Name -> value, or values of a region, as in dataset.json; background (0) is not drawn."""


@dataclass(frozen=True)
class Column:
    """A heading with a panel for each plane below it.

    Attributes:
        heading: text above the panels.
        cuts: images, a slice for each plane.
        maps: ``REFERENCE`` or ``PREDICTION`` -> label maps to outline, a slice for each plane.
        notes: text -> masks beside which it is written, a slice for each plane.
    """

    heading: str
    cuts: Sequence[np.ndarray]
    maps: Mapping[str, Sequence[np.ndarray]] = field(default_factory=dict)
    notes: Mapping[str, Sequence[np.ndarray]] = field(default_factory=dict)
    is_difference: bool = False
    is_close_up: bool = False
    is_segmentation: bool = False


def check_shapes(raw_hu: np.ndarray, others: Mapping[str, np.ndarray]) -> None:
    for name, array in others.items():
        if array.shape != raw_hu.shape:
            raise UserError(f"{name} has shape {array.shape}, raw_hu {raw_hu.shape}; the shapes must be equal")


def drawn_values(labels: Labels) -> dict[str, np.ndarray]:
    """The values of each label to draw."""
    return {name: np.atleast_1d(value) for name, value in labels.items() if np.any(np.atleast_1d(value))}


def differences(raw: Sequence[np.ndarray], view: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [after.astype(np.float32) - before for before, after in zip(raw, view, strict=True)]


def any_label(maps: Sequence[Sequence[np.ndarray]] | Any, values: np.ndarray) -> list[np.ndarray]:
    """Mask for each plane of the pixels where any label map has one of the values; empty if there are no maps."""
    return [np.logical_or.reduce([np.isin(cut, values) for cut in cuts]) for cuts in zip(*maps, strict=True)]


def outlines_of(names: Sequence[str], kinds: Sequence[str]) -> dict[tuple[str, str], Outline]:
    """Style of each label of each kind of segmentation.

    With a prediction, the hue distinguishes reference and prediction, and the dashes distinguish labels; the last label
    (in nnU-Net's datasets the lesion) is solid. Without one, the hue distinguishes labels.
    """
    if PREDICTION not in kinds:
        colours = colours_of(names, LABEL_COLOURS)
        return {(name, kind): Outline(colours[name]) for name in names for kind in kinds}
    hues = {REFERENCE: (REFERENCE_COLOUR, REFERENCE_WIDTH), PREDICTION: (PREDICTION_COLOUR, PREDICTION_WIDTH)}
    return {
        (name, kind): Outline(*hues[kind], DASHES[place % len(DASHES)])
        for place, name in enumerate(reversed(names))
        for kind in kinds
    }


def show_slice(panel: Axes, image: np.ndarray, grey: tuple[float, float], extent_mm: Extent) -> None:
    """Show a CT slice in a panel without ticks."""
    panel.imshow(image, cmap="gray", vmin=grey[0], vmax=grey[1], extent=extent_mm)
    panel.set(xticks=[], yticks=[], facecolor="black")


def show_difference(panel: Axes, image: np.ndarray, reach: float, extent_mm: Extent) -> None:
    """Show a difference in a panel without ticks: blue below 0, red above."""
    panel.imshow(image, cmap="RdBu_r", vmin=-reach, vmax=reach, extent=extent_mm)
    panel.set(xticks=[], yticks=[])


def zoom(panel: Axes, frame_mm: Extent) -> None:
    """Show a part of the panel's slice."""
    left, right, bottom, top = frame_mm
    panel.set(xlim=(left, right), ylim=(bottom, top))


def draw_frame(panel: Axes, frame_mm: Extent) -> None:
    """Draw the frame of the close-ups in the panel of the whole slice."""
    from matplotlib.patches import Rectangle

    left, right, bottom, top = frame_mm
    for colour, style in (("black", "-"), ("white", ":")):
        panel.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, ec=colour, lw=1.0, ls=style))


def write_beside(panel: Axes, mask: np.ndarray, text: str, extent_mm: Extent, *, font_size: float) -> None:
    """Write a text above each of the `MOST_NOTES` largest pieces of a mask (rows, columns) of a panel's slice; below a
    piece at the panel's upper edge, and shifted inwards at its sides. If texts would overlap, only the larger piece has
    one."""
    from scipy import ndimage

    left, right = panel.get_xlim()
    lower, upper = panel.get_ylim()
    step_mm = np.array([extent_mm[2] / mask.shape[0], extent_mm[1] / mask.shape[1]])
    numbered, number = ndimage.label(mask, structure=np.ones((3, 3)))
    order = np.argsort(-np.bincount(numbered.ravel(), minlength=number + 1)[1:], kind="stable")
    pieces = [ndimage.find_objects(numbered)[place] for place in order[:MOST_NOTES]]
    written: list[tuple[float, float]] = []
    for rows, columns in pieces:
        top, bottom = rows.start * step_mm[0], rows.stop * step_mm[0]
        middle = (columns.start + columns.stop) / 2 * step_mm[1]
        above, share = top - upper > 0.15 * (lower - upper), (middle - left) / (right - left)
        at = middle, top if above else bottom
        if any(abs(at[0] - x) < 0.4 * (right - left) and abs(at[1] - y) < 0.1 * (lower - upper) for x, y in written):
            continue
        written.append(at)
        write_on(
            panel, *at, text, font_size=font_size, fontweight="bold",
            transform=panel.transData, va="bottom" if above else "top", clip_on=True,
            ha="left" if share < 0.2 else "right" if share > 0.8 else "center",
        )  # fmt: skip


def figure_of(
    columns: Sequence[Column],
    planes: Sequence[Plane],
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    *,
    values: Mapping[str, np.ndarray],
    close_up: Sequence[np.ndarray],
    margin_mm: float,
    title: str,
    hu_window: tuple[float, float],
    layout: Layout,
) -> Figure:
    """Draw all panels, colour bars and the legend; ``close_up`` holds the mask for close-ups of each plane."""
    import matplotlib

    all_maps = [cut for column in columns for cuts in column.maps.values() for cut in cuts]
    drawn = [name for name, some in values.items() if any(np.isin(cut, some).any() for cut in all_maps)]
    kinds = list(dict.fromkeys(kind for column in columns for kind in column.maps))
    outlines = outlines_of(list(values), kinds)
    legend = _legend_entries(drawn, kinds, outlines)
    first_segmentation = next(number for number, column in enumerate(columns) if column.is_segmentation)
    first_difference = next((number for number, column in enumerate(columns) if column.is_difference), None)
    extents = [plane.extent_mm(shape, spacing_mm) for plane in planes]
    with matplotlib.rc_context({"text.parse_math": False}):
        figure = layout.begin(
            [bottom / right for _, right, bottom, _ in extents],
            entries=len(legend),
            legend_columns=len(columns) - first_segmentation,
            heading_lines=max(column.heading.count("\n") + 1 for column in columns),
        )
        figure.suptitle(title, fontsize=14 / 11 * layout.font_size, y=layout.title_y, va="top")
        for row, (plane, extent) in enumerate(zip(planes, extents, strict=True)):
            panels = [layout.panel(row, number) for number in range(len(columns))]
            frame = frame_around(close_up[row], extent, margin_mm) if close_up else extent
            for panel, column in zip(panels, columns, strict=True):
                if column.is_difference:
                    show_difference(panel, column.cuts[row], DIFFERENCE_HU, extent)
                else:
                    show_slice(panel, column.cuts[row], hu_window, extent)
                if row == 0:
                    panel.set_title(column.heading, fontsize=12 / 11 * layout.font_size)
                if column.is_close_up:
                    zoom(panel, frame)
                for kind, cuts in column.maps.items():
                    for name in drawn:
                        outlines[name, kind].draw(panel, np.isin(cuts[row], values[name]), extent)
                for text, masks in column.notes.items():
                    write_beside(panel, masks[row], text, extent, font_size=layout.font_size)
                mark_panel(panel, plane.sides, font_size=10 / 11 * layout.font_size)
            layout.say_plane(panels[0], f"{plane.name}, slice {plane.index + 1} of {shape[plane.axis]}")
            if frame != extent:
                draw_frame(panels[0], frame)
        layout.colour_bar(panels[0], 0, "HU", columns=2)
        if first_difference is not None:
            layout.colour_bar(panels[first_difference], first_difference, "difference in HU", extend="both")
        layout.legend(first_segmentation, legend)
    return figure


def _legend_entries(
    drawn: Sequence[str], kinds: Sequence[str], outlines: Mapping[tuple[str, str], Outline]
) -> list[tuple[str, Outline]]:
    """Text and line of the legend: labels by colour, or reference and prediction by colour and labels by dashes."""
    if PREDICTION not in kinds:
        return [(name, outlines[name, kind]) for name in drawn for kind in kinds]
    whose = {kind: Outline(outline.colour, outline.width) for (_, kind), outline in outlines.items()}
    labels = [(name, Outline("0.3", 1.6, outlines[name, PREDICTION].dashes)) for name in drawn]
    return [*whose.items(), *(labels if len(labels) > 1 else [])]
