"""A bank of shapes: a folder of masks of any origin, each of whose lesions can be the donor of a shape.

A mask can have any size, spacing and orientation; each connected component (26 neighbours) of its nonzero voxels is a
lesion.
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
from fvae_nnunet.ct.lesions import numbered_lesions
from fvae_nnunet.errors import UserError
from fvae_nnunet.files.recorded import sha256_of_file
from fvae_nnunet.jobs.pipeline import StageSeconds, run_cases
from fvae_nnunet.numbers_as_text import counted
from fvae_nnunet.synthesis.lesions.real_lesions import piece_of
from fvae_nnunet.synthesis.lesions.shapes import MIN_VOXELS, RealLesion


@dataclass(frozen=True)
class ShapeBank:
    """The lesions of a folder. Picklable.

    Attributes:
        folder: folder of the masks.
        lesions: for each lesion its ``file``, its ``number`` among the connected components of the file (from 1, as
            SciPy counts) and its ``voxels``, at least ``MIN_VOXELS``; sorted by file and number.
        sha256: digest of the names and contents of all files in the folder.
    """

    folder: Path
    lesions: tuple[dict[str, Any], ...]
    sha256: str

    @classmethod
    def open(cls, folder: Path, *, workers: int, on_file: Callable[[], object]) -> ShapeBank:
        """Read all masks of a folder.

        Args:
            folder: folder of the masks; each image in it is one.
            workers: number of reading processes; 0: none.
            on_file: called after each file.

        Raises:
            UserError: the folder does not exist or has no image, files cannot be read or are not masks (the message
                names all of them), or no mask has a lesion of ``MIN_VOXELS`` voxels.
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
                f"{counted(len(failed), 'file')} of the bank {folder} without a valid mask:\n  {said}\n"
                "Repair them or move them elsewhere"
            )
        found = tuple(lesion for name in sorted(lesions) for lesion in lesions[name])
        if not found:
            raise UserError(f"the bank {folder}: no mask has {MIN_VOXELS} connected voxels that are not 0")
        listed = json.dumps(digests, sort_keys=True).encode()
        return cls(folder, found, hashlib.sha256(listed).hexdigest())

    def draw(self, rng: np.random.Generator) -> RealLesion:
        """Draw one of the lesions, each equally likely.

        Raises:
            UserError: its file cannot be read, or has changed since the bank was opened.
        """
        lesion = self.lesions[int(rng.integers(len(self.lesions)))]
        path = self.folder / lesion["file"]
        mask, geometry = _read(path)
        return piece_of(path, mask, geometry, lesion, name=lesion["file"])


def _measure(paths: dict[str, Path], name: str) -> tuple[str, list[dict[str, Any]]]:

    numbered, _ = numbered_lesions(_read(paths[name])[0])
    voxels = np.bincount(numbered.ravel())
    numbers = np.flatnonzero(voxels >= MIN_VOXELS)
    lesions = [{"file": name, "number": int(n), "voxels": int(voxels[n])} for n in numbers if n > 0]
    return sha256_of_file(paths[name]), lesions


def _read(path: Path) -> tuple[np.ndarray, Geometry]:
    """Read the mask of a file, bool (z, y, x), axial, cropped to its nonzero voxels, and the geometry of the file."""
    values, geometry = read_volume(path)
    if not (np.isfinite(values).all() and values.min() >= 0):
        raise UserError(f"{path} has negative values or NaN, so it is an image and not a mask")
    mask = values.transpose(geometry.axial_order) != 0
    return mask[bounding_box(mask)] if mask.any() else mask, geometry
