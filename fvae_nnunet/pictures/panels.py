"""The panels of a picture: images, differences, outlines of segmentations, close-ups and a legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fvae_nnunet.errors import UserError
from fvae_nnunet.pictures.layout import Layout
from fvae_nnunet.pictures.planes import Plane

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DIFFERENCE_HU = 50.0
"""The difference panels show -50 to 50 HU in every picture, so that pictures of different VAEs can be compared."""

LABEL_COLOURS = ("#ffd92f", "#ff3b5c", "#35c8ff", "#7dff7a", "#d58cff", "#ff9f1c", "#ffffff", "#00ffc8")
"""One for each label in the order of dataset.json, repeated where they do not suffice."""

REFERENCE_STYLE: dict[str, Any] = {"linewidths": 4.5, "alpha": 0.45}
PREDICTION_STYLE: dict[str, Any] = {"linewidths": 1.3}

Labels = Mapping[str, int | Sequence[int]]
"""Name -> value, or values of a region, as in dataset.json; background (0) is not drawn."""


@dataclass(frozen=True)
class Column:
    """A heading and below it a panel for each plane, with the outlines of label maps (each a slice for each plane)."""

    heading: str
    cuts: Sequence[np.ndarray]
    maps: Mapping[str, Sequence[np.ndarray]] = field(default_factory=dict)
    is_difference: bool = False
    is_close_up: bool = False
    is_segmentation: bool = False


def check_shapes_and_window(
    raw_hu: np.ndarray, others: Mapping[str, np.ndarray], hu_window: tuple[float, float]
) -> None:
    for name, array in others.items():
        if array.shape != raw_hu.shape:
            raise UserError(f"{name} has shape {array.shape}, raw_hu {raw_hu.shape}; a picture needs equal shapes")
    if hu_window[0] >= hu_window[1]:
        raise UserError(f"hu_window must rise from black to white, got {hu_window}")


def drawn_values(labels: Labels) -> dict[str, np.ndarray]:
    """The values of each label that is drawn."""
    return {name: np.atleast_1d(value) for name, value in labels.items() if np.any(np.atleast_1d(value))}


def differences(raw: Sequence[np.ndarray], view: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [after.astype(np.float32) - before for before, after in zip(raw, view, strict=True)]


def any_label(maps: Sequence[Sequence[np.ndarray]] | Any, values: np.ndarray) -> list[np.ndarray]:
    """For each plane where any of the label maps has one of the values; empty if there are no maps."""
    return [np.logical_or.reduce([np.isin(cut, values) for cut in cuts]) for cuts in zip(*maps, strict=True)]


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
    """All panels, colour bars and legend; ``close_up`` has for each plane the mask around which close-ups are."""
    import matplotlib

    colours = {name: LABEL_COLOURS[number % len(LABEL_COLOURS)] for number, name in enumerate(values)}
    all_maps = [cut for column in columns for cuts in column.maps.values() for cut in cuts]
    drawn = {name: colours[name] for name, some in values.items() if any(np.isin(cut, some).any() for cut in all_maps)}
    kinds = list(dict.fromkeys(kind for column in columns for kind in column.maps))
    first_segmentation = next(number for number, column in enumerate(columns) if column.is_segmentation)
    first_difference = next((number for number, column in enumerate(columns) if column.is_difference), None)
    extents = [plane.extent_mm(shape, spacing_mm) for plane in planes]
    with matplotlib.rc_context({"text.parse_math": False}):
        figure = layout.begin(
            [bottom / right for _, right, bottom, _ in extents],
            entries=len(drawn) + len(kinds),
            legend_columns=len(columns) - first_segmentation,
            heading_lines=max(column.heading.count("\n") + 1 for column in columns),
        )
        figure.suptitle(title, fontsize=14 / 11 * layout.font_size, y=layout.title_y, va="top")
        for row, (plane, extent) in enumerate(zip(planes, extents, strict=True)):
            panels = [layout.panel(row, number) for number in range(len(columns))]
            for panel, column in zip(panels, columns, strict=True):
                low, high = (-DIFFERENCE_HU, DIFFERENCE_HU) if column.is_difference else hu_window
                colour_map = "RdBu_r" if column.is_difference else "gray"
                panel.imshow(column.cuts[row], cmap=colour_map, vmin=low, vmax=high, extent=extent)
                panel.set(xticks=[], yticks=[])
                if row == 0:
                    panel.set_title(column.heading, fontsize=12 / 11 * layout.font_size)
                for label, colour in drawn.items():
                    for kind, cuts in column.maps.items():
                        is_reference = kind == "reference"
                        mask = np.isin(cuts[row], values[label])
                        _outline(panel, mask, extent, colour, is_reference=is_reference)
            layout.say_plane(panels[0], f"{plane.name}, slice {plane.index + 1} of {shape[plane.axis]}")
            for side, at in zip(plane.sides, (0.03, 0.97), strict=True):
                panels[0].text(
                    at, 0.5, side, color="white", ha="center", va="center", transform=panels[0].transAxes,
                    fontsize=10 / 11 * layout.font_size,
                )  # fmt: skip
            if close_up and close_up[row].any():
                close_ups = [panel for panel, column in zip(panels, columns, strict=True) if column.is_close_up]
                _zoom(close_ups, panels[0], close_up[row], extent, margin_mm)
        layout.colour_bar(panels[0], 0, "HU", columns=2)
        if first_difference is not None:
            layout.colour_bar(panels[first_difference], first_difference, "difference in HU", extend="both")
        _legend(layout.legend(first_segmentation), drawn, kinds, layout)
    return figure


def _outline(panel: Axes, mask: np.ndarray, extent_mm: Sequence[float], colour: str, *, is_reference: bool) -> None:
    """The border of a mask as a line: the reference's broad and pale, the prediction's thin and full on top of it."""
    if not mask.any():
        return
    _, right, bottom, _ = extent_mm
    rows, columns = mask.shape
    # a ring of background, so that a mask at the border of the image is closed too
    x_mm = (np.arange(-1, columns + 1) + 0.5) * right / columns
    y_mm = (np.arange(-1, rows + 1) + 0.5) * bottom / rows
    style = REFERENCE_STYLE if is_reference else PREDICTION_STYLE
    panel.contour(x_mm, y_mm, np.pad(mask, 1).astype(float), levels=[0.5], colors=[colour], **style)


def _zoom(
    close_ups: Sequence[Axes], overview: Axes, mask: np.ndarray, extent_mm: Sequence[float], margin_mm: float
) -> None:
    """Show the mask's surroundings in the close-ups, in a panel's own proportions, framed in the overview."""
    from matplotlib.patches import Rectangle

    _, right, bottom, _ = extent_mm
    step = np.array([bottom / mask.shape[0], right / mask.shape[1]])
    inside = np.argwhere(mask) * step
    low, high = inside.min(0) - margin_mm, inside.max(0) + step + margin_mm
    share = min(1.0, float(((high - low) / (bottom, right)).max()))
    size = share * np.array([bottom, right])
    corner = np.clip((low + high - size) / 2, 0, (bottom, right) - size)
    for panel in close_ups:
        panel.set(xlim=(corner[1], corner[1] + size[1]), ylim=(corner[0] + size[0], corner[0]))
    overview.add_patch(Rectangle((corner[1], corner[0]), size[1], size[0], fill=False, ec="white", lw=0.8, ls=":"))


def _legend(panel: Axes, colours: Mapping[str, str], kinds: Sequence[str], layout: Layout) -> None:
    from matplotlib.lines import Line2D

    panel.set_axis_off()
    styles = {"reference": (REFERENCE_STYLE, "0.3"), "prediction": (PREDICTION_STYLE, "0.1")}
    lines = [Line2D([], [], color=colour, linewidth=2, label=name) for name, colour in colours.items()]
    for kind in kinds:
        style, grey = styles[kind]
        lines.append(
            Line2D([], [], color=grey, linewidth=style["linewidths"], alpha=style.get("alpha", 1.0), label=kind)
        )
    if lines:
        panel.legend(
            handles=lines, loc="upper center", ncols=layout.legend_ncols, frameon=False, borderaxespad=0.2,
            fontsize=10 / 11 * layout.font_size,
        )  # fmt: skip
