"""Score a single segmentation from files or arrays."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fvae_nnunet.ct.files import read_volume
from fvae_nnunet.ct.geometry import Geometry, check_same_place
from fvae_nnunet.ct.volume import as_array
from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.case_files import unknown_labels
from fvae_nnunet.evaluation.segmentation.scoring import evaluate_case
from fvae_nnunet.nnunet.labels import Label, LabelScheme, dataset_json_near

if TYPE_CHECKING:
    import torch

    LabelMap = np.ndarray | torch.Tensor | str | os.PathLike[str]


def score(
    reference: LabelMap,
    prediction: LabelMap,
    *,
    tolerance_mm: float | Sequence[float] = (2.0,),
    labels: Mapping[str, int | Sequence[int]] | None = None,
    spacing_mm: Sequence[float] | None = None,
) -> dict[str, dict[str, float]]:
    """DSC, NSD and HD95 of a predicted label map, as computed by ``fvae-evaluate``.

    Args:
        reference, prediction: label maps (z, y, x), or their files.
        tolerance_mm: one or several tolerances of the NSD.
        labels: name -> value, or values of a region; None: those of nnU-Net's dataset.json beside the files, else all
            values except 0 in either map, each as its own name.
        spacing_mm: voxel size (z, y, x) of arrays; default for files: that of the reference.

    Returns:
        For each name ``Dice``, ``NSD_<tolerance>mm``, ``HD95_mm`` and more, see ``scoring.evaluate_case``. NaN if
        neither map holds the label.

    Raises:
        UserError: the two differ in geometry, hold labels that are not in dataset.json, or cannot be read, or arrays
            are given without spacing.
    """
    paths = [Path(one) for one in (reference, prediction) if isinstance(one, str | os.PathLike)]
    (expected, geometry), (found, other) = (_read(one) for one in (reference, prediction))
    if geometry is not None and other is not None:
        check_same_place((str(reference), expected.shape, geometry), (str(prediction), found.shape, other))
    place = geometry or other
    if spacing_mm is None:
        if place is None:
            raise UserError("arrays have no spacing; give spacing_mm (z, y, x)")
        spacing_mm = place.spacing_mm[::-1]
    names: dict[Label, str]
    ignored = None
    scheme = None if labels is not None or not paths else dataset_json_near(paths[0].parent, paths[-1].parent)
    if labels is not None:
        names = {int(of) if np.ndim(of) == 0 else tuple(map(int, of)): name for name, of in labels.items()}  # type: ignore[arg-type]
        if len(names) < len(labels):
            raise UserError(f"two labels have the same value: {dict(labels)}")
    elif scheme is not None:
        known = LabelScheme.read(scheme)
        for what, given, array in (("reference", reference, expected), ("prediction", prediction, found)):
            called = given if isinstance(given, str | os.PathLike) else what
            for problem in unknown_labels(Path(called), array, known.known_labels):
                raise UserError(problem)
        names, ignored = known.names, known.ignore_label
    else:
        names = {int(value): str(int(value)) for value in np.union1d(expected, found) if value}
    tolerances_mm = [float(tolerance) for tolerance in np.atleast_1d(tolerance_mm)]
    scores = evaluate_case(
        expected,
        found,
        spacing_mm=spacing_mm,
        labels=list(names),
        tolerances_mm=tolerances_mm,
        ignore_label=ignored,
    )
    return {names[label]: of_label for label, of_label in scores.items()}


def _read(label_map: LabelMap) -> tuple[np.ndarray, Geometry | None]:
    if isinstance(label_map, str | os.PathLike):
        return read_volume(Path(label_map))
    return as_array(label_map), None
