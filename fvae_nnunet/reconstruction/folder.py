"""Reconstruct every image of a folder into another folder, for test images and external pipelines."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fvae_nnunet.ct.files import image_ending, read_volume, write_volume
from fvae_nnunet.ct.geometry import Geometry
from fvae_nnunet.ct.hounsfield import check_volume_hu
from fvae_nnunet.ct.stored_images import check_image_file
from fvae_nnunet.errors import UserError
from fvae_nnunet.files.recorded import sha256_of_file
from fvae_nnunet.jobs.manifest import MANIFEST_FOLDER, Manifest
from fvae_nnunet.jobs.pipeline import Outcome, StageSeconds, run_cases
from fvae_nnunet.jobs.shared_arrays import compact
from fvae_nnunet.numbers_as_text import counted
from fvae_nnunet.reconstruction.settings import ReconstructionSettings
from fvae_nnunet.reconstruction.volume import Fidelity, fidelity, reconstruct_to_int16
from fvae_nnunet.vae.base import FrozenVAE

KIND = "reconstruction"


@dataclass(frozen=True)
class _Volume:
    volume_hu: np.ndarray
    geometry: Geometry
    digest: str


@dataclass(frozen=True)
class _Reconstructed:
    raw: _Volume
    view_hu: np.ndarray


def reconstruct_folder(
    images: dict[str, Path],
    output: Path,
    vae: FrozenVAE,
    *,
    settings: ReconstructionSettings,
    hu_as_is: bool = False,
    cases: Iterable[str] | None = None,
    workers: int,
    seconds: StageSeconds,
    made_with: dict[str, Any],
    overwrite: bool = False,
    reader: str | None = None,
    on_slices: Callable[[str, int, int], object] | None = None,
) -> Generator[Outcome, None, None]:
    """Write the reconstruction of each image under its own name: int16 HU, same geometry, same ending.

    Slices are taken along the axis nearest to the body axis. An image already finished with the same settings from the
    same file is skipped (its outcome has neither result nor error). The result of a case is its ``Fidelity``.

    Args:
        images: output of ``ct.files.find_images``.
        output: folder to write to; created if needed.
        vae, settings: the frozen VAE and the reconstruction settings.
        hu_as_is: also reconstruct images that cannot be in HU (``hounsfield``); False: their cases fail.
        cases: names of the images to reconstruct, consumed one by one; None: all.
        workers: number of processes for reading and writing; 0: none.
        seconds: filled with the time spent in each stage.
        made_with: information stored in the manifest for its readers.
        overwrite: make finished images again, also with different settings.
        reader: name of the nnU-Net reader for the images, see ``ct.files.read_volume``.
        on_slices: called with the case, its number of slices done and its total.

    Raises:
        UserError: the output is the input folder, has reconstructions made with different settings or images of
            another origin, or the disk is full.
    """
    if any(path.parent.resolve() == output.resolve() for path in images.values()):
        raise UserError(f"{output} is the input folder; the raw images would be overwritten. Choose another folder")
    manifest = Manifest(output / MANIFEST_FOLDER)
    targets = {case: output / (case + image_ending(path)) for case, path in images.items()}
    if overwrite and manifest.is_begun:
        manifest.remove(KIND)
    else:
        names = [target.name for target in targets.values()]
        manifest.refuse_foreign(output, names, kind=KIND, command="fvae-reconstruct")
    turned = {"reader": reader} if reader is not None and reader.endswith("WithReorient") else {}
    manifest.begin(KIND, settings.recorded_with(vae) | turned, made_with)

    def compute(case: str, raw: _Volume) -> _Reconstructed:
        order = raw.geometry.axial_order
        count = partial(on_slices, case) if on_slices is not None else None
        view = reconstruct_to_int16(
            vae,
            raw.volume_hu,
            settings,
            axis_order=order,
            spacing_mm=raw.geometry.spacing_mm[::-1],
            case=case,
            on_slices=count,
        )
        return _Reconstructed(raw, view)

    return run_cases(
        sorted(images) if cases is None else cases,
        read=partial(_read, images, targets, manifest, reader, hu_as_is),
        compute=compute,
        write=partial(_write, images, targets, manifest, settings.hu_window),
        workers=workers,
        seconds=seconds,
    )


def check_folder(folder: Path, images: dict[str, Path], make: Callable[..., str]) -> dict[str, Any]:
    """Check that a folder has a complete and current reconstruction of each image, and return its manifest.

    Args:
        folder: output folder of ``reconstruct_folder``.
        images: output of ``ct.files.find_images``.
        make: returns the command that makes the folder with given parameters, for messages.

    Raises:
        UserError: the folder was not written by ``reconstruct_folder``, or reconstructions are missing, incomplete or
            older than the images.
    """
    manifest = Manifest(folder / MANIFEST_FOLDER)
    content = manifest.read({"made_with": {"parameters": dict}})
    if content is None:
        raise UserError(f"{folder} was not written by fvae-reconstruct. Make it with: {make()}")
    lacking = [
        case
        for case, path in images.items()
        if not manifest.is_done(
            case, inputs={path.name: sha256_of_file(path)}, outputs=[folder / (case + image_ending(path))]
        )
    ]
    if lacking:
        raise UserError(
            f"in {folder}, {len(lacking)} of {counted(len(images), 'reconstruction')} are missing, incomplete or older "
            f"than the raw images (first: {lacking[0]}). Complete it with: {make(**content['made_with']['parameters'])}"
        )
    return content


def read_hu(path: Path, *, reader: str | None, hu_as_is: bool) -> tuple[np.ndarray, Geometry]:
    """Read a volume in HU as ``ct.files.read_volume``, in int16 if that is lossless.

    Raises:
        UserError: the file cannot be read, or without ``hu_as_is`` cannot be in HU.
    """
    volume_hu, geometry = read_volume(path, reader=reader)
    if not hu_as_is:
        check_volume_hu(volume_hu, path)
    return compact(volume_hu), geometry


def read_axial(path: Path) -> np.ndarray:
    """Read the volume of an image as (body axis, front-back, left-right) in HU."""
    volume_hu, geometry = read_volume(path)
    return compact(volume_hu).transpose(geometry.axial_order)


def _read(
    images: dict[str, Path], targets: dict[str, Path], manifest: Manifest, reader: str | None, hu_as_is: bool, case: str
) -> _Volume | None:
    # before the digest, which for a header would not depend on the data file it points to
    check_image_file(images[case], voxels_too=False)
    digest = sha256_of_file(images[case])
    if manifest.is_done(case, inputs={images[case].name: digest}, outputs=[targets[case]]):
        return None
    return _Volume(*read_hu(images[case], reader=reader, hu_as_is=hu_as_is), digest)


def _write(
    images: dict[str, Path],
    targets: dict[str, Path],
    manifest: Manifest,
    hu_window: tuple[float, float],
    case: str,
    reconstructed: _Reconstructed,
) -> Fidelity:
    raw = reconstructed.raw
    order = raw.geometry.axial_order
    result = fidelity(raw.volume_hu, reconstructed.view_hu, hu_window, axis_order=order)
    write_volume(targets[case], reconstructed.view_hu, raw.geometry)
    manifest.write_case(case, inputs={images[case].name: raw.digest}, outputs=[targets[case]], results=asdict(result))
    return result
