"""Score predicted segmentations against references: DSC, NSD, HD95 and lesions for each case and label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fvae_nnunet.ct.files import find_files
from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.case_files import read_alike, unknown_labels
from fvae_nnunet.evaluation.each_case import OnProgress, no_progress, run_each
from fvae_nnunet.evaluation.segmentation.lesions import (
    DETECTION_OVERLAP,
    CaseLesions,
    LesionRule,
    choose_lesion_labels,
    match_lesions,
)
from fvae_nnunet.evaluation.segmentation.scores import HD95_KEY, ScoredCase, ScoredFolder, Scores, nsd_key
from fvae_nnunet.evaluation.segmentation.surface_distance import surface_distances
from fvae_nnunet.nnunet.image_readers import reader_beside
from fvae_nnunet.nnunet.labels import Label, LabelScheme, find_dataset_json

EMPTY_MASKS = ("nan", "flare")
"""Score of a label that neither reference nor prediction holds: NaN, left out of the mean (nnU-Net's), or 1."""


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
        reference, prediction: label maps (z, y, x) of equal shape.
        spacing_mm: voxel size (z, y, x).
        labels: values, or tuples of values (regions), to score.
        tolerances_mm: tolerances of the NSD, see `segmentation.surface_distance`.
        ignore_label: voxels with this value in the reference are left out. For DSC they are not counted, as in nnU-Net.
            For NSD both masks are background there: there is no surface inside, and if both masks reach the ignored
            area, its edge is a surface on which they agree. In the prediction this value is background.
        empty_masks: score in DSC, IoU and NSD of a label that neither reference nor prediction holds outside ignored
            voxels: "nan" (nnU-Net's) or "flare" (1). A label that only one of them holds scores 0 with both policies.

    Returns:
        For each label ``Dice``, ``IoU``, ``NSD_<tolerance>mm``, ``HD95_mm`` (see `SurfaceDistances.hausdorff_mm`; NaN
        with both policies unless reference and prediction both hold the label), and ``FP``, ``TP``, ``FN``, ``TN``,
        ``n_pred``, ``n_ref`` in voxels, counted as in `nnunetv2.evaluation.evaluate_predictions.compute_metrics`.

    Raises:
        UserError: the shapes differ or are not 3-dimensional, or an option has an invalid value.
    """
    if reference.shape != prediction.shape or reference.ndim != 3:
        raise UserError(
            f"reference and prediction must be volumes of equal shape, got {reference.shape} and {prediction.shape}"
        )
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
            without_surface = 0.0
        else:
            without_surface = 1.0 if empty_masks == "flare" else float("nan")
            scores = {"Dice": without_surface, "IoU": without_surface}
        surfaces = surface_distances(in_reference, in_prediction, spacing_mm=spacing_mm)
        for tolerance_mm in tolerances_mm:
            scores[nsd_key(tolerance_mm)] = surfaces.dice(tolerance_mm) if surfaces else without_surface
        scores[HD95_KEY] = surfaces.hausdorff_mm() if surfaces else float("nan")
        counts = {"FP": n_pred - tp, "TP": tp, "FN": n_ref - tp, "TN": n_counted - n_either}
        metrics[label] = {**scores, **counts, "n_pred": n_pred, "n_ref": n_ref}
    return metrics


def score_folders(
    reference_folder: Path,
    prediction_folders: Sequence[Path],
    *,
    dataset_json: Path | None = None,
    tolerances_mm: Sequence[float] = (2.0,),
    empty_masks: str = "nan",
    lesion_labels: Sequence[str] | None = None,
    detection_overlap: float = DETECTION_OVERLAP,
    allow_missing: bool = False,
    processes: int = 0,
    on_case: OnProgress = no_progress,
) -> Scores:
    """Score every case of one or more folders of predictions; nothing is written.

    Args:
        reference_folder, prediction_folders: folders of files with equal names and the file ending of dataset.json.
        dataset_json: its path; default: for each folder beside the predictions, then above or beside the references.
        tolerances_mm, empty_masks: see `evaluate_case`.
        lesion_labels: names of the labels to evaluate by lesion, see `choose_lesion_labels`.
        detection_overlap: see `lesions`.
        allow_missing: references without a prediction are counted and left out instead of raising an error.
        processes, on_case: see `each_case.run_each`; one task per prediction.

    Raises:
        UserError: all problems with the folders and their cases, one line each: files without counterpart or that
            cannot be read, geometry other than the reference's, labels that are not in dataset.json.
    """
    _check_options(tolerances_mm, empty_masks)
    if processes < 0:
        raise UserError(f"`processes` must not be negative, got {processes}")
    if len(set(prediction_folders)) < len(prediction_folders):
        raise UserError(f"each folder may be given only once, got {', '.join(map(str, prediction_folders))}")
    absent = [folder for folder in (reference_folder, *prediction_folders) if not folder.is_dir()]
    if absent:
        raise UserError("\n  ".join(f"no such folder: {folder}" for folder in absent))
    scheme = _common_scheme(reference_folder, prediction_folders, dataset_json)
    lesion_rule = LesionRule(choose_lesion_labels(scheme.names, lesion_labels), detection_overlap)
    references = find_files(reference_folder, scheme.file_ending).keys()
    predictions = {folder: find_files(folder, scheme.file_ending).keys() for folder in prediction_folders}
    empty = [folder for folder, cases in {reference_folder: references, **predictions}.items() if not cases]
    if empty:
        raise UserError(
            "\n  ".join(
                f"{folder} holds no file that ends in {scheme.file_ending}, as required by dataset.json"
                for folder in empty
            )
        )
    problems = []
    for folder, cases in predictions.items():
        missing, strangers = sorted(references - cases), sorted(cases - references)
        if missing and not allow_missing:
            problems.append(
                f"{folder} lacks {len(missing)} of {len(references)} predictions: {', '.join(missing)}; "
                "predict them, or use `allow_missing=True` to score only the others"
            )
        if strangers:
            problems.append(
                f"{folder} holds predictions without reference in {reference_folder}: "
                f"{', '.join(strangers)}; move them away or add their references"
            )
    readers = {
        folder: reader_beside(dataset_json or find_dataset_json(reference_folder, folder)) for folder in predictions
    }
    tasks = {
        folder: [
            _Task(
                case, reference_folder / f"{case}{scheme.file_ending}", folder / f"{case}{scheme.file_ending}",
                scheme, tuple(tolerances_mm), empty_masks, lesion_rule, readers[folder],
                called="prediction" if len(predictions) == 1 else f"prediction in {folder}", check_only=bool(problems),
            )
            for case in sorted(references & cases)
        ]
        for folder, cases in predictions.items()
    }  # fmt: skip
    all_tasks = [task for of_folder in tasks.values() for task in of_folder]
    found = run_each(_run_task, all_tasks, processes, on_case)
    outcomes = {task.prediction: outcome for task, outcome in zip(all_tasks, found, strict=True)}
    # a damaged reference is found for each folder, but reported once
    problems += dict.fromkeys(
        f"{task.case}: {problem}" for task in all_tasks for problem in outcomes[task.prediction].problems
    )
    if problems:
        raise UserError("nothing was scored:\n  " + "\n  ".join(problems))
    folders = [
        ScoredFolder(
            folder,
            [_scored(task, outcomes[task.prediction]) for task in tasks[folder]],
            sorted(references - cases),
        )
        for folder, cases in predictions.items()
    ]
    return Scores(reference_folder, scheme, tuple(tolerances_mm), empty_masks, lesion_rule, folders)


def _common_scheme(
    reference_folder: Path, prediction_folders: Sequence[Path], dataset_json: Path | None
) -> LabelScheme:
    """The scheme that all folders share."""
    paths = [dataset_json or find_dataset_json(reference_folder, folder) for folder in prediction_folders]
    schemes = {path: LabelScheme.read(path) for path in paths}
    first = schemes[paths[0]]
    others = [path for path, scheme in schemes.items() if scheme != first]
    if others:
        raise UserError(
            f"{', '.join(map(str, others))} has other labels or another file ending than {paths[0]}; "
            "compare predictions of one dataset, or give the dataset.json for all as `dataset_json`"
        )
    return first


def _check_options(tolerances_mm: Sequence[float], empty_masks: str) -> None:
    if empty_masks not in EMPTY_MASKS:
        raise UserError(f"the policy for empty masks must be one of {', '.join(EMPTY_MASKS)}, got {empty_masks!r}")
    if not all(np.isfinite(tolerance_mm) and tolerance_mm >= 0 for tolerance_mm in tolerances_mm):
        raise UserError(f"tolerances must be finite and not negative, in mm, got {list(tolerances_mm)}")
    if len(set(map(nsd_key, tolerances_mm))) < len(tolerances_mm):
        raise UserError(f"each tolerance may be given only once, got {list(tolerances_mm)}")


def _mask(segmentation: np.ndarray, label: Label, counted: np.ndarray | None) -> np.ndarray:
    first, *others = label if isinstance(label, tuple) else (label,)
    mask = segmentation == first
    for value in others:
        mask |= segmentation == value
    return mask if counted is None else mask & counted


@dataclass(frozen=True)
class _Task:
    case: str
    reference: Path
    prediction: Path
    scheme: LabelScheme
    tolerances_mm: tuple[float, ...]
    empty_masks: str
    lesion_rule: LesionRule
    reader: str | None
    called: str
    check_only: bool


@dataclass(frozen=True)
class _Outcome:
    metrics: dict[Label, dict[str, float]] = field(default_factory=dict)
    lesions: dict[Label, CaseLesions] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def _scored(task: _Task, outcome: _Outcome) -> ScoredCase:
    return ScoredCase(task.case, task.reference, task.prediction, outcome.metrics, outcome.lesions)


def _run_task(task: _Task) -> _Outcome:
    """Read and check the two files of a case; score them unless there are problems here or in the folders."""
    files = {"reference": task.reference, task.called: task.prediction}
    volumes, problems = read_alike(files, task.reader)
    for name, (segmentation, _) in volumes.items():
        problems += unknown_labels(files[name], segmentation, task.scheme.known_labels)
    if problems or task.check_only:
        return _Outcome(problems=problems)
    smallest_dtype = np.min_scalar_type(max(task.scheme.known_labels))
    reference, prediction = (volumes[name][0].astype(smallest_dtype, copy=False) for name in files)
    spacing_mm = volumes["reference"][1].spacing_mm[::-1]
    metrics = evaluate_case(
        reference,
        prediction,
        spacing_mm=spacing_mm,
        labels=list(task.scheme.names),
        tolerances_mm=task.tolerances_mm,
        ignore_label=task.scheme.ignore_label,
        empty_masks=task.empty_masks,
    )
    counted = None if task.scheme.ignore_label is None else reference != task.scheme.ignore_label
    lesions = {
        label: match_lesions(
            _mask(reference, label, counted),
            _mask(prediction, label, counted),
            spacing_mm=spacing_mm,
            detection_overlap=task.lesion_rule.detection_overlap,
        )
        for label in task.lesion_rule.labels
    }
    return _Outcome(metrics, lesions)
