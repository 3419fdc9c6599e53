"""One case in one picture: raw image, its views, their differences, and the segmentations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.surface_dice import bounding_box
from fvae_nnunet.recorded_files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DIFFERENCE_HU = 50.0
"""The difference panels show -50 to 50 HU in every picture, so that pictures of different VAEs can be compared."""

SOFT_TISSUE_HU_WINDOW = (-160.0, 240.0)
LUNG_HU_WINDOW = (-1350.0, 150.0)
"""HU shown as black and as white: the windows in which radiologists read abdomen and lung."""

LUNG_BELOW_HU = -400.0
"""A lesion lies in the lung if the median around it is below."""

AROUND_LESION_MM = 10.0
"""How far from a lesion its surroundings reach."""

MARGIN_MM = 15.0
"""Room around the labels in the close-up of the segmentations."""

LESION_MARGIN_MM = 25.0
"""Room around the lesion in the close-ups that compare models."""

LABEL_COLOURS = ("#ffd92f", "#ff3b5c", "#35c8ff", "#7dff7a", "#d58cff", "#ff9f1c", "#ffffff", "#00ffc8")
"""One for each label in the order of dataset.json, repeated where they do not suffice."""

REFERENCE_STYLE: dict[str, Any] = {"linewidths": 4.5, "alpha": 0.45}
PREDICTION_STYLE: dict[str, Any] = {"linewidths": 1.3}

Labels = Mapping[str, int | Sequence[int]]
"""Name -> value, or values of a region, as in dataset.json; background (0) is not drawn."""


@dataclass(frozen=True)
class Plane:
    """A slice of a volume (z, y, x): ``axis`` 0 is axial, 1 coronal, 2 sagittal; ``index`` counts voxels from 0."""

    axis: int
    index: int

    @property
    def name(self) -> str:
        return ("axial", "coronal", "sagittal")[self.axis]

    @property
    def sides(self) -> tuple[str, str]:
        """What lies on the left and on the right of the slice as shown: the patient's right, left, front or back."""
        return ("A", "P") if self.axis == 2 else ("R", "L")

    def cut(self, volume: np.ndarray) -> np.ndarray:
        """The slice as shown, first row at the top.

        Axial (y, x) with the front up, coronal (z, x) with the head up, sagittal (z, y) with the head up and the front
        on the left.
        """
        return volume[self.index] if self.axis == 0 else volume[::-1].take(self.index, axis=self.axis)

    def extent_mm(self, shape: Sequence[int], spacing_mm: Sequence[float]) -> tuple[float, float, float, float]:
        """Left, right, bottom and top edge of the slice in mm, from its upper left corner, downwards positive."""
        rows, columns = (axis for axis in range(3) if axis != self.axis)
        return 0.0, shape[columns] * spacing_mm[columns], shape[rows] * spacing_mm[rows], 0.0


def largest_cross_sections(
    shape: Sequence[int], segmentations: Sequence[np.ndarray], axes: Sequence[int] = (0, 1)
) -> tuple[Plane, ...]:
    """The planes, one across each of the axes, where the first of the masks that is not empty has most voxels.

    The masks are (z, y, x). All empty or none given: the middle planes.
    """
    mask = next((mask for mask in segmentations if mask.any()), None)
    if mask is None:
        return tuple(Plane(axis, shape[axis] // 2) for axis in axes)
    others = {axis: tuple(other for other in range(3) if other != axis) for axis in axes}
    return tuple(Plane(axis, int(mask.sum(others[axis]).argmax())) for axis in axes)


def largest_lesion(mask: np.ndarray) -> np.ndarray:
    """The largest connected component of a mask (z, y, x), neighbours sharing a face, edge or corner; else the mask."""
    from scipy import ndimage

    if not mask.any():
        return mask
    box = bounding_box(mask)
    numbered, _ = ndimage.label(mask[box], structure=np.ones((3, 3, 3), dtype=bool))
    largest = np.zeros_like(mask)
    largest[box] = numbered == np.bincount(numbered[mask[box]]).argmax()
    return largest


def hu_window_around(raw_hu: np.ndarray, lesion: np.ndarray, spacing_mm: Sequence[float]) -> tuple[float, float]:
    """`LUNG_HU_WINDOW` for a lesion that lies in the lung, else `SOFT_TISSUE_HU_WINDOW`; arrays (z, y, x)."""
    if not lesion.any():
        return SOFT_TISSUE_HU_WINDOW
    margins = np.ceil(AROUND_LESION_MM / np.asarray(spacing_mm)).astype(int)
    box = tuple(
        slice(max(0, side.start - margin), side.stop + margin)
        for side, margin in zip(bounding_box(lesion), margins, strict=True)
    )
    return hu_window_in(raw_hu[box][~lesion[box]])


def hu_window_in(surroundings_hu: np.ndarray) -> tuple[float, float]:
    """`LUNG_HU_WINDOW` where these voxels are mostly lung, else, or of none, `SOFT_TISSUE_HU_WINDOW`."""
    is_lung = surroundings_hu.size and np.median(surroundings_hu) < LUNG_BELOW_HU
    return LUNG_HU_WINDOW if is_lung else SOFT_TISSUE_HU_WINDOW


def case_picture(
    raw_hu: np.ndarray,
    view_hu: np.ndarray,
    *,
    spacing_mm: tuple[float, float, float],
    reference: np.ndarray | None = None,
    prediction: np.ndarray | None = None,
    labels: Labels,
    title: str,
    path: str | Path,
    hu_window: tuple[float, float] = SOFT_TISSUE_HU_WINDOW,
) -> Path:
    """Write a PNG with an axial and a coronal slice of raw image, view, difference and segmentations.

    The slices are those where the last of ``labels`` (in nnU-Net's tumour datasets the tumour) has its largest
    cross-section in the reference; where it is absent, in the prediction; then all labels together; then the middle
    slices. Radiological orientation: axial with the front up, coronal with the head up, the patient's right on the
    left. The last panel is a close-up, framed in the first.

    Args:
        raw_hu, view_hu: volumes (z, y, x) in HU, z rising to the head, y to the back, x to the patient's left (what
            SimpleITK's ``DICOMOrient(image, "LPS")`` gives).
        spacing_mm: voxel size (z, y, x).
        reference, prediction: label maps (z, y, x), or None.
        labels: what to draw.
        title: headline of the picture.
        path: file to write.
        hu_window: HU shown as black and as white.

    Returns:
        The path.

    Raises:
        UserError: shapes differ, the HU window is empty, or matplotlib is not installed.
    """
    maps = {name: array for name, array in (("reference", reference), ("prediction", prediction)) if array is not None}
    _check(raw_hu, {"view_hu": view_hu, **maps}, hu_window)
    values = _values(labels)
    anything = np.concatenate([[], *values.values()])
    wanted = [list(values.values())[-1], anything] if values else []
    planes = largest_cross_sections(raw_hu.shape, [np.isin(array, some) for some in wanted for array in maps.values()])
    raw, view = ([plane.cut(volume) for plane in planes] for volume in (raw_hu, view_hu))
    cuts = {name: [plane.cut(array) for plane in planes] for name, array in maps.items()}
    columns = [
        _Column("raw", raw),
        _Column("view (reconstruction)", view),
        _Column("view minus raw", _differences(raw, view), is_difference=True),
        _Column(" and ".join(maps) or "no segmentation", raw, cuts, is_close_up=True, is_segmentation=True),
    ]
    figure = _figure(
        columns, planes, raw_hu.shape, spacing_mm,
        values=values, close_up=_any_of(cuts.values(), anything), margin_mm=MARGIN_MM, title=title,
        hu_window=hu_window, layout=_Layout(len(columns)),
    )  # fmt: skip
    with atomic_write(Path(path)) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    return Path(path)


def comparison_picture(
    raw_hu: np.ndarray,
    *,
    views: Mapping[str, np.ndarray],
    spacing_mm: tuple[float, float, float],
    reference: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    labels: Labels,
    lesion: str,
    remarks: Mapping[str, str],
) -> Figure:
    """An axial, a coronal and a sagittal slice through a lesion: raw image, each view, and each model's segmentation.

    The slices are the largest cross-sections of the largest lesion of the reference; where it has none, of the
    predictions, the first that has one; then of all labels together; then the middle slices. Orientation as in
    `case_picture`; sagittal with the front on the left. All panels but the first are close-ups of the lesion in
    these slices, framed in the first; a view and its difference to the raw image stand side by side.

    Args:
        raw_hu: volume (z, y, x) in HU, as for `case_picture`.
        views: name -> volume (z, y, x) in HU; may be empty.
        spacing_mm: voxel size (z, y, x).
        reference: label map (z, y, x).
        predictions: model -> label map (z, y, x); empty: the reference alone is drawn.
        labels: what to draw.
        lesion: the one of them that the slices go through.
        remarks: model -> what is said below its name.

    Returns:
        The figure, with an Agg canvas; its HU window is that of `hu_window_around`.

    Raises:
        UserError: shapes differ, or matplotlib is not installed.
    """
    _check(raw_hu, {"reference": reference, **views, **predictions}, SOFT_TISSUE_HU_WINDOW)
    values = _values(labels)
    maps = [reference, *predictions.values()]
    lesions = [np.isin(array, values[lesion]) for array in maps]
    target = largest_lesion(next((mask for mask in lesions if mask.any()), lesions[0]))
    anything = np.isin(reference, np.concatenate(list(values.values())))
    planes = largest_cross_sections(raw_hu.shape, [target, anything], axes=(0, 1, 2))
    raw = [plane.cut(raw_hu) for plane in planes]
    of_reference = [plane.cut(reference) for plane in planes]
    columns = [_Column("raw image", raw), _Column("its framed part", raw, is_close_up=True)]
    for name, volume in views.items():
        view = [plane.cut(volume) for plane in planes]
        columns.append(_Column(name, view, is_close_up=True))
        columns.append(_Column(f"{name}\nminus raw", _differences(raw, view), is_difference=True, is_close_up=True))
    for name, array in predictions.items():
        maps_of_model = {"reference": of_reference, "prediction": [plane.cut(array) for plane in planes]}
        heading = f"{name}\n{remarks[name]}" if name in remarks else name
        columns.append(_Column(heading, raw, maps_of_model, is_close_up=True, is_segmentation=True))
    if not predictions:
        columns.append(_Column("reference", raw, {"reference": of_reference}, is_close_up=True, is_segmentation=True))
    cuts = [[plane.cut(array) for plane in planes] for array in maps]
    return _figure(
        columns, planes, raw_hu.shape, spacing_mm,
        values=values, close_up=_any_of(cuts, values[lesion]), margin_mm=LESION_MARGIN_MM, title="",
        hu_window=hu_window_around(raw_hu, target, spacing_mm), layout=_Layout.for_page(len(columns)),
    )  # fmt: skip


@dataclass(frozen=True)
class _Column:
    """A heading and below it a panel for each plane, with the outlines of label maps (each a slice for each plane)."""

    heading: str
    cuts: Sequence[np.ndarray]
    maps: Mapping[str, Sequence[np.ndarray]] = field(default_factory=dict)
    is_difference: bool = False
    is_close_up: bool = False
    is_segmentation: bool = False


def _check(raw_hu: np.ndarray, others: Mapping[str, np.ndarray], hu_window: tuple[float, float]) -> None:
    for name, array in others.items():
        if array.shape != raw_hu.shape:
            raise UserError(f"{name} has shape {array.shape}, raw_hu {raw_hu.shape}; a picture needs equal shapes")
    if hu_window[0] >= hu_window[1]:
        raise UserError(f"hu_window must rise from black to white, got {hu_window}")


def _values(labels: Labels) -> dict[str, np.ndarray]:
    """The values of each label that is drawn."""
    return {name: np.atleast_1d(value) for name, value in labels.items() if np.any(np.atleast_1d(value))}


def _differences(raw: Sequence[np.ndarray], view: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [after.astype(np.float32) - before for before, after in zip(raw, view, strict=True)]


def _any_of(maps: Sequence[Sequence[np.ndarray]] | Any, values: np.ndarray) -> list[np.ndarray]:
    """For each plane where any of the label maps has one of the values; empty if there are no maps."""
    return [np.logical_or.reduce([np.isin(cut, values) for cut in cuts]) for cuts in zip(*maps, strict=True)]


def _figure(
    columns: Sequence[_Column],
    planes: Sequence[Plane],
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    *,
    values: Mapping[str, np.ndarray],
    close_up: Sequence[np.ndarray],
    margin_mm: float,
    title: str,
    hu_window: tuple[float, float],
    layout: _Layout,
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


class _Layout:
    """Places for panels, colour bars and legend; all lengths in inches, so that a panel's size is that of its slice.

    ``font_size`` is in points.
    """

    GAP, BAR = 0.12, 0.16

    def __init__(self, columns: int, *, panel_width: float = 3.6, font_size: float = 11.0, plain: bool = False) -> None:
        self.columns, self.panel_width, self.font_size, self.plain = columns, panel_width, font_size, plain
        scale = font_size / 11
        self.bar_label, self.legend_line = 0.5 * scale, 0.25 * scale
        # plain: no title above the panels, and the planes' names inside them
        self.left, self.top = (0.15 * scale, 0.32 * scale) if plain else (0.3 * scale, 0.75 * scale)
        self.width = self.left + columns * (panel_width + self.GAP)

    @classmethod
    def for_page(cls, columns: int) -> _Layout:
        """For a picture that is shown about 11 inches wide, whatever its number of columns: the same size of text."""
        return cls(columns, panel_width=2.8, font_size=max(8.0, 0.75 * columns * 2.92), plain=True)

    def begin(self, proportions: Sequence[float], *, entries: int, legend_columns: int, heading_lines: int) -> Figure:
        """The empty figure, for rows of panels with such heights by widths and a legend of so many entries."""
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
        """Which slice a row shows."""
        if not self.plain:
            panel.set_ylabel(name, fontsize=self.font_size)
            return
        panel.text(
            0.02, 0.97, name.replace("slice ", "").replace(" of ", "/"), ha="left", va="top", color="white",
            transform=panel.transAxes, fontsize=10 / 11 * self.font_size,
            bbox={"facecolor": "black", "alpha": 0.5, "linewidth": 0, "pad": 2},
        )  # fmt: skip

    def colour_bar(self, panel: Axes, column: int, label: str, *, columns: int = 1, extend: str = "neither") -> None:
        """The scale of a panel's image, below some columns."""
        place = self._axes(column, self.below, self.BAR, columns=columns)
        bar = self.figure.colorbar(panel.images[0], cax=place, orientation="horizontal", extend=extend)
        bar.set_label(label, fontsize=10 / 11 * self.font_size)
        place.tick_params(labelsize=10 / 11 * self.font_size)

    def legend(self, column: int) -> Axes:
        """From a column to the last."""
        return self._axes(column, self.below, self.legend_inches, columns=self.columns - column)

    def _axes(self, column: int, from_top: float, height: float, *, columns: int = 1) -> Axes:
        left = self.left + column * (self.panel_width + self.GAP)
        width = columns * self.panel_width + (columns - 1) * self.GAP
        low = self.height - from_top - height
        return self.figure.add_axes((left / self.width, low / self.height, width / self.width, height / self.height))


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


def _legend(panel: Axes, colours: Mapping[str, str], kinds: Sequence[str], layout: _Layout) -> None:
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
