"""Picture of the effects of a view on one case: raw image and view side by side, a boundary, and the noise.

The view is compared with the plain filter that removes as much noise (``control:gaussian`` with the strength found by
``reconstruction.noise_matching``): its effect on the boundary is that of any smoothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fvae_nnunet.ct.boxes import bounding_box
from fvae_nnunet.ct.hu_windows import HUWindow
from fvae_nnunet.ct.lesions import largest_lesion
from fvae_nnunet.ct.noise import homogeneous_region
from fvae_nnunet.ct.noise_spectrum import flat_regions, noise_spectrum
from fvae_nnunet.evaluation.reconstruction.matched_filter import matched_filter
from fvae_nnunet.evaluation.reconstruction.profile import BAND_MM, Line, line_across
from fvae_nnunet.files.recorded import atomic_write
from fvae_nnunet.nnunet.lesion_labels import LESION_NAME
from fvae_nnunet.pictures.colours import GREEN, LABEL_COLOURS, VERMILION, YELLOW, colours_of
from fvae_nnunet.pictures.hu_windows import hu_window_around
from fvae_nnunet.pictures.log_axes import label_plainly
from fvae_nnunet.pictures.marks import mark_panel, write_on
from fvae_nnunet.pictures.outlines import Outline
from fvae_nnunet.pictures.panels import (
    DIFFERENCE_HU,
    Labels,
    check_shapes,
    differences,
    draw_frame,
    drawn_values,
    show_difference,
    show_slice,
    zoom,
)
from fvae_nnunet.pictures.planes import Extent, Plane, frame_around, largest_cross_sections

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

WIDTH_INCHES, PANEL_INCHES = 14.0, 3.3
STRIP_SLICES = 7
MARGIN_MM = 20.0
"""Margin around the lesion in close-ups, or around the line if there is no lesion."""

NEAR_SLICES = 8
"""Number of slices on either side of the shown one in which noise is measured and the filter is matched."""

FLATTER_PART = 0.5
"""Fraction of the soft tissue, the flattest, in which the noise power spectrum is measured."""

NO_FILTER = "no Gaussian filter leaves as much noise"

RAW_STYLE: dict[str, Any] = {"color": "black", "linewidth": 1.4}
VIEW_STYLE: dict[str, Any] = {"color": VERMILION, "linewidth": 1.6}
FILTER_STYLE: dict[str, Any] = {"color": GREEN, "linewidth": 1.4, "linestyle": (0, (4, 1.5))}


@dataclass(frozen=True)
class _Shown:
    """The parts of a case to draw; slices (y, x), volumes (z, y, x).

    ``near`` holds the slices around ``plane`` of raw volume, view and, if there is one, the filtered raw volume.
    """

    volumes: dict[str, np.ndarray]
    near: dict[str, np.ndarray]
    place: int
    plane: Plane
    coronal: Plane
    lesion: np.ndarray
    spacing_mm: tuple[float, float, float]
    hu_window: HUWindow
    line: Line
    frames: dict[Plane, Extent]

    def extent_mm(self, plane: Plane) -> Extent:
        return plane.extent_mm(self.lesion.shape, self.spacing_mm)

    def proportion(self, plane: Plane) -> float:
        """Height by width."""
        _, right, bottom, _ = self.extent_mm(plane)
        return bottom / right


def reconstruction_picture(
    raw_hu: np.ndarray,
    view_hu: np.ndarray,
    *,
    spacing_mm: tuple[float, float, float],
    reference: np.ndarray | None,
    labels: Labels,
    title: str,
    path: Path,
) -> None:
    """Write the PNG of a case.

    From top to bottom: an axial and a coronal slice through the largest lesion (otherwise the middle slices) with the
    outlines of labels, and close-ups of raw image, view and difference; axial slices through the lesion, raw above
    view; the HU along a line across the lesion's boundary (`profile.line_across`), the histogram of HU in the grey
    range, and the noise power spectrum in flat soft tissue, each for raw image and view. The line and the spectrum also
    show a plain filter that leaves as much noise as the view, if the view removes noise.

    Args:
        raw_hu, view_hu: volumes (z, y, x) in HU, upright as read by ``ct.files.read_upright``.
        spacing_mm: voxel size (z, y, x).
        reference: label map (z, y, x), or None.
        labels: labels to draw; the lesion is the first one named as such (`LESION_NAME`), else the last one.
        title: headline.
        path: file to write.

    Raises:
        UserError: shapes differ.
    """
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    if reference is None:
        reference = np.zeros(raw_hu.shape, np.uint8)
    check_shapes(raw_hu, {"view_hu": view_hu, "reference": reference})
    values = drawn_values(labels)
    shown = _choose(raw_hu, view_hu, reference, values, spacing_mm)
    outlines = {name: Outline(colour) for name, colour in colours_of(values, LABEL_COLOURS).items()}
    with matplotlib.rc_context({"text.parse_math": False}):
        rows = [PANEL_INCHES * float(np.clip(shown.proportion(of), 0.3, 1.6)) for of in (shown.plane, shown.coronal)]
        heights = (sum(rows) + 2.0, 4.3, 3.7)
        figure = Canvas(figsize=(WIDTH_INCHES, sum(heights)), layout="constrained")
        slices, strip, plots = figure.subfigures(3, 1, height_ratios=heights, squeeze=False)[:, 0]
        slices.suptitle(title, fontsize=13)
        _draw_slices(slices, rows, shown, reference, values, outlines)
        _draw_strip(strip, shown)
        for panel, draw in zip(plots.subplots(1, 3), (_draw_profile, _draw_histogram, _draw_spectrum), strict=True):
            draw(panel, shown)
            panel.grid(alpha=0.3)
            if panel.get_legend_handles_labels()[0]:
                panel.legend(fontsize=9, frameon=False)
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format="png", dpi=110)


def _choose(
    raw_hu: np.ndarray,
    view_hu: np.ndarray,
    reference: np.ndarray,
    values: dict[str, np.ndarray],
    spacing_mm: tuple[float, float, float],
) -> _Shown:
    named = next((name for name in values if LESION_NAME.search(name)), next(reversed(values), None))
    lesion = largest_lesion(np.isin(reference, values[named]) if named is not None else reference > 0)
    anything = np.isin(reference, np.concatenate([[], *values.values()]))
    plane, coronal = largest_cross_sections(raw_hu.shape, [lesion, anything])
    hu_window = hu_window_around(raw_hu, lesion, spacing_mm)
    line = line_across(plane.cut(raw_hu), plane.cut(lesion), spacing_mm[1:], hu_window)
    first = max(0, plane.index - NEAR_SLICES)
    volumes = {"raw": raw_hu, "view": view_hu}
    near = {name: volume[first : plane.index + NEAR_SLICES + 1] for name, volume in volumes.items()}
    filtered = matched_filter(near["raw"], near["view"])
    shown_place = lesion if lesion.any() else _around(line, plane, raw_hu.shape, spacing_mm)
    frames = {
        of: frame_around(of.cut(shown_place), of.extent_mm(raw_hu.shape, spacing_mm), MARGIN_MM)
        for of in (plane, coronal)
    }
    return _Shown(
        volumes, near | ({} if filtered is None else {"filter": filtered}),
        plane.index - first, plane, coronal, lesion, spacing_mm, hu_window, line, frames,
    )  # fmt: skip


def _around(line: Line, plane: Plane, shape: tuple[int, ...], spacing_mm: Sequence[float]) -> np.ndarray:
    """The voxel in the middle of a line, as a mask."""
    mask = np.zeros(shape, bool)
    y, x = (line.centre_mm / spacing_mm[1:]).astype(int)
    mask[plane.index, y, x] = True
    return mask


def _draw_slices(
    figure: SubFigure,
    heights: Sequence[float],
    shown: _Shown,
    reference: np.ndarray,
    values: dict[str, np.ndarray],
    outlines: dict[str, Outline],
) -> None:
    rows = figure.subplots(2, 4, height_ratios=heights)
    for panels, plane in zip(rows, (shown.plane, shown.coronal), strict=True):
        extent, frame = shown.extent_mm(plane), shown.frames[plane]
        raw, view = (plane.cut(volume) for volume in shown.volumes.values())
        for panel, image in zip(panels[:3], (raw, raw, view), strict=True):
            show_slice(panel, image, shown.hu_window, extent)
        show_difference(panels[3], differences([raw], [view])[0], DIFFERENCE_HU, extent)
        for name, outline in outlines.items():
            outline.draw(panels[0], np.isin(plane.cut(reference), values[name]), extent)
        draw_frame(panels[0], frame)
        for panel in panels[1:]:
            zoom(panel, frame)
        for panel in panels:
            mark_panel(panel, plane.sides, font_size=9)
        panels[0].set_ylabel(f"{plane.name}, slice {plane.index + 1} of {shown.lesion.shape[plane.axis]}", fontsize=10)
    for panel, heading in zip(rows[0], ("whole slice", "raw", "view", "view minus raw"), strict=True):
        panel.set_title(heading, fontsize=11)
    for panel in rows[0][1:3]:
        (begin_y, end_y), (begin_x, end_x) = shown.line.ends_mm.T
        for colour, width in (("black", 2.6), (YELLOW, 1.2)):
            panel.plot([begin_x, end_x], [begin_y, end_y], color=colour, linewidth=width, scalex=False, scaley=False)
    present = [name for name, some in values.items() if np.isin(reference, some).any()]
    if present:
        rows[1][0].legend(
            handles=[outlines[name].in_legend(name) for name in present], loc="upper center",
            bbox_to_anchor=(0.5, -0.02), ncols=3, fontsize=9, frameon=False,
        )  # fmt: skip
    for panels, label, extend in ((rows[:, :3], "HU", "neither"), (rows[:, 3], "difference in HU", "both")):
        bar = figure.colorbar(
            panels.ravel()[-1].images[0],
            ax=panels,
            location="bottom",
            fraction=0.03,
            pad=0.02,
            extend=extend,
            aspect=40,
        )
        bar.set_label(label, fontsize=9)
        bar.ax.tick_params(labelsize=8)


def _draw_strip(figure: SubFigure, shown: _Shown) -> None:
    slices = len(shown.lesion)
    if shown.lesion.any():
        reach = bounding_box(shown.lesion)[0]
        first, last = reach.start, reach.stop - 1
    else:
        first, last = max(0, shown.plane.index - NEAR_SLICES), min(slices - 1, shown.plane.index + NEAR_SLICES)
    indices = np.unique(np.linspace(first, last, STRIP_SLICES).round().astype(int))
    rows = figure.subplots(2, len(indices), squeeze=False)
    for panels, (name, volume) in zip(rows, shown.volumes.items(), strict=True):
        for panel, index in zip(panels, indices, strict=True):
            plane = Plane(0, int(index))
            show_slice(panel, plane.cut(volume), shown.hu_window, shown.extent_mm(plane))
            zoom(panel, shown.frames[shown.plane])
            mark_panel(panel, plane.sides, font_size=7)
        panels[0].set_ylabel(name, fontsize=11)
    for panel, index in zip(rows[0], indices, strict=True):
        panel.set_title(f"slice {index + 1}", fontsize=9)


def _draw_profile(panel: Axes, shown: _Shown) -> None:
    for name, label, style in _series(shown):
        values_hu = shown.line.values(shown.near[name][shown.place], shown.spacing_mm[1:])
        panel.plot(shown.line.along_mm, values_hu, label=label, **style)
    panel.axvline(0, color="0.5", linewidth=0.8, linestyle=":")
    outwards = "outwards" if shown.lesion.any() else "up the slope"
    panel.set(
        xlabel=f"mm from the boundary, {outwards}",
        ylabel="HU",
        title=f"along the yellow line, mean over {BAND_MM:g} mm",
    )


def _draw_histogram(panel: Axes, shown: _Shown) -> None:
    low, high = shown.hu_window
    bins = np.linspace(low, high, 101)
    for name, label, style in _series(shown)[:2]:
        volume = shown.volumes[name]
        counts, _ = np.histogram(volume, bins)
        panel.stairs(100 * counts / volume.size, bins, label=label, **style)
    panel.set(xlabel="HU", ylabel=f"% of all voxels per {bins[1] - bins[0]:g} HU", title="HU of the whole image")


def _draw_spectrum(panel: Axes, shown: _Shown) -> None:
    panel.set(xlabel="frequency, cycles per mm", ylabel="HU² mm²", title="noise power spectrum in flat soft tissue")
    if "filter" not in shown.near:
        panel.set_title(f"noise power spectrum in flat soft tissue\n{NO_FILTER}", fontsize=10)
    regions = flat_regions(homogeneous_region(shown.near["raw"], flattest_part=FLATTER_PART))
    if not regions:
        write_on(panel, 0.5, 0.5, "no flat soft tissue near the slice", font_size=10)
        return
    for name, label, style in _series(shown):
        spectrum = noise_spectrum(shown.near[name], regions, shown.spacing_mm[1:])
        panel.plot(spectrum.frequency_per_mm, spectrum.power_hu2_mm2, label=label, **style)
    panel.set_yscale("log")
    label_plainly(panel.yaxis)
    panel.set_xlim(left=0)


def _series(shown: _Shown) -> list[tuple[str, str, dict[str, Any]]]:
    """Name, legend text and style of each plotted series."""
    series = [("raw", "raw", RAW_STYLE), ("view", "view", VIEW_STYLE)]
    return [*series, ("filter", "Gaussian, same noise left", FILTER_STYLE)] if "filter" in shown.near else series
