"""Evaluate a folder of reconstructed images against the folder of raw images: match the files and measure all cases."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import fvae_nnunet
from fvae_nnunet.ct import noise
from fvae_nnunet.ct.files import find_images, read_upright
from fvae_nnunet.ct.geometry import Geometry
from fvae_nnunet.ct.hu_windows import PAPER_HU_WINDOW, check_hu_window
from fvae_nnunet.ct.places import EDGE_HU_PER_PIXEL, SOFT_HU, TISSUES_HU
from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.case_files import read_alike, unknown_labels
from fvae_nnunet.evaluation.each_case import OnProgress, no_progress, run_each
from fvae_nnunet.evaluation.reconstruction import boundary
from fvae_nnunet.evaluation.reconstruction.picture import reconstruction_picture
from fvae_nnunet.evaluation.reconstruction.quality import (
    COARSE_PIXELS,
    LABEL_IN_NO_VOXEL,
    SSIM_WINDOW_VOXELS,
    evaluate_view,
)
from fvae_nnunet.evaluation.reconstruction.summary import SCHEMA, summarise
from fvae_nnunet.jobs.manifest import MANIFEST_FOLDER, Manifest
from fvae_nnunet.nnunet.labels import Label, LabelScheme, find_dataset_json
from fvae_nnunet.numbers_as_text import counted, interval, number
from fvae_nnunet.reconstruction.windows import slice_windows

CHANNEL = "_0000"
"""Suffix of the first channel in nnU-Net's raw format, between case and file ending."""

MOST_LABELS = 1000
"""Without dataset.json, a file with more values than this is an image, not a label map."""

Windows = tuple[int, int]
"""Slices in a window of the VAE, and slices shared by neighbouring windows."""


def evaluate_view_folder(
    raw_folder: Path,
    view_folder: Path,
    *,
    label_folder: Path | None = None,
    dataset_json: Path | None = None,
    hu_window: tuple[float, float] | None = None,
    windows: Windows | None = None,
    processes: int = 0,
    on_case: OnProgress = no_progress,
) -> dict[str, Any]:
    """Measure every case of a folder; nothing is written.

    Args:
        raw_folder, view_folder: folders with the same cases in the same geometry; ``case_0000.nii.gz`` (if all names of
            a folder end so) or plain names.
        label_folder: label maps of all cases, for errors and boundaries by label.
        dataset_json: file that names the labels; default: in or above ``label_folder``; without any, each value that
            occurs is a label.
        hu_window: see `reconstruction.quality.evaluate_view`; default: that of the view's manifest, else the paper's.
        windows: windows that determine the seams; default: those of the view's manifest, else no seam score.
        processes, on_case: see `each_case.run_each`.

    Returns:
        The content of the JSON file, see `reconstruction.summary`.

    Raises:
        UserError: all problems with the folders and their cases, one line each: files without counterpart or that
            cannot be read, geometry other than the raw image's, labels that are not in dataset.json.
    """
    if processes < 0:
        raise UserError(f"`processes` must not be negative, got {processes}")
    if raw_folder.resolve() == view_folder.resolve():
        raise UserError(f"{raw_folder} is given as both raw images and view; give two folders")
    if dataset_json is not None and label_folder is None:
        raise UserError("dataset.json names labels; also give their folder as `label_folder`")
    view_settings = _settings_of(view_folder)
    hu_window = check_hu_window(hu_window or view_settings.get("hu_window") or PAPER_HU_WINDOW)
    windows = windows or _windows_of(view_settings)
    if windows is not None:
        slice_windows(1, *windows)
    scheme = None if label_folder is None else _scheme(label_folder, dataset_json)
    folders = {"raw image": raw_folder, "view": view_folder} | ({"labels": label_folder} if label_folder else {})
    files = {name: cases_of(folder) for name, folder in folders.items()}
    problems = []
    for name in list(folders)[1:]:
        missing = sorted(files["raw image"].keys() - files[name].keys())
        if missing:
            problems.append(f"{folders[name]} ({name}) lacks {counted(len(missing), 'raw case')}: {', '.join(missing)}")
    strangers = sorted(files["view"].keys() - files["raw image"].keys())
    if strangers:
        problems.append(f"{view_folder} (view) holds cases that are not in {raw_folder}: {', '.join(strangers)}")
    tasks = [
        _Task(
            case, {name: found[case] for name, found in files.items() if case in found}, scheme, hu_window, windows,
            windows_along_file=view_settings.get("scheme") == "paper", check_only=bool(problems),
        )
        for case in sorted(files["raw image"].keys() & files["view"].keys())
    ]  # fmt: skip
    outcomes = run_each(_run_task, tasks, processes, on_case)
    problems += [
        f"{task.case}: {problem}" for task, outcome in zip(tasks, outcomes, strict=True) for problem in outcome.problems
    ]
    if problems:
        raise UserError("nothing was measured:\n  " + "\n  ".join(problems))
    names = scheme.names if scheme is not None else _names_of_values(outcomes)
    cases = [outcome.case for outcome in outcomes]
    for case in cases:
        case["labels"] = {str(label): case["labels"].get(str(label), LABEL_IN_NO_VOXEL) for label in names}
    return {
        "schema": SCHEMA,
        "kind": "reconstruction_quality",
        "version": fvae_nnunet.__version__,
        "raw_folder": str(raw_folder),
        "view_folder": str(view_folder),
        "label_folder": None if label_folder is None else str(label_folder),
        "settings": {
            "hu_window": list(hu_window),
            "ssim_window_voxels": SSIM_WINDOW_VOXELS,
            "tissues_hu": {
                name: [end if math.isfinite(end) else None for end in limits] for name, limits in TISSUES_HU.items()
            },
            "soft_hu": list(SOFT_HU),
            "edge_hu_per_pixel": EDGE_HU_PER_PIXEL,
            "coarse_pixels": COARSE_PIXELS,
            "noise": noise.SETTINGS,
            "boundary": boundary.SETTINGS,
            "windows": windows and {"window_slices": windows[0], "overlap_slices": windows[1]},
        },
        "view_settings": view_settings or None,
        "labels": [
            {"key": str(label), "name": name, "value": list(label) if isinstance(label, tuple) else label}
            for label, name in names.items()
        ],
        "cases": cases,
        "summary": summarise(cases),
    }


def write_pictures(
    results: Mapping[str, Any], folder: Path, *, count: int, on_picture: OnProgress = no_progress
) -> list[Path]:
    """Write a PNG for selected cases, see `picture.reconstruction_picture`.

    Args:
        results: from `evaluate_view_folder`; the files named there are read again.
        folder: output folder, created if necessary; pictures that are in it are removed.
        count: number of cases, evenly spread from the smallest to the largest mean absolute error.
        on_picture: called after each picture.

    Returns:
        Paths of the pictures, smallest error first.

    Raises:
        UserError: a file cannot be read.
    """
    for earlier in folder.glob("*.png"):
        earlier.unlink()
    ranked = sorted(results["cases"], key=lambda case: case["volume"]["mae_hu"])
    places = np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int)
    labels = {label["name"]: label["value"] for label in results["labels"]}
    paths = []
    for case in (ranked[place] for place in places):
        raw_hu, spacing_mm = read_upright(Path(case["raw_file"]))
        figures = case["volume"]
        paths.append(folder / f"{case['case']}.png")
        reconstruction_picture(
            raw_hu,
            read_upright(Path(case["view_file"]))[0],
            spacing_mm=spacing_mm,
            reference=None if case["label_file"] is None else read_upright(Path(case["label_file"]))[0],
            labels=labels,
            title=f"{case['case']}     PSNR {number(figures['psnr_db'], 'dB')} dB     "
            f"MAE {number(figures['mae_hu'], 'HU')} HU     "
            f"noise {interval(figures['noise_raw_hu'], figures['noise_view_hu'], 'HU')} HU",
            path=paths[-1],
        )
        on_picture(len(paths), len(places))
    return paths


@dataclass(frozen=True)
class _Task:
    case: str
    files: dict[str, Path]
    scheme: LabelScheme | None
    hu_window: tuple[float, float]
    windows: Windows | None
    windows_along_file: bool
    check_only: bool

    def borders(self, slices: int, geometry: Geometry) -> list[int]:
        """Axial slices at which a window begins; none if the paper's scheme cut along another axis."""
        if self.windows is None or (self.windows_along_file and geometry.axial_order[0] != 0):
            return []
        return [start for start, _ in slice_windows(slices, *self.windows)][1:]


@dataclass(frozen=True)
class _Outcome:
    case: dict[str, Any]
    problems: list[str]


def _run_task(task: _Task) -> _Outcome:
    """Read and check the files of a case; measure unless there are problems here or in the folders."""
    volumes, problems = read_alike(task.files)
    for name, (array, _) in volumes.items():
        if name == "labels":
            problems += _label_problems(task.files[name], array, task.scheme)
        elif array.dtype.kind == "f" and not np.isfinite(array).all():
            problems.append(f"{task.files[name]} holds values that are not finite (NaN or infinite)")
    if problems or task.check_only:
        return _Outcome({}, problems)
    geometry = volumes["raw image"][1]
    order = geometry.axial_order
    axial = {name: array.transpose(order) for name, (array, _) in volumes.items()}
    shape = axial["raw image"].shape
    spacing_mm = tuple(geometry.spacing_mm[::-1][axis] for axis in order)
    segmentation = axial.get("labels")
    labels: Sequence[Label] = []
    if segmentation is not None:
        found = np.unique(segmentation)
        labels = list(task.scheme.names) if task.scheme else [int(value) for value in found if value != 0]
        segmentation = segmentation.astype(np.min_scalar_type(int(found.max())), copy=False)
    figures = evaluate_view(
        axial["raw image"],
        axial["view"],
        spacing_mm=spacing_mm,
        hu_window=task.hu_window,
        segmentation=segmentation,
        labels=labels,
        borders=task.borders(shape[0], geometry),
    )
    case = {
        "case": task.case,
        "raw_file": str(task.files["raw image"]),
        "view_file": str(task.files["view"]),
        "label_file": str(task.files["labels"]) if "labels" in task.files else None,
        "shape": list(shape),
        "spacing_mm": list(spacing_mm),
    }
    return _Outcome(case | figures, [])


def _settings_of(view_folder: Path) -> dict[str, Any]:
    """The settings in the manifest beside the view; empty if there is none."""
    needs = {"settings": {"hu_window": object, "window_slices": object, "overlap_slices": object}}
    return (Manifest(view_folder / MANIFEST_FOLDER).read(needs) or {}).get("settings", {})


def _windows_of(view_settings: dict[str, Any]) -> Windows | None:
    """The windows in which a view was made; None if it was made in one pass or they are not recorded."""
    if view_settings.get("scheme") not in ("windows", "paper"):
        return None
    return view_settings["window_slices"], view_settings["overlap_slices"]


def _scheme(label_folder: Path, dataset_json: Path | None) -> LabelScheme | None:
    """The labels in dataset.json; None if no file is given and none is found."""
    if dataset_json is None:
        try:
            dataset_json = find_dataset_json(label_folder, label_folder)
        except UserError:
            return None
    return LabelScheme.read(dataset_json)


def cases_of(folder: Path) -> dict[str, Path]:
    """Images of a folder, by case."""
    images = find_images(folder)
    in_channels = all(name.endswith(CHANNEL) for name in images)
    return {name.removesuffix(CHANNEL): path for name, path in images.items()} if in_channels else images


def _label_problems(path: Path, segmentation: np.ndarray, scheme: LabelScheme | None) -> list[str]:
    if scheme is not None:
        return unknown_labels(path, segmentation, scheme.known_labels)
    values = np.unique(segmentation)
    if len(values) > MOST_LABELS or values[0] < 0 or not np.array_equal(values, np.rint(values)):
        return [
            f"{path} is not a label map: it holds {counted(len(values), 'value')} from {values[0]:g} to {values[-1]:g}"
        ]
    return []


def _names_of_values(outcomes: Iterable[_Outcome]) -> dict[Label, str]:
    """Labels named by their values, for use without dataset.json."""
    values = sorted({int(key) for outcome in outcomes for key in outcome.case["labels"]})
    return {value: str(value) for value in values}
