"""Predicted against reference segmentations: DSC and NSD for each case and label."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.label_scheme import Label, LabelScheme, find_dataset_json
from fvae_nnunet.evaluation.segmentation_summary import ScoredCase, nsd_key, summarise
from fvae_nnunet.evaluation.surface_dice import surface_dice
from fvae_nnunet.image_files import Geometry, read_volume

EMPTY_MASKS = ("nan", "flare")
"""What a label scores that neither reference nor prediction holds: NaN, left out of the mean (nnU-Net's), or 1."""

SPACING_TOLERANCE = 1e-3
"""Relative difference of spacings that counts as rounding: half a voxel over 512."""

ORIGIN_TOLERANCE_VOXELS = 0.05
"""Difference of origins that counts as rounding, in parts of the smallest edge of a voxel."""

DIRECTION_TOLERANCE = 1e-3
"""Difference of direction cosines that counts as rounding; float32 quaternions of NIfTI err by up to 7e-4."""


def evaluate_case(
    reference: np.ndarray,
    prediction: np.ndarray,
    *,
    spacing_mm: Sequence[float],
    labels: Sequence[Label],
    tolerances_mm: Sequence[float] = (2.0,),
    ignore_label: int | None = None,
    empty_masks: str = "nan",
) -> dict[Label, dict[str, float]]:
    """Score one predicted label map.

    Args:
        reference, prediction: label maps (z, y, x) of one shape.
        spacing_mm: voxel size (z, y, x).
        labels: values, or tuples of values (regions), to score.
        tolerances_mm: tolerances of the NSD, see `surface_dice`.
        ignore_label: voxels with this value in the reference are left out. For DSC they count nowhere, as in nnU-Net.
            For NSD both masks are background there: no surface lies inside, and where both masks reach the ignored
            area, its edge is a surface on which they agree. In the prediction the value is background.
        empty_masks: what a label scores in DSC, IoU and NSD that neither reference nor prediction holds outside ignored
            voxels: "nan" (nnU-Net's) or "flare" (1). A label that only one of them holds scores 0 in both policies.

    Returns:
        For each label ``Dice``, ``IoU``, ``NSD_<tolerance>mm``, and ``FP``, ``TP``, ``FN``, ``TN``, ``n_pred``,
        ``n_ref`` in voxels, as `nnunetv2.evaluation.evaluate_predictions.compute_metrics` counts them.

    Raises:
        UserError: the shapes differ or are not 3-dimensional, or an option has an impossible value.
    """
    if reference.shape != prediction.shape or reference.ndim != 3:
        raise UserError(
            f"reference and prediction must be two volumes of one shape, got {reference.shape} and {prediction.shape}"
        )
    if len(spacing_mm) != 3 or not all(np.isfinite(edge) and edge > 0 for edge in spacing_mm):
        raise UserError(f"the spacing must be three positive numbers in mm (z, y, x), got {tuple(spacing_mm)}")
    _check_options(tolerances_mm, empty_masks)
    counted = None if ignore_label is None else reference != ignore_label
    n_counted = reference.size if counted is None else int(np.count_nonzero(counted))
    metrics: dict[Label, dict[str, float]] = {}
    for label in labels:
        in_reference, in_prediction = _mask(reference, label, counted), _mask(prediction, label, counted)
        n_ref, n_pred = int(np.count_nonzero(in_reference)), int(np.count_nonzero(in_prediction))
        tp = int(np.count_nonzero(in_reference & in_prediction))
        n_either = n_ref + n_pred - tp
        if n_either:
            scores = {"Dice": 2 * tp / (n_ref + n_pred), "IoU": tp / n_either}
            nsds = surface_dice(in_reference, in_prediction, spacing_mm=spacing_mm, tolerances_mm=tolerances_mm)
        else:
            both_empty = 1.0 if empty_masks == "flare" else float("nan")
            scores = {"Dice": both_empty, "IoU": both_empty}
            nsds = [both_empty] * len(tolerances_mm)
        scores |= zip(map(nsd_key, tolerances_mm), nsds, strict=True)
        counts = {"FP": n_pred - tp, "TP": tp, "FN": n_ref - tp, "TN": n_counted - n_either}
        metrics[label] = {**scores, **counts, "n_pred": n_pred, "n_ref": n_ref}
    return metrics


def evaluate_folder(
    reference_folder: Path,
    prediction_folder: Path,
    *,
    dataset_json: Path | None = None,
    tolerances_mm: Sequence[float] = (2.0,),
    empty_masks: str = "nan",
    allow_missing: bool = False,
    processes: int = 0,
    on_case: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Score every case of a folder; nothing is written.

    Args:
        reference_folder, prediction_folder: files of equal names, with the ending that dataset.json states.
        dataset_json: its path; default: beside the predictions, then above or beside the references.
        tolerances_mm, empty_masks: see `evaluate_case`.
        allow_missing: references without a prediction are counted and left out instead of being an error.
        processes: how many processes work beside this one; 0: this one does the work.
        on_case: called with the number of cases done and their total after each.

    Returns:
        The content of ``summary.json``, see `segmentation_summary`.

    Raises:
        UserError: everything that is wrong with the folders and their cases, a line for each problem: files that have
            no counterpart or cannot be read, other geometry than the reference's, labels that dataset.json lacks.
    """
    _check_options(tolerances_mm, empty_masks)
    if processes < 0:
        raise UserError(f"the number of processes must not be negative, got {processes}")
    for folder in (reference_folder, prediction_folder):
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder")
    scheme = LabelScheme.read(dataset_json or find_dataset_json(reference_folder, prediction_folder))
    references, predictions = (_cases(folder, scheme.file_ending) for folder in (reference_folder, prediction_folder))
    for folder, cases in ((reference_folder, references), (prediction_folder, predictions)):
        if not cases:
            raise UserError(f"{folder} holds no file that ends in {scheme.file_ending}, as dataset.json demands")
    missing, strangers = sorted(references - predictions), sorted(predictions - references)
    problems = []
    if missing and not allow_missing:
        problems.append(
            f"{prediction_folder} lacks {len(missing)} of {len(references)} predictions: {', '.join(missing)}; "
            "predict them, or use --allow-missing to score the others"
        )
    if strangers:
        problems.append(
            f"{prediction_folder} holds predictions that have no reference in {reference_folder}: "
            f"{', '.join(strangers)}; move them away or add their references"
        )
    tasks = [
        _Task(
            case, reference_folder / f"{case}{scheme.file_ending}", prediction_folder / f"{case}{scheme.file_ending}",
            scheme, tuple(tolerances_mm), empty_masks, check_only=bool(problems),
        )
        for case in sorted(references & predictions)
    ]  # fmt: skip
    outcomes = {}
    for done, (case, outcome) in enumerate(_run(tasks, processes), start=1):
        outcomes[case] = outcome
        if on_case is not None:
            on_case(done, len(tasks))
    problems += [f"{task.case}: {problem}" for task in tasks for problem in outcomes[task.case].problems]
    if problems:
        raise UserError("nothing was scored:\n  " + "\n  ".join(problems))
    return summarise(
        [ScoredCase(task.case, task.reference, task.prediction, outcomes[task.case].metrics) for task in tasks],
        names=scheme.names,
        missing=missing,
        tolerances_mm=tolerances_mm,
        empty_masks=empty_masks,
    )


def _check_options(tolerances_mm: Sequence[float], empty_masks: str) -> None:
    if empty_masks not in EMPTY_MASKS:
        raise UserError(f"the policy for empty masks must be one of {', '.join(EMPTY_MASKS)}, got {empty_masks!r}")
    if not all(np.isfinite(tolerance_mm) and tolerance_mm >= 0 for tolerance_mm in tolerances_mm):
        raise UserError(f"tolerances must be finite and not negative, in mm, got {list(tolerances_mm)}")
    if len(set(map(nsd_key, tolerances_mm))) < len(tolerances_mm):
        raise UserError(f"each tolerance may be given once, got {list(tolerances_mm)}")


def _mask(segmentation: np.ndarray, label: Label, counted: np.ndarray | None) -> np.ndarray:
    first, *others = label if isinstance(label, tuple) else (label,)
    mask = segmentation == first
    for value in others:
        mask |= segmentation == value
    return mask if counted is None else mask & counted


def _cases(folder: Path, ending: str) -> set[str]:
    names = (path.name for path in folder.iterdir())
    return {name.removesuffix(ending) for name in names if name.endswith(ending) and not name.startswith(".")}


@dataclass(frozen=True)
class _Task:
    case: str
    reference: Path
    prediction: Path
    scheme: LabelScheme
    tolerances_mm: tuple[float, ...]
    empty_masks: str
    check_only: bool


@dataclass(frozen=True)
class _Outcome:
    metrics: dict[Label, dict[str, float]]
    problems: list[str]


def _run(tasks: list[_Task], processes: int) -> Iterator[tuple[str, _Outcome]]:
    """Each case with its outcome, in the order in which they are finished."""
    if processes == 0 or not tasks:
        yield from ((task.case, _run_task(task)) for task in tasks)
        return
    pool = ProcessPoolExecutor(min(processes, len(tasks)), mp_context=multiprocessing.get_context("spawn"))
    try:
        cases = {pool.submit(_run_task, task): task.case for task in tasks}
        for future in as_completed(cases):
            yield cases[future], future.result()
    except BrokenProcessPool as error:
        raise UserError("a process was killed, most likely for lack of memory; use a smaller -np") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _run_task(task: _Task) -> _Outcome:
    """Read and check the two files of a case; score them if nothing is wrong here or elsewhere."""
    problems, volumes = [], []
    for path in (task.reference, task.prediction):
        try:
            segmentation, geometry = read_volume(path)
        except UserError as error:
            problems.append(str(error))
            continue
        unknown = np.unique(segmentation[~np.isin(segmentation, task.scheme.known_labels)])
        if unknown.size:
            values = ", ".join(f"{value:g}" for value in unknown[:10]) + (", ..." if unknown.size > 10 else "")
            known = ", ".join(map(str, task.scheme.known_labels))
            problems.append(f"{path} holds labels that dataset.json does not know: {values}; known are {known}")
        volumes.append((segmentation, geometry))
    if len(volumes) == 2 and (difference := _geometry_difference(*volumes)):
        problems.append(difference)
    if problems or task.check_only:
        return _Outcome({}, problems)
    smallest_dtype = np.min_scalar_type(max(task.scheme.known_labels))
    metrics = evaluate_case(
        *(segmentation.astype(smallest_dtype, copy=False) for segmentation, _ in volumes),
        spacing_mm=volumes[0][1].spacing_mm[::-1],
        labels=list(task.scheme.names),
        tolerances_mm=task.tolerances_mm,
        ignore_label=task.scheme.ignore_label,
        empty_masks=task.empty_masks,
    )
    return _Outcome(metrics, [])


def _geometry_difference(reference: tuple[np.ndarray, Geometry], prediction: tuple[np.ndarray, Geometry]) -> str | None:
    """Which parts of two geometries differ by more than rounding, with both in full; None if they agree."""
    (expected_array, expected), (found_array, found) = reference, prediction
    origin_tolerance_mm = ORIGIN_TOLERANCE_VOXELS * min(expected.spacing_mm)
    agrees = {
        "shape": expected_array.shape == found_array.shape,
        "spacing": np.allclose(found.spacing_mm, expected.spacing_mm, rtol=SPACING_TOLERANCE, atol=0),
        "origin": np.allclose(found.origin_mm, expected.origin_mm, rtol=0, atol=origin_tolerance_mm),
        "direction": np.allclose(found.direction, expected.direction, rtol=0, atol=DIRECTION_TOLERANCE),
    }
    if all(agrees.values()):
        return None
    return (
        f"reference and prediction differ in {' and '.join(part for part, same in agrees.items() if not same)}; "
        f"reference: {_in_words(*reference)}; prediction: {_in_words(*prediction)} (all as x, y, z)"
    )


def _in_words(array: np.ndarray, geometry: Geometry) -> str:
    spacing, origin, direction = (
        "(" + ", ".join(f"{value:.6g}" for value in values) + ")"
        for values in (geometry.spacing_mm, geometry.origin_mm, geometry.direction)
    )
    return f"shape {array.shape[::-1]}, spacing {spacing} mm, origin {origin} mm, direction {direction}"
