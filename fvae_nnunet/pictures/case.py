"""Picture of one case: raw image, views, their differences, and segmentations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fvae_nnunet.ct.lesions import false_positives, largest_lesion, missed_lesions
from fvae_nnunet.files.recorded import atomic_write
from fvae_nnunet.pictures.hu_windows import hu_window_around
from fvae_nnunet.pictures.layout import Layout
from fvae_nnunet.pictures.panels import (
    PREDICTION,
    REFERENCE,
    Column,
    Labels,
    any_label,
    check_shapes,
    differences,
    drawn_values,
    figure_of,
)
from fvae_nnunet.pictures.planes import Plane, largest_cross_sections

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARGIN_MM = 15.0
"""Margin around the labels in the close-up of the segmentations."""

LESION_MARGIN_MM = 25.0
"""Margin around the lesion in the close-ups that compare models."""


def case_picture(
    raw_hu: np.ndarray,
    view_hu: np.ndarray,
    *,
    spacing_mm: tuple[float, float, float],
    reference: np.ndarray,
    prediction: np.ndarray,
    labels: Labels,
    detection_overlap: float,
    title: str,
    path: str | Path,
) -> Path:
    """Write a PNG with an axial and a coronal slice of raw image, view, difference and segmentations.

    The slices have the largest cross-section of the last of ``labels`` (in nnU-Net's tumour datasets the tumour) in the
    reference; if it is absent, in the prediction; otherwise of all labels together; otherwise they are the middle
    slices. The orientation is radiological: axial with the front up, coronal with the head up, the patient's right on
    the left. The last panel is a close-up, framed in the first one; missed lesions of the reference and false positives
    of the prediction are marked.

    Args:
        raw_hu, view_hu: volumes (z, y, x) in HU, z increasing towards the head, y towards the back, x towards the
            patient's left (as from SimpleITK's ``DICOMOrient(image, "LPS")``).
        spacing_mm: voxel size (z, y, x).
        reference, prediction: label maps (z, y, x).
        labels: labels to draw.
        detection_overlap: fraction of a lesion's voxels that must be predicted; otherwise it is missed.
        title: headline of the picture.
        path: file to write.

    Returns:
        The path. The HU window is that of `hu_window_around` for the largest lesion.

    Raises:
        UserError: shapes differ.
    """
    maps = {REFERENCE: reference, PREDICTION: prediction}
    check_shapes(raw_hu, {"view_hu": view_hu, **maps})
    values = drawn_values(labels)
    lesion, anything = list(values.values())[-1], np.concatenate(list(values.values()))
    masks = [np.isin(of, some) for some in (lesion, anything) for of in (reference, prediction)]
    planes = largest_cross_sections(raw_hu.shape, masks)
    raw, view = ([plane.cut(volume) for plane in planes] for volume in (raw_hu, view_hu))
    cuts = {name: [plane.cut(array) for plane in planes] for name, array in maps.items()}
    columns = [
        Column("raw", raw),
        Column("view (reconstruction)", view),
        Column("view minus raw", differences(raw, view), is_difference=True),
        Column(
            "reference and prediction", raw, cuts, _notes(reference, prediction, lesion, detection_overlap, planes),
            is_close_up=True, is_segmentation=True,
        ),
    ]  # fmt: skip
    figure = figure_of(
        columns, planes, raw_hu.shape, spacing_mm,
        values=values, close_up=any_label(cuts.values(), anything), margin_mm=MARGIN_MM, title=title,
        hu_window=hu_window_around(raw_hu, _target([reference, prediction], lesion), spacing_mm),
        layout=Layout(len(columns)),
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
    detection_overlap: float,
    remarks: Mapping[str, str],
) -> Figure:
    """Draw axial, coronal and sagittal slices through a lesion: raw image, all views, and segmentations of all models.

    The slices are the largest cross-sections of the largest lesion in the reference; if it has none, in the first
    prediction that has one; otherwise of all labels together; otherwise the middle slices. Orientation as in
    `case_picture`; sagittal with the front on the left. All panels but the first are close-ups of the lesion, framed in
    the first one; a view and its difference from the raw image are side by side. Missed lesions and false positives of
    the models are marked.

    Args:
        raw_hu: volume (z, y, x) in HU, as for `case_picture`.
        views: name -> volume (z, y, x) in HU; may be empty.
        spacing_mm: voxel size (z, y, x).
        reference: label map (z, y, x).
        predictions: model -> label map (z, y, x); empty: only the reference is drawn.
        labels: labels to draw.
        lesion: name of the label through which the slices go.
        detection_overlap: as for `case_picture`.
        remarks: model -> text below its name.

    Returns:
        The figure, with an Agg canvas; its HU window is that of `hu_window_around`.

    Raises:
        UserError: shapes differ.
    """
    check_shapes(raw_hu, {"reference": reference, **views, **predictions})
    values = drawn_values(labels)
    # the last label is drawn without dashes
    values[lesion] = values.pop(lesion)
    maps = [reference, *predictions.values()]
    target = _target(maps, values[lesion])
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
        maps_of_model = {REFERENCE: of_reference, PREDICTION: [plane.cut(array) for plane in planes]}
        heading = f"{name}\n{remarks[name]}" if name in remarks else name
        notes = _notes(reference, array, values[lesion], detection_overlap, planes)
        columns.append(Column(heading, raw, maps_of_model, notes, is_close_up=True, is_segmentation=True))
    if not predictions:
        columns.append(Column("reference", raw, {REFERENCE: of_reference}, is_close_up=True, is_segmentation=True))
    cuts = [[plane.cut(array) for plane in planes] for array in maps]
    return figure_of(
        columns, planes, raw_hu.shape, spacing_mm,
        values=values, close_up=any_label(cuts, values[lesion]), margin_mm=LESION_MARGIN_MM, title="",
        hu_window=hu_window_around(raw_hu, target, spacing_mm), layout=Layout.for_page(len(columns)),
    )  # fmt: skip


def _target(maps: list[np.ndarray], values: np.ndarray) -> np.ndarray:
    """The largest lesion of the first label map that has one; an empty mask if none has."""
    lesions = [np.isin(array, values) for array in maps]
    return largest_lesion(next((mask for mask in lesions if mask.any()), lesions[0]))


def _notes(
    reference: np.ndarray,
    prediction: np.ndarray,
    values: np.ndarray,
    detection_overlap: float,
    planes: tuple[Plane, ...],
) -> dict[str, list[np.ndarray]]:
    """Notes on single lesions, with the slices of these lesions."""
    true, found = np.isin(reference, values), np.isin(prediction, values)
    named = {
        "missed": missed_lesions(true, found, detection_overlap),
        "false positive": false_positives(true, found),
    }
    return {text: [plane.cut(lesions) for plane in planes] for text, lesions in named.items()}
