"""Convert each volume to an image in HU with correct geometry, a label map of diseases and a map of structures."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Mapping
from contextlib import ExitStack
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
from fvae_nnunet.files.recorded import atomic_write, sha256_of_file
from fvae_nnunet.jobs.manifest import MANIFEST_FOLDER, Manifest, sha256_of_files
from fvae_nnunet.jobs.pipeline import Outcome, StageSeconds, run_cases
from fvae_nnunet.nnunet.case_reports import DiseaseMask
from fvae_nnunet.nnunet.structures import NAMES_FILE

KIND = "conversion"


@dataclass(frozen=True)
class Source:
    """The inputs of one case.

    Attributes:
        volume: name of the volume.
        image: image file.
        split: target split, ``train`` or ``test``.
        metadata: scanner metadata; None if there is none.
        grounding: the findings and the file of their masks (None without findings); None: write no label map.
        problem: why the case cannot be converted, if this is known before its files are read.
    """

    volume: VolumeName
    image: Path
    split: str
    metadata: VolumeMetadata | None = None
    grounding: tuple[GroundedCase, Path | None] | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Conversion:
    """Settings of a conversion and its target folder.

    Attributes:
        raw: folder of the dataset in ``nnUNet_raw``.
        kind: ``ct-rate`` or ``rexgroundingct``.
        values, geometry: see ``hounsfield.to_hu`` and ``headers.true_geometry``.
        structures: masks of organ structures; None: write no structures.
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
        """All settings that affect voxel values."""
        program = self.structures.program if self.structures else None
        return {"source": self.kind, "values": self.values, "geometry": self.geometry, "structures": program}

    def outputs(self, source: Source) -> list[Path]:
        """The files written for a case; the image comes first."""
        where = (self.raw, source.split, source.volume.case)
        labels = [label_path(*where)] if source.grounding else []
        return [image_path(*where), *labels, *([structures_path(*where)] if self.structures else [])]


def begin_dataset(conversion: Conversion, left_out: Mapping[str, str], *, overwrite: bool) -> list[str]:
    """Start a dataset or resume one, and remove earlier cases that are now left out.

    Args:
        conversion: settings and target folder.
        left_out: case -> reason; the files and records of those that were converted before are deleted.
        overwrite: delete everything that was converted before.

    Returns:
        A sentence for each removed case.

    Raises:
        UserError: the folder was made with different settings, holds images of another origin, or a file that would be
            removed was modified; in that case nothing is removed.
    """
    manifest = conversion.manifest
    ours = manifest.read_of_kind(KIND) is not None
    if overwrite and ours:
        _delete(conversion)
    places = ("images*/*", "labels*/*", "dataset.json")
    foreign = next((path for place in places for path in sorted(conversion.raw.glob(place))), None)
    if foreign is not None and not ours:
        raise UserError(
            f"{conversion.raw} contains {foreign.name}, which is not from a conversion; choose another `dataset`"
        )
    manifest.begin(KIND, conversion.settings, {})
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
    """Convert cases, in worker processes if requested; cases already finished from the same files are skipped.

    Nothing is written for a case that fails; its earlier conversion is kept.

    The result of a case is its record: ``rescaled``, ``geometry`` (header or metadata), ``split``, ``hu`` (lowest and
    highest), ``disease_masks``, ``overlap_voxels``, ``structures`` and ``left_out`` (name -> voxels),
    ``absent_structures`` (names), and ``structure_overlap_voxels``.

    Args:
        sources: case -> its inputs.
        conversion: settings and target folder.
        cases: names of the cases to convert, consumed one by one.
        workers: number of worker processes; 0: convert in this process.
        seconds: filled with the time spent in each stage.
    """
    return run_cases(
        cases,
        read=partial(_convert, sources, conversion),
        workers=workers,
        seconds=seconds,
    )


def _delete(conversion: Conversion) -> None:
    """Delete the files of every case that has a record, the names of structures, and the records."""
    manifest = conversion.manifest
    for case in manifest.cases:
        for file in manifest.outputs(case):
            file.unlink(missing_ok=True)
    for names in conversion.raw.glob(f"structures*/{NAMES_FILE}"):
        names.unlink()
    manifest.remove(KIND)


def _written(manifest: Manifest, case: str) -> list[Path]:
    """The files named in the record of a case, to remove or replace them.

    Raises:
        UserError: one of them differs from its record, so it was modified since.
    """
    files = manifest.outputs(case)
    for path, file in files.items():
        if path.is_file() and file.damage(path):
            raise UserError(
                f"{path} was modified since it was written, so it is neither removed nor replaced; move it elsewhere"
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
    written = _written(manifest, case) if before is not None else []
    moved = written if before is not None and before["split"] != source.split else []

    volume, header = read_volume(source.image)
    geometry, geometry_from = true_geometry(header, volume.shape, source.metadata, mode=conversion.geometry)
    rescale = source.metadata.rescale if source.metadata and conversion.values != "hu" else None
    volume_hu, rescaled = to_hu(volume, rescale, mode=conversion.values)
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
        record |= {"structure_overlap_voxels": found.overlap_voxels, "absent_structures": list(found.absent)}

    with ExitStack() as complete:
        if source.grounding is not None:
            write_label_map(complete.enter_context(atomic_write(label_path(*where))), diseases.labels, geometry)
        if conversion.structures is not None:
            write_label_map(complete.enter_context(atomic_write(structures_path(*where))), found.labels, geometry)
        write_volume(complete.enter_context(atomic_write(outputs[0])), volume_hu, geometry)
        # interrupted from here on, the case is made again: without a record, its files are not taken for edited ones
        for path in moved:
            path.unlink(missing_ok=True)
        manifest.forget_case(case)
    manifest.write_case(case, inputs=inputs, outputs=outputs, results=record)
    return record


def _digest(content: object) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()


CASE_RECORD = {
    "split": str,
    "disease_masks?": [{"label": int, "name": str, "text": str, "voxels": int}],
    "structures?": {"*": int},
}
"""The parts of a case's record that are read again; a shape for ``files.checked_json``."""


def recorded_masks(record: Mapping[str, Any]) -> tuple[DiseaseMask, ...] | None:
    """The disease masks in a case's record; None if the case has no label map."""
    masks = record.get("disease_masks")
    return None if masks is None else tuple(DiseaseMask(**mask) for mask in masks)
