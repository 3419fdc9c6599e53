"""One case in one picture: raw image, its view, their difference, and the segmentations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fvae_nnunet.errors import UserError
from fvae_nnunet.manifest import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DIFFERENCE_HU = 50.0
"""The difference panels show -50 to 50 HU in every picture, so that pictures of different VAEs can be compared."""

MARGIN_MM = 15.0
"""Room around the labels in the close-up of the segmentations."""

LABEL_COLOURS = ("#ffd92f", "#ff3b5c", "#35c8ff", "#7dff7a", "#d58cff", "#ff9f1c", "#ffffff", "#00ffc8")
"""One for each label in the order of dataset.json, repeated where they do not suffice."""

REFERENCE_STYLE: dict[str, Any] = {"linewidths": 4.5, "alpha": 0.45}
PREDICTION_STYLE: dict[str, Any] = {"linewidths": 1.3}


@dataclass(frozen=True)
class Plane:
    """A slice of a volume (z, y, x): ``axis`` 0 is axial, 1 is coronal; ``index`` counts voxels from 0."""

    axis: int
    index: int

    @property
    def name(self) -> str:
        return ("axial", "coronal")[self.axis]

    def cut(self, volume: np.ndarray) -> np.ndarray:
        """The slice as shown, first row at the top: axial (y, x) with the front up, coronal (z, x) with the head up."""
        return volume[self.index] if self.axis == 0 else volume[::-1][:, self.index]

    def extent_mm(self, shape: Sequence[int], spacing_mm: Sequence[float]) -> tuple[float, float, float, float]:
        """Left, right, bottom and top edge of the slice in mm, from its upper left corner, downwards positive."""
        return 0.0, shape[2] * spacing_mm[2], shape[1 - self.axis] * spacing_mm[1 - self.axis], 0.0


def largest_cross_sections(shape: Sequence[int], segmentations: Sequence[np.ndarray]) -> tuple[Plane, Plane]:
    """The axial and the coronal plane where the first of the masks that is not empty has most voxels.

    The masks are (z, y, x). All empty or none given: the middle planes.
    """
    mask = next((mask for mask in segmentations if mask.any()), None)
    if mask is None:
        return Plane(0, shape[0] // 2), Plane(1, shape[1] // 2)
    return Plane(0, int(mask.sum((1, 2)).argmax())), Plane(1, int(mask.sum((0, 2)).argmax()))


def case_picture(
    raw_hu: np.ndarray,
    view_hu: np.ndarray,
    *,
    spacing_mm: tuple[float, float, float],
    reference: np.ndarray | None = None,
    prediction: np.ndarray | None = None,
    labels: Mapping[str, int | Sequence[int]],
    title: str,
    path: str | Path,
    hu_window: tuple[float, float] = (-160.0, 240.0),
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
        labels: name -> value, or values of a region, as in dataset.json; background (0) is not drawn.
        title: headline of the picture.
        path: file to write.
        hu_window: HU shown as black and as white.

    Returns:
        The path.

    Raises:
        UserError: shapes differ, the HU window is empty, or matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("pictures need matplotlib; run: pip install 'fvae_nnunet[picture]'") from error

    maps = {name: array for name, array in (("reference", reference), ("prediction", prediction)) if array is not None}
    for name, array in {"view_hu": view_hu, **maps}.items():
        if array.shape != raw_hu.shape:
            raise UserError(f"{name} has shape {array.shape}, raw_hu {raw_hu.shape}; a picture needs equal shapes")
    if hu_window[0] >= hu_window[1]:
        raise UserError(f"hu_window must rise from black to white, got {hu_window}")
    values = {name: np.atleast_1d(value) for name, value in labels.items() if np.any(np.atleast_1d(value))}
    colours = {name: LABEL_COLOURS[number % len(LABEL_COLOURS)] for number, name in enumerate(values)}
    anything = np.concatenate([[], *values.values()])
    wanted = [list(values.values())[-1], anything] if values else []
    planes = largest_cross_sections(raw_hu.shape, [np.isin(array, some) for some in wanted for array in maps.values()])
    cuts = [{name: plane.cut(array) for name, array in maps.items()} for plane in planes]
    drawn = {
        name: colours[name]
        for name, some in values.items()
        if any(np.isin(cut, some).any() for in_plane in cuts for cut in in_plane.values())
    }
    extents = [plane.extent_mm(raw_hu.shape, spacing_mm) for plane in planes]
    layout = _Layout(
        figure=Figure(),
        row_inches=[_Layout.WIDTH * float(np.clip(bottom / right, 0.15, 2.5)) for _, right, bottom, _ in extents],
        legend_inches=0.25 * ((len(drawn) + 1) // 2 + 1),
    )
    FigureCanvasAgg(layout.figure)
    layout.figure.suptitle(title, fontsize=14, y=layout.title_y, va="top")
    difference_hu = view_hu.astype(np.float32) - raw_hu
    shown = (
        ("raw", raw_hu, "gray", hu_window),
        ("view (reconstruction)", view_hu, "gray", hu_window),
        ("view minus raw", difference_hu, "RdBu_r", (-DIFFERENCE_HU, DIFFERENCE_HU)),
        (" and ".join(maps) or "no segmentation", raw_hu, "gray", hu_window),
    )
    for row, (plane, extent, in_plane) in enumerate(zip(planes, extents, cuts, strict=True)):
        panels = [layout.panel(row, column) for column in range(len(shown))]
        for panel, (heading, volume, colour_map, (low, high)) in zip(panels, shown, strict=True):
            panel.imshow(plane.cut(volume), cmap=colour_map, vmin=low, vmax=high, extent=extent)
            panel.set(xticks=[], yticks=[], title=heading if row == 0 else "")
        panels[0].set_ylabel(f"{plane.name}, slice {plane.index + 1} of {raw_hu.shape[plane.axis]}", fontsize=11)
        for side, at in (("R", 0.03), ("L", 0.97)):
            panels[0].text(at, 0.5, side, color="white", ha="center", va="center", transform=panels[0].transAxes)
        for label, colour in drawn.items():
            for name, cut in in_plane.items():
                _outline(panels[-1], np.isin(cut, values[label]), extent, colour, is_reference=name == "reference")
        labelled = np.logical_or.reduce([np.isin(cut, anything) for cut in in_plane.values()] or [np.zeros(1, bool)])
        if labelled.any():
            _zoom(panels, labelled, extent)
    bars: dict[str, Any] = {"orientation": "horizontal"}
    layout.figure.colorbar(panels[0].images[0], cax=layout.bar(0, columns=2), label="HU", **bars)
    layout.figure.colorbar(panels[2].images[0], cax=layout.bar(2), label="difference in HU", extend="both", **bars)
    _legend(layout.legend(3), drawn, list(maps))
    with atomic_write(Path(path)) as temporary:
        layout.figure.savefig(temporary, format="png", dpi=110)
    return Path(path)


class _Layout:
    """Places for panels, colour bars and legend; all lengths in inches, so that a panel's size is that of its slice."""

    WIDTH, GAP, LEFT, TOP, BAR, BAR_LABEL, COLUMNS = 3.6, 0.12, 0.3, 0.75, 0.16, 0.5, 4

    def __init__(self, *, figure: Figure, row_inches: Sequence[float], legend_inches: float) -> None:
        self.figure, self.row_inches, self.legend_inches = figure, row_inches, legend_inches
        self.width = self.LEFT + self.COLUMNS * (self.WIDTH + self.GAP)
        self.below = self.TOP + sum(row_inches) + self.GAP * len(row_inches)
        self.height = self.below + max(self.BAR + self.BAR_LABEL, legend_inches)
        figure.set_size_inches(self.width, self.height)

    @property
    def title_y(self) -> float:
        return 1 - 0.2 / self.height

    def panel(self, row: int, column: int) -> Axes:
        from_top = self.TOP + sum(self.row_inches[:row]) + self.GAP * row
        return self._axes(column, from_top, self.row_inches[row])

    def bar(self, column: int, *, columns: int = 1) -> Axes:
        return self._axes(column, self.below, self.BAR, columns=columns)

    def legend(self, column: int) -> Axes:
        return self._axes(column, self.below, self.legend_inches)

    def _axes(self, column: int, from_top: float, height: float, *, columns: int = 1) -> Axes:
        left = self.LEFT + column * (self.WIDTH + self.GAP)
        width = columns * self.WIDTH + (columns - 1) * self.GAP
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


def _zoom(panels: Sequence[Axes], mask: np.ndarray, extent_mm: Sequence[float]) -> None:
    """Show the mask's surroundings in the last panel, in the panel's own proportions, framed in the first."""
    from matplotlib.patches import Rectangle

    _, right, bottom, _ = extent_mm
    step = np.array([bottom / mask.shape[0], right / mask.shape[1]])
    inside = np.argwhere(mask) * step
    low, high = inside.min(0) - MARGIN_MM, inside.max(0) + step + MARGIN_MM
    share = min(1.0, float(((high - low) / (bottom, right)).max()))
    size = share * np.array([bottom, right])
    corner = np.clip((low + high - size) / 2, 0, (bottom, right) - size)
    panels[-1].set(xlim=(corner[1], corner[1] + size[1]), ylim=(corner[0] + size[0], corner[0]))
    panels[0].add_patch(Rectangle((corner[1], corner[0]), size[1], size[0], fill=False, ec="white", lw=0.8, ls=":"))


def _legend(panel: Axes, colours: Mapping[str, str], maps: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    panel.set_axis_off()
    styles = {"reference": (REFERENCE_STYLE, "0.3"), "prediction": (PREDICTION_STYLE, "0.1")}
    lines = [Line2D([], [], color=colour, linewidth=2, label=name) for name, colour in colours.items()]
    for name in maps:
        style, grey = styles[name]
        lines.append(
            Line2D([], [], color=grey, linewidth=style["linewidths"], alpha=style.get("alpha", 1.0), label=name)
        )
    if lines:
        panel.legend(handles=lines, loc="upper center", ncols=2, frameon=False, fontsize=10, borderaxespad=0.2)
