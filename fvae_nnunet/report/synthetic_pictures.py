"""Pictures of synthetic lesions: before, after, and with the outline of the new lesion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fvae_nnunet.ct.files import read_upright
from fvae_nnunet.ct.lesions import largest_lesion, numbered_lesions
from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.each_case import OnProgress, no_progress, run_each
from fvae_nnunet.nnunet.synthetic_folder import SyntheticCase
from fvae_nnunet.numbers_as_text import number
from fvae_nnunet.pictures.colours import ORANGE
from fvae_nnunet.pictures.hu_windows import hu_window_around
from fvae_nnunet.pictures.marks import mark_panel, write_on
from fvae_nnunet.pictures.outlines import Outline
from fvae_nnunet.pictures.panels import draw_frame, show_slice, zoom
from fvae_nnunet.pictures.planes import Extent, Plane, Sides, frame_around, largest_cross_sections
from fvae_nnunet.report.blocks import Figure, Picture
from fvae_nnunet.report.case_pictures import DPI, MOST_BYTES, SHEET, jpeg_within
from fvae_nnunet.report.synthetic_cases import SyntheticSet, largest_diameter_mm
from fvae_nnunet.short_names import short_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LESIONS_OF_A_SHEET = 6
SIDE_BY_SIDE = 2
PANEL_INCHES = 1.5
LESION_OUTLINE = Outline(ORANGE, 1.2)
FONT_SIZE = 7

MARGIN_MM = 20.0
"""Margin around the lesion in the close-ups."""

MOST_BYTES_OF_GALLERY = 1_200_000
"""Maximum size of all sheets of a report, besides the pictures of cases."""


@dataclass(frozen=True)
class _Entry:
    """The files from which a lesion is drawn; ``lesion_values`` is empty without lesions."""

    heading: str
    before: Path
    label_before: Path
    after: Path
    label_after: Path
    lesion_values: tuple[int, ...]
    is_replaced: bool


@dataclass(frozen=True)
class _Sheet:
    entries: tuple[_Entry, ...]
    most_bytes: int


@dataclass(frozen=True)
class _Cut:
    """The axial slice of an entry and the frame of its close-up."""

    before: np.ndarray
    after: np.ndarray
    lesion: np.ndarray
    extent_mm: Extent
    frame_mm: Extent
    sides: Sides
    hu_window: tuple[float, float]
    name: str


def choose_for_gallery(cases: Sequence[SyntheticCase], number: int) -> list[SyntheticCase]:
    """Choose up to ``number`` cases, evenly spaced in their order by size, smallest first."""
    order = sorted(cases, key=lambda case: (largest_diameter_mm(case), case.name))
    if number < len(order):
        order = [order[round(place)] for place in np.linspace(0, len(order) - 1, number)]
    return order


def draw_gallery(
    sets: Sequence[SyntheticSet],
    number: int,
    *,
    processes: int = 0,
    on_sheet: OnProgress = no_progress,
) -> list[list[Figure]]:
    """Draw sheets of pictures of the cases of each folder (``SyntheticSet.shown``).

    Args:
        sets: the folders.
        number: number of cases to draw from each, see ``choose_for_gallery``.
        processes, on_sheet: see `each_case.run_each`.

    Raises:
        UserError: an image cannot be read, or does not have the shape of its source.
    """
    chosen = [choose_for_gallery(of.shown, number) for of in sets]
    parts = [
        (at, cases[start : start + LESIONS_OF_A_SHEET])
        for at, cases in enumerate(chosen)
        for start in range(0, len(cases), LESIONS_OF_A_SHEET)
    ]
    most_bytes = min(MOST_BYTES, MOST_BYTES_OF_GALLERY // max(1, len(parts)))
    sheets = [_Sheet(tuple(_entry(sets[at], case) for case in cases), most_bytes) for at, cases in parts]
    figures: list[list[Figure]] = [[] for _ in sets]
    for (at, cases), jpeg in zip(parts, run_each(_draw, sheets, processes, on_sheet), strict=True):
        names = ", ".join(f"{case.name} (from {case.record['source_case']})" for case in cases)
        figures[at].append(Figure(Picture(jpeg), names, f"Before and after, with outline: {names}"))
    return figures


def _entry(of: SyntheticSet, case: SyntheticCase) -> _Entry:
    source = of.sources[case.record["source_case"]]
    lesions = len(case.record["lesions"])
    value = (case.record["label"] or {}).get("value")
    (name,) = short_names([case.name]).values()
    size = f", {number(largest_diameter_mm(case), 'mm')} mm" if lesions else ""
    return _Entry(
        name + size + (f" (1 of {lesions})" if lesions > 1 else ""),
        source.image,
        source.label,
        case.images[of.channel],
        case.label,
        () if value is None else (value,),
        any(lesion.get("replaces") for lesion in case.record["lesions"]),
    )


def _draw(sheet: _Sheet) -> bytes:
    import matplotlib.style
    from matplotlib.figure import Figure as Canvas

    columns = min(SIDE_BY_SIDE, len(sheet.entries))
    rows = -(-len(sheet.entries) // columns)
    with matplotlib.style.context([SHEET, {"text.parse_math": False}]):
        size = (columns * (4 * PANEL_INCHES + 0.3), rows * (PANEL_INCHES + 0.32))
        figure = Canvas(figsize=size)
        grid = figure.add_gridspec(
            rows, columns, left=0.005, right=0.995, bottom=0.01, top=1 - 0.26 / size[1], wspace=0.04, hspace=0.2
        )
        for at, entry in enumerate(sheet.entries):
            panels = grid[divmod(at, columns)].subgridspec(1, 4, wspace=0.04).subplots(squeeze=False)[0]
            _draw_entry(panels, _cut(entry), entry.heading)
        buffer = BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI)
    return jpeg_within(buffer, sheet.most_bytes)


def _draw_entry(panels: Sequence[Axes], cut: _Cut, heading: str) -> None:
    shown = (cut.before, cut.before, cut.after, cut.after)
    for place, (panel, image, name) in enumerate(
        zip(panels, shown, (cut.name, "before", "after", "mask"), strict=True)
    ):
        show_slice(panel, image, cut.hu_window, cut.extent_mm)
        if place:
            zoom(panel, cut.frame_mm)
        write_on(panel, 0.03, 0.97, name, font_size=FONT_SIZE, ha="left", va="top")
        mark_panel(panel, cut.sides, font_size=FONT_SIZE)
    draw_frame(panels[0], cut.frame_mm)
    panels[0].set_title(heading, fontsize=8.5, loc="left", pad=3)
    LESION_OUTLINE.draw(panels[3], cut.lesion, cut.extent_mm)


def _cut(entry: _Entry) -> _Cut:
    """The axial slice with the largest cross-section of the largest new lesion, or the middle one without lesions."""
    before_hu, spacing_mm = read_upright(entry.before)
    after_hu = read_upright(entry.after)[0]
    labels = [np.isin(read_upright(path)[0], entry.lesion_values) for path in (entry.label_before, entry.label_after)]
    for path, array in ((entry.after, after_hu), (entry.label_before, labels[0]), (entry.label_after, labels[1])):
        if array.shape != before_hu.shape:
            raise UserError(
                f"{path} has shape {array.shape} and {entry.before} {before_hu.shape} (z, y, x); a synthetic case must "
                "have the geometry of its source: run fvae-synthesize again"
            )
    lesion = _replaced_lesion(*labels) if entry.is_replaced else largest_lesion(labels[1] & ~labels[0])
    plane: Plane = largest_cross_sections(before_hu.shape, [lesion], axes=(0,))[0]
    extent_mm = plane.extent_mm(before_hu.shape, spacing_mm)
    return _Cut(
        plane.cut(before_hu),
        plane.cut(after_hu),
        plane.cut(lesion),
        extent_mm,
        frame_around(plane.cut(lesion), extent_mm, MARGIN_MM),
        plane.sides,
        hu_window_around(before_hu, lesion, spacing_mm),
        f"slice {plane.index + 1}/{before_hu.shape[0]}",
    )


def _replaced_lesion(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The largest lesion that was grown or shrunk: it touches voxels where the masks differ."""
    from scipy import ndimage

    numbered, _ = numbered_lesions(after)
    touched = numbered[ndimage.binary_dilation(before != after, np.ones((3, 3, 3)))]
    return largest_lesion(after & np.isin(numbered, touched))
