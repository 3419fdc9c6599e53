"""CT volumes on a small common grid for a classifier, with a cache.

A cache holds ``<key>.npy``, int16 HU (z, y, x) with z increasing towards the head, y towards the back and x towards the
patient's left, and a manifest (see ``manifest``). Windowing is applied later, so that one cache serves all HU windows.
The record of a case holds size and modification time of its image besides the digest: if they are unchanged, the image
is not read again.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fvae_nnunet.ct.files import read_image
from fvae_nnunet.ct.intensity import round_to_int16
from fvae_nnunet.errors import UserError
from fvae_nnunet.files.recorded import sha256_of_file, write_bytes
from fvae_nnunet.findings.cases import Case
from fvae_nnunet.jobs.manifest import Manifest

OUTSIDE_HU = -1024
"""Value outside the image: air, as scanners write it."""

_FWHM_OF_SIGMA = 2 * math.sqrt(2 * math.log(2))


@dataclass(frozen=True)
class Grid:
    """The grid of a classifier's input, around the centre of the image.

    Attributes:
        shape: number of voxels (z, y, x).
        spacing_mm: spacing (z, y, x).
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]

    def __post_init__(self) -> None:
        if min(self.shape) < 1 or not all(math.isfinite(mm) and mm > 0 for mm in self.spacing_mm):
            raise UserError(f"`shape` and `spacing_mm` need three positive numbers each, got {self}")

    @property
    def extent_mm(self) -> tuple[float, ...]:
        return tuple(voxels * mm for voxels, mm in zip(self.shape, self.spacing_mm, strict=True))

    @property
    def name(self) -> str:
        """Name for a folder: ``128x192x192_3x2x2mm``."""
        return f"{'x'.join(map(str, self.shape))}_{'x'.join(f'{mm:g}' for mm in self.spacing_mm)}mm"


def read_on_grid(path: Path, grid: Grid) -> np.ndarray:
    """Read a CT image on the grid, int16 HU (z, y, x), with the patient axes of the module.

    The centre of the grid is the centre of the image; oblique images keep their axes, permuted and mirrored to the
    nearest patient axes. Interpolation is linear, after a Gaussian along each axis on which the grid is coarser, so
    that noise does not alias: it widens a voxel of the image to one of the grid (full widths at half maximum add in
    squares; Cardoso et al., MICCAI 2015). Outside the image is air.

    Raises:
        UserError: the file cannot be read, is not a single grey volume, or holds values that are not HU.
    """
    import SimpleITK as sitk

    image = sitk.DICOMOrient(sitk.Cast(read_image(path), sitk.sitkFloat32), "LPS")
    spacing_mm, size = grid.spacing_mm[::-1], grid.shape[::-1]
    for axis, (own, wanted) in enumerate(zip(image.GetSpacing(), spacing_mm, strict=True)):
        # the filter needs four voxels; thinner images are not blurred
        if wanted > own and image.GetSize()[axis] >= 4:
            sigma_mm = math.sqrt(wanted**2 - own**2) / _FWHM_OF_SIGMA
            image = sitk.RecursiveGaussian(image, sigma_mm, False, sitk.RecursiveGaussianImageFilter.ZeroOrder, axis)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    middle_mm = image.TransformContinuousIndexToPhysicalPoint([(voxels - 1) / 2 for voxels in image.GetSize()])
    first_mm = np.array(middle_mm) - direction @ (np.array(spacing_mm) * (np.array(size) - 1) / 2)
    resampled = sitk.Resample(
        image, size, sitk.Transform(), sitk.sitkLinear, first_mm.tolist(), spacing_mm, image.GetDirection(), OUTSIDE_HU
    )
    try:
        return round_to_int16(sitk.GetArrayFromImage(resampled))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


class VolumeCache:
    """Volumes on one grid in a folder.

    Args:
        folder: folder of the cache.
        grid: grid of the volumes.
    """

    def __init__(self, folder: Path, grid: Grid) -> None:
        self.folder = folder
        self.grid = grid
        self._manifest = Manifest(folder)

    def complete(self, cases: Sequence[Case], *, workers: int, on_case: Callable[[], object] = lambda: None) -> None:
        """Create volumes that are missing or whose image has changed.

        Args:
            cases: cases that must be in the cache afterwards.
            workers: number of processes.
            on_case: called after each case.

        Raises:
            UserError: the folder holds volumes on another grid, or images cannot be read (all are named; the others are
                finished).
        """
        from fvae_nnunet.jobs.locks import CaseLocks
        from fvae_nnunet.jobs.pipeline import StageSeconds, run_cases

        self._manifest.begin("classifier volumes", asdict(self.grid) | {"outside_hu": OUTSIDE_HU}, {})
        images = {case.key: case.image for case in cases}
        failed: dict[str, str] = {}
        with CaseLocks([self.folder]) as locks:
            for outcome in run_cases(
                locks.each(sorted(images)),
                read=partial(_read, self.folder, images, self.grid),
                write=partial(_write, self.folder, images),
                workers=workers,
                seconds=StageSeconds(),
            ):
                locks.release(outcome.case)
                if outcome.error is not None:
                    known = isinstance(outcome.error, UserError)
                    failed[outcome.case] = str(outcome.error) if known else repr(outcome.error)
                on_case()
        if failed:
            raise UserError(
                f"{len(failed)} of {len(images)} images cannot be used; repair them, or remove their cases from the "
                "dataset's reports:\n  " + "\n  ".join(f"{case}: {reason}" for case, reason in sorted(failed.items()))
            )

    def load(self, key: str) -> np.ndarray:
        """Load the volume of a completed case, int16 HU (z, y, x)."""
        volume_hu: np.ndarray = np.load(self.folder / f"{key}.npy")
        return volume_hu

    def digest(self, key: str) -> str:
        """sha256 of the image from which a completed volume was made."""
        record = self._manifest.read_case(key)
        assert record is not None, key
        (digest,) = record["inputs"].values()
        return str(digest)


@dataclass(frozen=True)
class _Made:
    volume_hu: np.ndarray | None
    digest: str
    state: list[int]


def _state(path: Path) -> list[int]:
    state = path.stat()
    return [state.st_size, state.st_mtime_ns]


def _read(folder: Path, images: Mapping[str, Path], grid: Grid, case: str) -> _Made | None:
    """Read a case; None: nothing to do; without volume: the image was touched, but is unchanged."""
    manifest, path, state = Manifest(folder), images[case], _state(images[case])
    record = manifest.read_case(case, {"state": [int]})
    outputs = [folder / f"{case}.npy"]
    if (
        record is not None
        and record["state"] == state
        and manifest.is_done(case, inputs=record["inputs"], outputs=outputs)
    ):
        return None
    digest = sha256_of_file(path)
    if manifest.is_done(case, inputs={path.name: digest}, outputs=outputs):
        return _Made(None, digest, state)
    return _Made(read_on_grid(path, grid), digest, state)


def _write(folder: Path, images: Mapping[str, Path], case: str, made: _Made) -> dict[str, Any]:
    path = folder / f"{case}.npy"
    outputs = Manifest(folder).outputs(case)
    if made.volume_hu is not None:
        content = io.BytesIO()
        np.save(content, made.volume_hu)
        outputs = {path: write_bytes(path, content.getvalue())}
    results = {"state": made.state}
    Manifest(folder).write_case(case, inputs={images[case].name: made.digest}, outputs=outputs, results=results)
    return results
