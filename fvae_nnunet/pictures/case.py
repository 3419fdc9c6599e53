"""One case in one picture: raw image, its views, their differences, and the segmentations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fvae_nnunet.files.recorded import atomic_write
from fvae_nnunet.pictures.layout import Layout
from fvae_nnunet.pictures.panels import (
    Column,
    Labels,
    any_label,
    check_shapes_and_window,
    differences,
    drawn_values,
    figure_of,
)
from fvae_nnunet.pictures.planes import SOFT_TISSUE_HU_WINDOW, hu_window_around, largest_cross_sections, largest_lesion

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARGIN_MM = 15.0
"""Room around the labels in the close-up of the segmentations."""

LESION_MARGIN_MM = 25.0
"""Room around the lesion in the close-ups that compare models."""


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
        UserError: shapes differ, or the HU window is empty.
    """
    maps = {name: array for name, array in (("reference", reference), ("prediction", prediction)) if array is not None}
    check_shapes_and_window(raw_hu, {"view_hu": view_hu, **maps}, hu_window)
    values = drawn_values(labels)
    anything = np.concatenate([[], *values.values()])
    wanted = [list(values.values())[-1], anything] if values else []
    planes = largest_cross_sections(raw_hu.shape, [np.isin(array, some) for some in wanted for array in maps.values()])
    raw, view = ([plane.cut(volume) for plane in planes] for volume in (raw_hu, view_hu))
    cuts = {name: [plane.cut(array) for plane in planes] for name, array in maps.items()}
    columns = [
        Column("raw", raw),
        Column("view (reconstruction)", view),
        Column("view minus raw", differences(raw, view), is_difference=True),
        Column(" and ".join(maps) or "no segmentation", raw, cuts, is_close_up=True, is_segmentation=True),
    ]
    figure = figure_of(
        columns, planes, raw_hu.shape, spacing_mm,
        values=values, close_up=any_label(cuts.values(), anything), margin_mm=MARGIN_MM, title=title,
        hu_window=hu_window, layout=Layout(len(columns)),
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
        UserError: shapes differ.
    """
    check_shapes_and_window(raw_hu, {"reference": reference, **views, **predictions}, SOFT_TISSUE_HU_WINDOW)
    values = drawn_values(labels)
    maps = [reference, *predictions.values()]
    lesions = [np.isin(array, values[lesion]) for array in maps]
    target = largest_lesion(next((mask for mask in lesions if mask.any()), lesions[0]))
    anything = np.isin(reference, np.concatenate(list(values.values())))
    planes = largest_cross_sections(raw_hu.shape, [target, anything], axes=(0, 1, 2))
    raw = [plane.cut(raw_hu) for plane in planes]
    of_reference = [plane.cut(reference) for plane in planes]
    columns = [Column("raw image", raw), Column("its framed part", raw, is_close_up=True)]
    for name, volume in views.items():
        view = [plane.cut(volume) for plane in planes]
        columns.append(Column(name, view, is_close_up=True))
        columns.append(Column(f"{name}\nminus raw", differences(raw, view), is_difference=True, is_close_up=True))
    for name, array in predictions.items():
        maps_of_model = {"reference": of_reference, "prediction": [plane.cut(array) for plane in planes]}
        heading = f"{name}\n{remarks[name]}" if name in remarks else name
        columns.append(Column(heading, raw, maps_of_model, is_close_up=True, is_segmentation=True))
    if not predictions:
        columns.append(Column("reference", raw, {"reference": of_reference}, is_close_up=True, is_segmentation=True))
    cuts = [[plane.cut(array) for plane in planes] for array in maps]
    return figure_of(
        columns, planes, raw_hu.shape, spacing_mm,
        values=values, close_up=any_label(cuts, values[lesion]), margin_mm=LESION_MARGIN_MM, title="",
        hu_window=hu_window_around(raw_hu, target, spacing_mm), layout=Layout.for_page(len(columns)),
    )  # fmt: skip
