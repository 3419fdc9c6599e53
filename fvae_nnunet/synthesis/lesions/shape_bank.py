"""A bank of shapes: a folder of masks from anywhere, each of whose lesions may be the donor of a shape.

A mask has any size, spacing and orientation; its nonzero voxels are lesions, those that touch (26 neighbours) one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fvae_nnunet.ct.boxes import bounding_box
from fvae_nnunet.ct.files import find_images, read_volume
from fvae_nnunet.ct.geometry import Geometry
from fvae_nnunet.errors import UserError
from fvae_nnunet.files.recorded import sha256_of_file
from fvae_nnunet.jobs.pipeline import StageSeconds, run_cases
from fvae_nnunet.numbers_as_text import counted
from fvae_nnunet.synthesis.lesions.real_lesions import piece_of
from fvae_nnunet.synthesis.lesions.shapes import MIN_VOXELS, TOUCHING, RealLesion


@dataclass(frozen=True)
class ShapeBank:
    """The lesions of a folder. Picklable.

    Attributes:
        folder: where they are.
        lesions: of each the ``file``, the ``number`` among the file's connected components (from 1, as SciPy counts)
            and its ``voxels``, `MIN_VOXELS` at least; in the order of file and number.
        sha256: of the names and contents of all files of the folder.
    """

    folder: Path
    lesions: tuple[dict[str, Any], ...]
    sha256: str

    @classmethod
    def open(cls, folder: Path, *, workers: int, on_file: Callable[[], object]) -> ShapeBank:
        """Read all masks of a folder.

        Args:
            folder: of the masks; each image in it is one.
            workers: processes that read; 0: none.
            on_file: called after each file.

        Raises:
            UserError: no such folder, no image in it, files that cannot be read or are no masks (all of them are
                named), or no lesion of `MIN_VOXELS` voxels in any.
        """
        paths = {path.name: path for path in find_images(folder).values()}
        digests, lesions, failed = {}, {}, {}
        for outcome in run_cases(
            sorted(paths),
            read=partial(_measure, paths),
            workers=workers,
            seconds=StageSeconds(),
        ):
            on_file()
            if outcome.error is None:
                digests[outcome.case], lesions[outcome.case] = outcome.result
            else:
                failed[outcome.case] = outcome.error
        if failed:
            said = "\n  ".join(str(failed[name]) for name in sorted(failed))
            raise UserError(
                f"{counted(len(failed), 'file')} of the bank {folder} without a mask:\n  {said}\n"
                "Repair them or move them away"
            )
        found = tuple(lesion for name in sorted(lesions) for lesion in lesions[name])
        if not found:
            raise UserError(f"the bank {folder}: no mask has {MIN_VOXELS} connected voxels that are not 0")
        listed = json.dumps(digests, sort_keys=True).encode()
        return cls(folder, found, hashlib.sha256(listed).hexdigest())

    def draw(self, rng: np.random.Generator) -> RealLesion:
        """One of the lesions, each equally likely.

        Raises:
            UserError: its file cannot be read, or is not the one that was opened.
        """
        lesion = self.lesions[int(rng.integers(len(self.lesions)))]
        path = self.folder / lesion["file"]
        mask, geometry = _read(path)
        return piece_of(path, mask, geometry, lesion, name=lesion["file"])


def _measure(paths: dict[str, Path], name: str) -> tuple[str, list[dict[str, Any]]]:
    from scipy import ndimage

    numbered, _ = ndimage.label(_read(paths[name])[0], structure=TOUCHING)
    voxels = np.bincount(numbered.ravel())
    numbers = np.flatnonzero(voxels >= MIN_VOXELS)
    lesions = [{"file": name, "number": int(n), "voxels": int(voxels[n])} for n in numbers if n > 0]
    return sha256_of_file(paths[name]), lesions


def _read(path: Path) -> tuple[np.ndarray, Geometry]:
    """The mask of a file, bool (z, y, x), axial, cut to the voxels that are not 0; and the file's geometry."""
    values, geometry = read_volume(path)
    if not (np.isfinite(values).all() and values.min() >= 0):
        raise UserError(f"{path} holds negative values or NaN, so it is an image and no mask")
    mask = values.transpose(geometry.axial_order) != 0
    return mask[bounding_box(mask)] if mask.any() else mask, geometry
