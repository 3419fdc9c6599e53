"""Generate the whole volumes of a list from class maps of structures and disease masks, and write them.

Rows are checked against dataset and model before anything is generated; see ``case_list`` for their format.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fvae_nnunet.ct.files import write_volume
from fvae_nnunet.files.recorded import sha256_of_file
from fvae_nnunet.jobs.manifest import write_json
from fvae_nnunet.nnunet.structures import NAMES_FILE, TRAINING_FOLDER
from fvae_nnunet.nnunet.synthetic_folder import CasePaths
from fvae_nnunet.numbers_as_text import counted
from fvae_nnunet.synthesis.generation.case_list import ListedCase
from fvae_nnunet.synthesis.generation.job import Generated, Job
from fvae_nnunet.synthesis.generation.painting import generated_volume, noise_of
from fvae_nnunet.synthesis.generation.volume_inputs import VolumeInputs, read_volume_inputs
from fvae_nnunet.synthesis.lesions.placement import position_of
from fvae_nnunet.synthesis.lesions.shapes import equivalent_diameter_mm
from fvae_nnunet.synthesis.model.layout import Layout

if TYPE_CHECKING:
    from fvae_nnunet.nnunet.segmenter import Segmenter
    from fvae_nnunet.synthesis.model.latent_diffusion import LatentDiffusion
    from fvae_nnunet.synthesis.model.sampling import OnStep


@dataclass(frozen=True, kw_only=True)
class ListJob(Job[VolumeInputs]):
    """The volumes of a list. There is no quality control, because it needs placed lesions.

    Attributes:
        listed: case -> its row.
        finding_names: names of the findings in the dataset's ``reports.json``; empty without this file.
    """

    listed: dict[str, ListedCase]
    finding_names: tuple[str, ...]

    def recorded(self) -> dict[str, Any]:
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

    def begin(self, model: dict[str, Any], *, overwrite: bool) -> None:
        super().begin(model, overwrite=overwrite)
        structures = self.dataset.organ.structures
        if structures is not None:
            write_json(self.output / TRAINING_FOLDER / NAMES_FILE, dict(structures.values))

    def inputs(self, listed: ListedCase) -> dict[str, str]:
        """Digests of the row and of all input files of its volume."""
        digests = {"row": hashlib.sha256(json.dumps(listed.recorded, sort_keys=True).encode()).hexdigest()}
        if listed.source is not None:
            digests |= self.dataset.digests(listed.source)
        return digests | {f"{role} {path.name}": sha256_of_file(path) for role, path in listed.mask_files}

    def outputs(self, case: str) -> list[Path]:
        """Image, label, record, and for models of structures also their mask."""
        ending = self.dataset.file_ending
        paths = CasePaths.of(self.output, case, channels=1, file_ending=ending, accepted=True)
        masks = [] if self.dataset.organ.structures is None else [self.output / TRAINING_FOLDER / f"{case}{ending}"]
        return [paths.images[0], paths.label, paths.record, *masks]

    def read(self, case: str) -> VolumeInputs | None:
        listed = self.listed[case]
        inputs = self.inputs(listed)
        if self.manifest.is_done(case, inputs=inputs, outputs=self.outputs(case)):
            return None
        return read_volume_inputs(listed, self.dataset, inputs)

    def generate(
        self,
        case: str,
        ready: VolumeInputs,
        model: LatentDiffusion,
        segmenter: Segmenter | None,
        on_step: OnStep | None,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        listed = ready.listed
        name = int.from_bytes(hashlib.sha256(case.encode()).digest()[:8], "big")
        volume_hu = generated_volume(
            model,
            Layout.of(ready.class_map, ready.geometry.axial_spacing_mm, organs=len(self.dataset.organ.class_names)),
            self.paint,
            text=listed.text,
            generator=noise_of([self.seed, name] if listed.seed is None else [listed.seed]),
            on_step=on_step,
        )
        return volume_hu, None

    def write(self, case: str, generated: Generated[VolumeInputs]) -> dict[str, Any]:
        ready = generated.ready
        image, label, record, *masks = outputs = self.outputs(case)
        self.manifest.forget_case(case)
        record.unlink(missing_ok=True)  # of the volume that is replaced; an interruption leaves none
        write_volume(image, ready.geometry.as_in_file(generated.volume_hu), ready.geometry)
        write_volume(label, ready.geometry.as_in_file(ready.labels), ready.geometry)
        result: dict[str, Any] = {"accepted": True, "reasons": []}
        if ready.structures is not None:
            write_volume(masks[0], ready.geometry.as_in_file(ready.structures), ready.geometry)
        content = self._record(case, generated)
        write_json(record, content)
        self.manifest.write_case(case, inputs=ready.digests, outputs=outputs, results=result)
        masks_of = content["disease_masks"]
        diseases = ", ".join(f"{mask['name']} ({counted(mask['voxels'], 'voxel')})" for mask in masks_of)
        origin = ready.listed.source or (ready.listed.structures.name if ready.listed.structures else "")
        slices = counted(len(ready.class_map), "slice")
        return result | {"said": f"{slices} from {origin} with {diseases or 'no disease'}"}

    def _record(self, case: str, generated: Generated[VolumeInputs]) -> dict[str, Any]:
        ready, listed, dataset = generated.ready, generated.ready.listed, self.dataset
        present = [name for name, value in dataset.lesions.items() if (ready.labels == value).any()]
        first = max(
            ready.given, key=lambda name: ready.given[name], default=next(iter([*present, *dataset.lesions]), None)
        )
        return {
            "case": case,
            "number": None,
            "seed": self.seed if listed.seed is None else listed.seed,
            "dataset": dataset.name,
            "source_case": listed.source,
            "mode": "full",
            "accepted": True,
            "reasons": [],
            "text": listed.text,
            "findings": None
            if listed.findings is None
            else {name: int(name in listed.findings) for name in self.finding_names},
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
            "settings": self.recorded() | {"row": listed.recorded},
            "quality": {"lesions": [], "limits": {}},
        }


def _lesion(ready: VolumeInputs, name: str, value: int) -> dict[str, Any]:
    """The record of a disease given in the row, as ``synthetic_folder`` describes lesions; all its pieces together."""
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
