"""Whole volumes of a list one by one: class map from structures and disease masks, generate, write.

Rows are checked against dataset and model before anything is made; see ``case_list`` for what they say.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fvae_nnunet.ct.files import write_volume
from fvae_nnunet.files.recorded import sha256_of_file
from fvae_nnunet.jobs.manifest import MANIFEST_FOLDER, Manifest, write_json
from fvae_nnunet.jobs.pipeline import Outcome, StageSeconds, run_cases
from fvae_nnunet.nnunet.structures import TRAINING_FOLDER
from fvae_nnunet.nnunet.synthetic_folder import CasePaths
from fvae_nnunet.synthesis.generation.case_list import ListedCase
from fvae_nnunet.synthesis.generation.output import describe, noise_of, open_output
from fvae_nnunet.synthesis.generation.painting import PaintSettings, generated_volume
from fvae_nnunet.synthesis.generation.volume_inputs import VolumeInputs, read_volume_inputs
from fvae_nnunet.synthesis.lesions.placement import position_of
from fvae_nnunet.synthesis.lesions.shapes import equivalent_diameter_mm
from fvae_nnunet.synthesis.model.layout import Layout
from fvae_nnunet.synthesis.sources.cases import SourceDataset

if TYPE_CHECKING:
    from fvae_nnunet.synthesis.model.latent_diffusion import LatentDiffusion


@dataclass(frozen=True)
class ListJob:
    """Everything that decides the volumes of a list but the model, in picklable form.

    Attributes:
        dataset: where source cases are from, with the classes of the model.
        listed: the rows by case.
        finding_names: of the dataset's ``reports.json``; empty where there is none.
        output: the folder.
        seed: of everything random.
        paint: how to sample; its text is that of the row.
        model_folder: for the record.
    """

    dataset: SourceDataset
    listed: dict[str, ListedCase]
    finding_names: tuple[str, ...]
    output: Path
    seed: int
    paint: PaintSettings
    model_folder: Path

    @property
    def manifest(self) -> Manifest:
        return Manifest(self.output / MANIFEST_FOLDER)

    def recorded(self) -> dict[str, Any]:
        """The settings that change a voxel, for manifest and record; without the model's and the row's."""
        sampling = {name: value for name, value in asdict(self.paint).items() if name in ("steps", "eta", "guidance")}
        return {
            "seed": self.seed,
            "dataset": self.dataset.name,
            "lesions": self.dataset.lesions,
            "organ": self.dataset.organ.recorded,
            "mode": "full",
            "from": "list",
            "sampling": sampling,
        }

    def inputs(self, listed: ListedCase) -> dict[str, str]:
        """Digests of the row and of all files that its volume is made from."""
        digests = {"row": hashlib.sha256(json.dumps(listed.recorded, sort_keys=True).encode()).hexdigest()}
        if listed.source is not None:
            digests |= self.dataset.digests(listed.source)
        return digests | {f"{role} {path.name}": sha256_of_file(path) for role, path in listed.mask_files}

    def outputs(self, case: str) -> list[Path]:
        """Image, label, record, and for a model of structures their mask."""
        ending = self.dataset.file_ending
        paths = CasePaths.of(self.output, case, channels=1, file_ending=ending, accepted=True)
        masks = [] if self.dataset.organ.structures is None else [self.output / TRAINING_FOLDER / f"{case}{ending}"]
        return [paths.images[0], paths.label, paths.record, *masks]


@dataclass(frozen=True)
class _Generated:
    ready: VolumeInputs
    volume_hu: np.ndarray
    model: dict[str, Any]


def generate_listed(
    job: ListJob,
    model: LatentDiffusion,
    *,
    cases: Iterable[str],
    workers: int,
    seconds: StageSeconds,
    overwrite: bool = False,
    on_step: Callable[[str, int, int], object] | None = None,
) -> Generator[Outcome, None, None]:
    """Make the volumes that are not there yet.

    The result of each is ``{"accepted": True, "reasons": [], "said": what it was made from}``: quality control looks at
    lesions that were placed, and here nothing is.

    Args:
        job: what to make.
        model: what generates.
        cases: names, asked for one by one.
        workers: processes that read and write; 0: none.
        seconds: filled with where the time went.
        overwrite: empty the folder first.
        on_step: called with the case, sampling steps done and in all.

    Raises:
        UserError: the folder is not ours or was filled with other settings, or the disk is full.
    """
    job = replace(job, paint=job.paint.resolved(model.process))
    described = describe(model, job.model_folder)
    structures = job.dataset.organ.structures
    open_output(
        job.output, job.recorded(), described, job.dataset.dataset_json, structures=structures, overwrite=overwrite
    )

    def compute(case: str, ready: VolumeInputs) -> _Generated:
        listed = ready.listed
        name = int.from_bytes(hashlib.sha256(case.encode()).digest()[:8], "big")
        volume_hu = generated_volume(
            model,
            Layout.of(ready.class_map, ready.geometry.axial_spacing_mm, organs=len(job.dataset.organ.class_names)),
            job.paint,
            text=listed.text,
            generator=noise_of([job.seed, name] if listed.seed is None else [listed.seed]),
            on_step=None if on_step is None else partial(on_step, case),
        )
        return _Generated(ready, volume_hu, described)

    return run_cases(
        cases,
        read=partial(_read, job),
        compute=compute,
        write=partial(_write, job),
        workers=workers,
        seconds=seconds,
    )


def _read(job: ListJob, case: str) -> VolumeInputs | None:
    listed = job.listed[case]
    inputs = job.inputs(listed)
    if job.manifest.is_done(case, inputs=inputs, outputs=job.outputs(case)):
        return None
    return read_volume_inputs(listed, job.dataset, inputs)


def _write(job: ListJob, case: str, generated: _Generated) -> dict[str, Any]:
    ready = generated.ready
    image, label, record, *masks = outputs = job.outputs(case)
    write_volume(image, ready.geometry.as_in_file(generated.volume_hu), ready.geometry)
    write_volume(label, ready.geometry.as_in_file(ready.labels), ready.geometry)
    result: dict[str, Any] = {"accepted": True, "reasons": []}
    if ready.structures is not None:
        write_volume(masks[0], ready.geometry.as_in_file(ready.structures), ready.geometry)
    content = _record(job, case, generated)
    write_json(record, content)
    job.manifest.write_case(case, inputs=ready.digests, outputs=outputs, results=result)
    diseases = ", ".join(f"{mask['name']} ({mask['voxels']} voxels)" for mask in content["disease_masks"])
    origin = ready.listed.source or (ready.listed.structures.name if ready.listed.structures else "")
    return result | {"said": f"{len(ready.class_map)} slices from {origin} with {diseases or 'no disease'}"}


def _record(job: ListJob, case: str, generated: _Generated) -> dict[str, Any]:
    ready, listed, dataset = generated.ready, generated.ready.listed, job.dataset
    present = [name for name, value in dataset.lesions.items() if (ready.labels == value).any()]
    first = max(ready.given, key=lambda name: ready.given[name], default=next(iter([*present, *dataset.lesions]), None))
    return {
        "case": case,
        "number": None,
        "seed": job.seed if listed.seed is None else listed.seed,
        "dataset": dataset.name,
        "source_case": listed.source,
        "mode": "full",
        "accepted": True,
        "reasons": [],
        "text": listed.text,
        "findings": None
        if listed.findings is None
        else {name: int(name in listed.findings) for name in job.finding_names},
        "lesions": [_lesion(ready, name, dataset.lesions[name]) for name, voxels in ready.given.items() if voxels],
        "disease_masks": [
            {
                "label": dataset.lesions[name],
                "name": name,
                "voxels": int(np.count_nonzero(ready.labels == dataset.lesions[name])),
                "given": name in ready.given,
            }
            for name in present
        ],
        "label": {"name": first, "value": None if first is None else dataset.lesions[first]},
        "model": generated.model,
        "settings": job.recorded() | {"row": listed.recorded},
        "quality": {"lesions": [], "limits": {}},
    }


def _lesion(ready: VolumeInputs, name: str, value: int) -> dict[str, Any]:
    """A disease that the row gave, as ``synthetic_folder`` describes lesions; all its pieces together."""
    mask = ready.geometry.as_in_file(ready.labels == value)
    counts = [mask.sum(axis=tuple(other for other in range(3) if other != axis)) for axis in range(3)]
    voxels = int(counts[0].sum())
    centre = np.array([float((np.arange(len(count)) * count).sum()) / voxels for count in counts])
    return {
        "shape": "given",
        "borrowed_from": None,
        "name": name,
        "diameter_mm": round(equivalent_diameter_mm(voxels, ready.geometry.axial_spacing_mm), 2),
        "voxels": voxels,
        "centre_voxel": [round(float(index), 2) for index in centre],
        "centre_mm": [round(float(place), 2) for place in position_of(centre, ready.geometry)],
    }
