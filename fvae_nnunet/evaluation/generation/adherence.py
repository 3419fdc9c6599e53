"""Agreement of generated images with their masks: Dice and IoU of the masks and a segmentation of the image.

The segmentation comes from a model trained on real images, whose errors count here, too: compare with its scores on
real images and their reference masks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fvae_nnunet.ct.files import find_images
from fvae_nnunet.errors import UserError, some_of
from fvae_nnunet.evaluation.case_files import read_alike
from fvae_nnunet.evaluation.each_case import run_each
from fvae_nnunet.evaluation.generation.compared_structures import (
    ComparedStructures,
    Values,
    common_structures,
    read_names,
)
from fvae_nnunet.evaluation.statistics import mean_and_interval

CaseScores = dict[str, dict[str, float]]
"""Scores of one case: structure -> ``dice``, ``iou``, ``mask_voxels``, ``segmented_voxels``."""


def overlap(mask: np.ndarray, segmentation: np.ndarray, structures: Mapping[str, tuple[Values, Values]]) -> CaseScores:
    """Dice and IoU of each structure of one case; label maps (z, y, x) of equal shape with values from 0 to 65535.

    Returns:
        ``dice``, ``iou``, ``mask_voxels`` and ``segmented_voxels`` of each structure. Dice and IoU are NaN if neither
        map holds the structure, and 0 if only one does.
    """
    first, second = np.unique(mask), np.unique(segmentation)
    pairs = np.searchsorted(first, mask.ravel()) * len(second) + np.searchsorted(second, segmentation.ravel())
    table = np.bincount(pairs, minlength=len(first) * len(second)).reshape(len(first), len(second))
    scores = {}
    for name, (in_mask, in_segmentation) in structures.items():
        rows, columns = np.isin(first, in_mask), np.isin(second, in_segmentation)
        n_mask, n_segmented, both = table[rows].sum(), table[:, columns].sum(), table[np.ix_(rows, columns)].sum()
        either = n_mask + n_segmented - both
        scores[name] = {
            "dice": float(2 * both / (n_mask + n_segmented)) if either else float("nan"),
            "iou": float(both / either) if either else float("nan"),
            "mask_voxels": int(n_mask),
            "segmented_voxels": int(n_segmented),
        }
    return scores


@dataclass(frozen=True)
class _Task:
    mask: Path
    segmentation: Path
    structures: ComparedStructures | None


def _run(task: _Task) -> tuple[CaseScores, list[str]]:
    files = {"mask": task.mask, "segmentation": task.segmentation}
    volumes, problems = read_alike(files)
    for name, (array, _) in volumes.items():
        if not (np.issubdtype(array.dtype, np.integer) or np.equal(array, np.rint(array)).all()) or array.min() < 0:
            problems.append(f"{files[name]} is not a label map: it holds values other than whole numbers from 0")
    if problems:
        return {}, problems
    mask, segmentation = (volumes[name][0].astype(np.uint16) for name in files)
    structures = task.structures.values if task.structures is not None else _every_value(mask, segmentation)
    return overlap(mask, segmentation, structures), []


def _every_value(mask: np.ndarray, segmentation: np.ndarray) -> dict[str, tuple[Values, Values]]:
    values = np.union1d(np.unique(mask), np.unique(segmentation))
    return {str(value): ((int(value),), (int(value),)) for value in values if value != 0}


def _of_masks(scores: Mapping[str, CaseScores]) -> dict[str, CaseScores]:
    """The scores, in all cases, of every value that occurs in any mask."""
    asked = {name for of_case in scores.values() for name, figures in of_case.items() if figures["mask_voxels"]}
    nowhere = {"dice": float("nan"), "iou": float("nan"), "mask_voxels": 0, "segmented_voxels": 0}
    return {
        case: {name: of_case.get(name, nowhere) for name in sorted(asked, key=int)} for case, of_case in scores.items()
    }


def mask_adherence(
    cases: Sequence[str],
    mask_folder: Path,
    segmentation_folder: Path,
    *,
    groups: Mapping[str, Sequence[str | int]] | None = None,
    processes: int = 0,
    seed: int = 0,
    resamples: int = 9999,
    on_case: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Dice and IoU of the masks and segmentations of the given cases.

    Args:
        cases: names; each needs a mask and a segmentation.
        mask_folder, segmentation_folder: folders of label maps ``CASE.nii.gz`` on the same grid.
        groups: see `compared_structures.common_structures`.
        processes: see `each_case.run_each`.
        seed, resamples: seed and number of resamples of the bootstrap over cases.
        on_case: called after each case.

    Returns:
        ``structures``: name -> mean ``dice`` and ``iou``, ``low`` and ``high`` of each, and the number ``n`` of cases
        that hold it; ``mean``: means over structures; ``not_segmented``; ``cases``: name -> structure -> figures.

    Raises:
        UserError: files are missing, unreadable, not label maps or on different grids, one line each; or no mask holds
            a structure.
    """
    names = read_names(mask_folder), read_names(segmentation_folder)
    structures = common_structures(*names, groups)
    files = [find_images(folder) for folder in (mask_folder, segmentation_folder)]
    problems = [
        f"{case}: no label map in {folder}"
        for case in cases
        for folder, found in zip((mask_folder, segmentation_folder), files, strict=True)
        if case not in found
    ]
    if problems:
        raise UserError("the masks cannot be compared:\n  " + some_of(problems, 20, "\n  "))
    tasks = [_Task(files[0][case], files[1][case], structures) for case in cases]
    outcomes = run_each(_run, tasks, processes, lambda done, total: on_case())
    problems = [f"{case}: {problem}" for case, (_, found) in zip(cases, outcomes, strict=True) for problem in found]
    if problems:
        raise UserError("the masks cannot be compared:\n  " + some_of(sorted(problems), 20, "\n  "))
    scores = {case: of_case for case, (of_case, _) in zip(cases, outcomes, strict=True)}
    if structures is None:
        scores = _of_masks(scores)
    if not any(figures["mask_voxels"] for of_case in scores.values() for figures in of_case.values()):
        what = "no structure" if structures is None else f"none of {some_of(structures.values)}"
        raise UserError(
            f"the masks in {mask_folder} hold {what}; give the folder of the masks from which the images were "
            "generated as `masks`"
        )
    summary = {name: _over_cases(scores, name, seed, resamples) for name in scores[cases[0]]}
    scored = [figures for figures in summary.values() if figures["n"]]
    return {
        "mask_folder": str(mask_folder),
        "segmentation_folder": str(segmentation_folder),
        "structures": summary,
        "mean": {
            key: float(np.mean([figures[key] for figures in scored])) if scored else float("nan")
            for key in ("dice", "iou")
        },
        "not_segmented": list(structures.only_in_masks) if structures is not None else [],
        "cases": scores,
    }


def _over_cases(scores: Mapping[str, CaseScores], name: str, seed: int, resamples: int) -> dict[str, float]:
    summary: dict[str, float] = {}
    for key in ("dice", "iou"):
        values = [of_case[name][key] for of_case in scores.values()]
        mean, interval = mean_and_interval(values, seed=seed, resamples=resamples)
        summary |= {key: mean, f"{key}_low": interval.low, f"{key}_high": interval.high}
        summary["n"] = int(np.isfinite(values).sum())
    return summary
