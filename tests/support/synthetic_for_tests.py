"""Folders of synthetic cases, as ``fvae-synthesize`` writes them, made from phantoms with a ball as the new lesion."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from fvae_nnunet.jobs.manifest import write_json
from fvae_nnunet.nnunet.synthetic_folder import CasePaths
from fvae_nnunet.preprocessing.dataset import open_preprocessed_dataset
from fvae_nnunet.preprocessing.make_synthetic import find_synthetic_cases, open_synthetic_data, preprocess_synthetic

LESION_HU = 400
"""Of every new lesion, which no phantom has in its organs."""

RADIUS_MM = 7.0
MODEL = {
    "folder": "models/ldm", "weights_sha256": "c" * 64, "vae": "tiny", "vae_sha256": "d" * 64, "training_cases": [],
}  # fmt: skip


LIMITS = {"real_lesions": 9, "percentiles": [1.0, 99.0], "inside_fraction": 0.8, "found_share": 0.7}


def plain_quality(number: int) -> dict:
    return {
        "mean_hu": 400.0 + number, "core_sd_hu": 10.0, "contrast_hu": 300.0, "inside_fraction": 0.9,
        "found_share": None,
        "limits": {"real_lesions": 9, "core_sd_hu": [4.0 + number, 20.0], "contrast_hu": [-80.0, 350.0]},
    }  # fmt: skip


def write_synthetic_folder(
    folder: Path,
    dataset,
    sources,
    *,
    accepted=True,
    first=0,
    model=None,
    reasons=(),
    centre_shift=0,
    quality=None,
    borrowed_from=None,
) -> list[str]:
    """A synthetic case of each source case: a ball of `LESION_HU` with the lesion's label in the middle of the volume.

    Args:
        folder: to write or to add to.
        dataset: of ``conftest``.
        sources: identifiers of source cases.
        accepted, reasons: of these cases.
        first: number of the first.
        model: entry of the records.
        centre_shift: voxels along x by which the balls lie off the middle.
        quality: number of a case -> its figures.
        borrowed_from: the case that lent the shape.

    Returns:
        Names of the cases.
    """
    names = []
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(dataset.raw / "dataset.json", folder / "dataset.json")
    for number, source in enumerate(sources, start=first):
        name = f"synthetic_{number:04d}"
        paths = CasePaths.of(folder, name, channels=1, file_ending=".nii.gz", accepted=accepted)
        image = sitk.ReadImage(str(dataset.raw / "imagesTr" / f"{source}_0000.nii.gz"))
        label = sitk.ReadImage(str(dataset.raw / "labelsTr" / f"{source}.nii.gz"))
        raw_hu, before = sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(label)
        ball, centre = ball_in(raw_hu.shape, image.GetSpacing()[::-1], shift=centre_shift)
        new = ball & (before != 2)
        for path, array, like in (
            (paths.images[0], np.where(new, LESION_HU, raw_hu).astype(raw_hu.dtype), image),
            (paths.label, np.where(new, 2, before).astype(before.dtype), label),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            made = sitk.GetImageFromArray(array)
            made.CopyInformation(like)
            sitk.WriteImage(made, str(path))
        lesion = {
            "shape": "borrowed" if borrowed_from else "ellipsoid", "borrowed_from": borrowed_from,
            "diameter_mm": 2 * RADIUS_MM + number,
            "voxels": int(new.sum()), "centre_voxel": centre,
            "centre_mm": image.TransformContinuousIndexToPhysicalPoint([float(index) for index in centre[::-1]]),
            "inside_fraction": 0.9,
        }  # fmt: skip
        record = {
            "case": name, "number": number, "seed": 0, "dataset": dataset.name, "source_case": source,
            "mode": "inpaint", "accepted": accepted, "reasons": list(reasons), "lesions": [lesion],
            "label": {"name": "tumour", "value": 2}, "model": model or MODEL, "settings": {"steps": 20},
            "quality": {"lesions": [(quality or plain_quality)(number)], "limits": LIMITS},
        }  # fmt: skip
        write_json(paths.record, record)
        names.append(name)
    return names


def ball_in(shape, spacing_mm, *, shift=0) -> tuple[np.ndarray, list[int]]:
    """A ball of `RADIUS_MM` around the middle voxel of a volume (z, y, x), moved along x, and its centre."""
    centre = [size // 2 for size in shape]
    centre[2] += shift
    grids = np.meshgrid(*[np.arange(size) for size in shape], indexing="ij")
    distance_mm = sum(((grid - at) * step) ** 2 for grid, at, step in zip(grids, centre, spacing_mm)) ** 0.5
    return distance_mm <= RADIUS_MM, centre


def preprocess(dataset, folder: Path, *, configurations=None, workers=0, overwrite=False) -> dict[str, Path]:
    """What ``fvae-preprocess --synthetic`` does; fails where one case failed. Returns the folders."""
    found = open_preprocessed_dataset(dataset.id, configurations=configurations)
    cases = find_synthetic_cases(found, folder)
    folders = open_synthetic_data(found, folder, cases, overwrite=overwrite)
    for outcome in preprocess_synthetic(found, cases, folders, cases=sorted(cases), workers=workers):
        if outcome.error:
            raise outcome.error
    return folders
