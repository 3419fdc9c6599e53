"""Each volume to an image in HU with its geometry, its label map of diseases and its map of structures."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fvae_nnunet.conversion.ct_rate import VolumeName
from fvae_nnunet.conversion.headers import true_geometry
from fvae_nnunet.conversion.hounsfield import to_hu
from fvae_nnunet.conversion.nnunet_dataset import image_path, label_path, structures_path
from fvae_nnunet.conversion.rexgroundingct import GroundedCase, read_disease_map
from fvae_nnunet.conversion.structures import StructureMasks
from fvae_nnunet.conversion.tables import VolumeMetadata
from fvae_nnunet.ct.files import read_volume, write_label_map, write_volume
from fvae_nnunet.errors import UserError
from fvae_nnunet.files.recorded import sha256_of_file
from fvae_nnunet.jobs.manifest import MANIFEST_FOLDER, Manifest, sha256_of_files
from fvae_nnunet.jobs.pipeline import Outcome, StageSeconds, run_cases
from fvae_nnunet.nnunet.case_reports import DiseaseMask


@dataclass(frozen=True)
class Source:
    """What a case is made from.

    Attributes:
        volume: its name.
        image: the file.
        split: ``train`` or ``test``, where it goes.
        metadata: of the scanner; None where there is none.
        grounding: its findings and the file of their masks, None where nothing was found; None to make no label map.
        problem: why it cannot be converted, known before its files are read.
    """

    volume: VolumeName
    image: Path
    split: str
    metadata: VolumeMetadata | None = None
    grounding: tuple[GroundedCase, Path | None] | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Conversion:
    """How cases are converted and where to.

    Attributes:
        raw: the dataset's folder in ``nnUNet_raw``.
        kind: ``ct-rate`` or ``rexgroundingct``.
        values, geometry: see ``hounsfield.to_hu`` and ``headers.true_geometry``.
        structures: the masks of organ structures; None for none.
    """

    raw: Path
    kind: str
    values: str = "auto"
    geometry: str = "auto"
    structures: StructureMasks | None = None

    @property
    def manifest(self) -> Manifest:
        return Manifest(self.raw / MANIFEST_FOLDER)

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting that changes a voxel."""
        program = self.structures.program if self.structures else None
        return {"source": self.kind, "values": self.values, "geometry": self.geometry, "structures": program}

    def outputs(self, source: Source) -> list[Path]:
        """The files of a case."""
        where = (self.raw, source.split, source.volume.case)
        labels = [label_path(*where)] if source.grounding else []
        return [image_path(*where), *labels, *([structures_path(*where)] if self.structures else [])]


def begin_dataset(conversion: Conversion, left_out: Mapping[str, str], *, overwrite: bool) -> list[str]:
    """Begin a dataset or go on with one; cases that are in it and left out now are removed.

    Args:
        conversion: how and where to.
        left_out: case -> why; of those that were converted before, the files that were written and the record go.
        overwrite: delete what was converted before.

    Returns:
        A sentence for each case that was removed.

    Raises:
        UserError: the folder was made with other settings, holds images that are not ours, or somebody changed a file
            that would be removed; nothing is removed then.
    """
    manifest = conversion.manifest
    ours = manifest.read() is not None
    if overwrite and ours:
        _delete(conversion)
    places = ("images*/*", "labels*/*", "dataset.json")
    foreign = next((path for place in places for path in sorted(conversion.raw.glob(place))), None)
    if foreign is not None and not ours:
        raise UserError(f"{conversion.raw} holds {foreign.name}, which is not ours; choose another `dataset`")
    manifest.begin("conversion", conversion.settings, {})
    removed = {case: _written(manifest, case) for case in manifest.cases if case in left_out}
    for case, files in removed.items():
        for path in files:
            path.unlink(missing_ok=True)
        manifest.forget_case(case)
    return [f"{case}: removed from the dataset: {left_out[case]}" for case in removed]


def convert_cases(
    sources: Mapping[str, Source],
    conversion: Conversion,
    *,
    cases: Iterable[str],
    workers: int,
    seconds: StageSeconds,
) -> Generator[Outcome, None, None]:
    """Convert cases, in other processes if there are workers; what was finished from the same files is left alone.

    Of a case that fails nothing is written: what was converted of it before stays.

    The result of a case is its record: ``rescaled``, ``geometry`` (header or metadata), ``hu`` (lowest and highest),
    ``disease_masks``, ``overlap_voxels``, ``structures`` and ``left_out`` (name -> voxels).

    Args:
        sources: by case.
        conversion: how.
        cases: which, asked for one by one.
        workers: processes; 0 for none.
        seconds: filled with where the time went.
    """
    return run_cases(
        cases,
        read=partial(_convert, sources, conversion),
        workers=workers,
        seconds=seconds,
    )


def _delete(conversion: Conversion) -> None:
    """Delete the files of every case that has a record, and the records."""
    manifest = conversion.manifest
    for case in manifest.cases:
        for file in manifest.outputs(case):
            file.unlink(missing_ok=True)
    manifest.remove()


def _written(manifest: Manifest, case: str) -> list[Path]:
    """The files that the record of a case names, to be removed.

    Raises:
        UserError: one of them is not as it was recorded: somebody else wrote it.
    """
    files = manifest.outputs(case)
    for path, file in files.items():
        if path.is_file() and file.damage(path):
            raise UserError(
                f"{case} is left out or in another split now, but {path} is not as it was written, so it is not "
                "removed; move it elsewhere"
            )
    return list(files)


def _convert(sources: Mapping[str, Source], conversion: Conversion, case: str) -> dict[str, Any] | None:
    source = sources[case]
    if source.problem is not None:
        raise UserError(source.problem)
    structure_files = (
        conversion.structures.files_of(case, source.volume.nested) if conversion.structures is not None else []
    )
    inputs = {source.image.name: sha256_of_file(source.image)}
    if source.metadata is not None:
        inputs["metadata"] = _digest(sorted(source.metadata.values.items()))
    if source.grounding is not None:
        grounded, mask_file = source.grounding
        inputs |= {"findings": _digest(grounded)}
        inputs |= {} if mask_file is None else {"mask": sha256_of_file(mask_file)}
    if structure_files:
        inputs["structures"] = sha256_of_files({path: sha256_of_file(path) for path in structure_files})
    outputs = conversion.outputs(source)
    manifest = conversion.manifest
    if manifest.is_done(case, inputs=inputs, outputs=outputs):
        return None
    before = manifest.read_case(case, CASE_RECORD)
    moved = _written(manifest, case) if before is not None and before["split"] != source.split else []

    volume, header = read_volume(source.image)
    geometry, geometry_from = true_geometry(header, volume.shape, source.metadata, mode=conversion.geometry)
    needs_rescale = source.metadata is not None and conversion.values != "hu"
    volume_hu, rescaled = to_hu(
        volume, source.metadata.rescale if needs_rescale and source.metadata else None, mode=conversion.values
    )
    record: dict[str, Any] = {"rescaled": rescaled, "geometry": geometry_from, "split": source.split}
    record["hu"] = [float(volume_hu.min()), float(volume_hu.max())]
    where = (conversion.raw, source.split, case)
    if source.grounding is not None:
        diseases = read_disease_map(mask_file, grounded, volume.shape)
        record["disease_masks"] = [asdict(mask) for mask in diseases.masks]
        record["overlap_voxels"] = diseases.overlap_voxels
    if conversion.structures is not None:
        geometries = {"its own header": header} | ({"the metadata": geometry} if geometry != header else {})
        found = conversion.structures.read(case, structure_files, volume.shape, geometries)
        record |= {"structures": found.voxels, "left_out": found.left_out}
        record["structure_overlap_voxels"] = found.overlap_voxels

    if source.grounding is not None:
        write_label_map(label_path(*where), diseases.labels, geometry)
    if conversion.structures is not None:
        write_label_map(structures_path(*where), found.labels, geometry)
    write_volume(outputs[0], volume_hu, geometry)
    for path in moved:
        path.unlink(missing_ok=True)
    manifest.write_case(case, inputs=inputs, outputs=outputs, results=record)
    return record


def _digest(content: object) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()


CASE_RECORD = {
    "split": str,
    "disease_masks?": [{"label": int, "name": str, "text": str, "voxels": int}],
    "structures?": {"*": int},
}
"""What is used again of the record of a case; a shape of ``files.checked_json``."""


def recorded_masks(record: Mapping[str, Any]) -> tuple[DiseaseMask, ...] | None:
    """The disease masks of a case's record; None where it has no label map."""
    masks = record.get("disease_masks")
    return None if masks is None else tuple(DiseaseMask(**mask) for mask in masks)
