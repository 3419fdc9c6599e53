"""Measure the real lesions of a dataset (brightness, texture, size) once, and use them as donors of shapes.

``real_lesions.json``::

    {"dataset": "Dataset007_Pancreas", "lesion": "tumour", "organ": "label:pancreas",
     "digests": {"pancreas_001": {"image ...": "...", "label ...": "..."}},
     "measures": ["mean_hu", ...],
     "lesions": [{"case": "pancreas_001", "number": 1, "voxels": 830, "diameter_mm": 14.2, "mean_hu": 52.1, ...}]}

``measures`` are ``lesions.measures.MEASURES``; a file with other measures is ignored. ``number`` counts the connected
components (26 neighbours) of the lesion label from 1, as in SciPy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fvae_nnunet.ct.boxes import bounding_box, grown
from fvae_nnunet.ct.files import read_header, read_volume
from fvae_nnunet.ct.geometry import Geometry
from fvae_nnunet.ct.lesions import numbered_lesions
from fvae_nnunet.errors import UserError
from fvae_nnunet.files.checked_json import check_shape, read_json
from fvae_nnunet.jobs.manifest import write_json
from fvae_nnunet.jobs.pipeline import StageSeconds, run_cases
from fvae_nnunet.synthesis.lesions.measures import MEASURES, RING_MM, measure_lesion
from fvae_nnunet.synthesis.lesions.shapes import MIN_VOXELS, RealLesion, equivalent_diameter_mm
from fvae_nnunet.synthesis.sources.cases import SourceCase, SourceDataset, refuse_failed

if TYPE_CHECKING:
    from fvae_nnunet.synthesis.lesions.placed import PlacedLesion

FILE_NAME = "real_lesions.json"
"""File in the folder of synthetic cases, so that lesions are measured only once."""


@dataclass(frozen=True)
class RealLesions:
    """The measured real lesions of a dataset.

    Attributes:
        lesions: measures of each lesion as in the module docstring, sorted by case and number.
        digests: case -> sha256 of each of its files, by name; includes cases without lesions.
    """

    lesions: tuple[dict[str, Any], ...]
    digests: dict[str, dict[str, str]]

    def of_case(self, case: str) -> list[dict[str, Any]]:
        """The lesions of one case."""
        return [lesion for lesion in self.lesions if lesion["case"] == case]


def surroundings_of(source: SourceCase, lesions: Iterable[PlacedLesion] = ()) -> np.ndarray:
    """The voxels with which a lesion of the case is compared, bool: the organ (without one, the whole volume) except
    all real and placed lesions."""
    around = (source.organ if source.organ.any() else np.ones_like(source.lesion)) & ~source.any_lesion
    for lesion in lesions:
        around[lesion.box][lesion.shape] = False
    return around


def lesions_of(source: SourceCase) -> list[dict[str, Any]]:
    """The real lesions of a case with at least ``MIN_VOXELS`` voxels, as in ``RealLesions``."""
    from scipy import ndimage

    numbered, _ = numbered_lesions(source.lesion)
    around = surroundings_of(source)
    lesions = []
    for number, box in enumerate(ndimage.find_objects(numbered), start=1):
        voxels = int(np.count_nonzero(numbered[box] == number))
        if voxels < MIN_VOXELS:
            continue
        margins = np.ceil(RING_MM / np.asarray(source.spacing_mm)).astype(int)
        crop = grown(box, margins, numbered.shape)
        measured = measure_lesion(source.volume_hu[crop], numbered[crop] == number, around[crop], source.spacing_mm)
        diameter_mm = round(equivalent_diameter_mm(voxels, source.spacing_mm), 2)
        lesions.append({"case": source.case, "number": number, "voxels": voxels, "diameter_mm": diameter_mm} | measured)
    return lesions


def measure_real_lesions(
    dataset: SourceDataset, path: Path, *, workers: int, on_case: Callable[[], object]
) -> RealLesions:
    """Measure the real lesions of all cases of a dataset, reusing results in ``path`` for unchanged files.

    Args:
        dataset: the dataset.
        path: JSON file of earlier results; it is not written.
        workers: number of reading processes; 0: none.
        on_case: called after each case.

    Raises:
        UserError: cases cannot be measured; the message names all of them.
    """
    before = read_real_lesions(path, dataset)
    lesions = {case: before.of_case(case) for case in before.digests}
    digests, found, failed = {}, {}, {}
    for outcome in run_cases(
        dataset.cases,
        read=partial(_measure, dataset, before.digests, lesions),
        workers=workers,
        seconds=StageSeconds(),
    ):
        on_case()
        if outcome.error is not None:
            failed[outcome.case] = outcome.error
        else:
            digests[outcome.case], found[outcome.case] = outcome.result
    refuse_failed(failed, "measured", "Limits and borrowed shapes need all real lesions, so nothing was generated.")
    return RealLesions(tuple(lesion for case in sorted(found) for lesion in found[case]), digests)


def read_real_lesions(path: Path, dataset: SourceDataset) -> RealLesions:
    """Read the results for this dataset, lesion and organ; empty if the file is missing, or is for others or has other
    measures."""
    remedy = "Remove it to measure the lesions again"
    content = read_json(path, {}, remedy=remedy) if path.is_file() else {}
    if any(content.get(key) != value for key, value in _subject(dataset).items()):
        return RealLesions((), {})
    check_shape(path, content, {"digests": {"*": {"*": str}}, "lesions": [{"case": str}]}, remedy=remedy)
    return RealLesions(tuple(content["lesions"]), content["digests"])


def write_real_lesions(path: Path, dataset: SourceDataset, real: RealLesions) -> None:
    """Write the measured real lesions of a dataset to a file."""
    write_json(path, _subject(dataset) | {"digests": real.digests, "lesions": real.lesions})


def _subject(dataset: SourceDataset) -> dict[str, Any]:
    return {
        "dataset": dataset.name,
        "lesion": dataset.lesion_name,
        "organ": dataset.organ.recorded,
        "classes": list(dataset.class_names),
        "measures": list(MEASURES),
    }


def _measure(
    dataset: SourceDataset, before: dict[str, dict[str, str]], lesions: dict[str, list[dict[str, Any]]], case: str
) -> tuple[dict[str, str], list[dict[str, Any]]]:
    digests = dataset.digests(case)
    if before.get(case) == digests:
        return digests, lesions[case]
    return digests, lesions_of(dataset.read(case, digests=digests))


def borrow(dataset: SourceDataset, lesion: dict[str, Any]) -> RealLesion:
    """Read the mask of a real lesion from the segmentation of its case, in the geometry of the image.

    Raises:
        UserError: the segmentation cannot be read, or has changed since it was measured.
    """
    path = dataset.label_files[lesion["case"]]
    labels, _ = read_volume(path)
    _, geometry = read_header(dataset.image_files[lesion["case"]][dataset.ct_channel])
    mask = (labels == dataset.lesion_value).transpose(geometry.axial_order)
    return piece_of(path, mask, geometry, lesion, name=lesion["case"])


def piece_of(path: Path, mask: np.ndarray, geometry: Geometry, lesion: dict[str, Any], *, name: str) -> RealLesion:
    """Extract a connected component of a mask.

    Args:
        path: file of the mask, for messages.
        mask: bool (z, y, x), axial.
        geometry: geometry of the file.
        lesion: the ``number`` of the component from 1, as SciPy counts in this mask, and its ``voxels``.
        name: name of the donor.

    Raises:
        UserError: there is no such component.
    """

    numbered, n = numbered_lesions(mask)
    piece = numbered == lesion["number"]
    if lesion["number"] > n or np.count_nonzero(piece) != lesion["voxels"]:
        raise UserError(f"{path} has changed while it was used; run the command again")
    return RealLesion(name, piece[bounding_box(piece)], geometry.axial_spacing_mm)
