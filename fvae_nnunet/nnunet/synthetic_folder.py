"""Folder of synthetic cases, written by ``fvae-synthesize`` and read by preprocessing and report.

::

    dataset.json                      as in the source dataset
    imagesTr/<case>_0000.nii.gz       accepted cases in nnU-Net's raw format, with the geometry of the source case
    labelsTr/<case>.nii.gz
    structuresTr/<case>.nii.gz        structures of a volume from a list, with a model of structures
    structuresTr/structures.json      names of their values
    records/<case>.json               how the case was made, and its quality
    rejected/imagesTr, labelsTr, records    the same for cases that quality control rejected
    real_lesions.json                 measures of the dataset's real lesions, for quality control
    fvae_manifest/                    settings and complete cases (``manifest``)

A record::

    {"case": "synthetic_0000", "number": 0, "seed": 0, "dataset": "Dataset007_Pancreas",
     "source_case": "pancreas_001", "mode": "inpaint", "accepted": true, "reasons": [],
     "text": null, "findings": null,
     "lesions": [{"shape": "ellipsoid", "borrowed_from": null, "diameter_mm": 14.2, "voxels": 830,
                  "centre_voxel": [z, y, x], "centre_mm": [x, y, z], "inside_fraction": 0.97,
                  "appearance": {"core_mean_hu": 52.0, "texture_sd_hu": 7.0}, "replaces": null}],
     "label": {"name": "tumour", "value": 2},
     "model": {"folder": "...", "weights_sha256": "...", "vae": "...", "vae_sha256": "...",
               "dataset": "Dataset007_Pancreas", "training_cases": [...]},
     "settings": {...}, "quality": {...}}

``centre_voxel`` is an index into the image's array (z, y, x as read by SimpleITK), ``centre_mm`` the same point in
patient coordinates (x, y, z; SimpleITK). ``borrowed_from`` is the donor of the shape: the case of a ``borrowed`` shape,
or the file of a shape of a ``bank``, which is not a case of the dataset. ``appearance`` is the requested appearance of
the lesion, null if it was left to the model. ``replaces`` holds diameter and voxels of the original lesion if it was
grown or shrunk (``shape`` is ``own``), null for a new lesion. ``reasons`` says why a case was rejected, one sentence
each. ``dataset`` of the model is that of its training cases; records of version 0.1.0 lack it. ``text`` is the report
that it was made with, ``findings`` its findings from the list: {name: 0 or 1}, all names of the dataset.

For a volume from a list (``case_list``), ``number`` is null, and ``source_case`` is null if it was made from a file of
structures. ``lesions`` has an entry for each disease given in the row, with all its components together (``shape`` is
``given``, and ``name`` is added), and ``label`` is that of the largest of them; its name and value are null if there is
none. All diseases in the label map are in::

     "disease_masks": [{"label": 1, "name": "nodule", "voxels": 830, "given": true}]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvae_nnunet.errors import UserError
from fvae_nnunet.files.checked_json import read_json
from fvae_nnunet.nnunet.ct_channels import channel_names
from fvae_nnunet.nnunet.files import read_dataset_json

REJECTED = "rejected"
BANK = "bank"
"""``shape`` of a lesion whose donor is a file of a bank of shapes."""

NEEDED = {
    "case": str,
    "dataset": str,
    "source_case": (str, None),
    "lesions": [{"diameter_mm?": float, "borrowed_from?": (str, None)}],
    "label": ({"value?": (int, None)}, None),
    "model": dict,
}
"""Required content of every record; a shape of ``files.checked_json``."""
_REMEDY = "Remove it and run fvae-synthesize again"


@dataclass(frozen=True)
class SyntheticCase:
    """A synthetic case in its folder.

    Attributes:
        record: record of the case, see the module.
        images: files of its channels, in order.
        label: file of its segmentation.
    """

    record: dict[str, Any]
    images: tuple[Path, ...]
    label: Path

    @property
    def name(self) -> str:
        return str(self.record["case"])


@dataclass(frozen=True)
class CasePaths:
    """Paths of the files of a case.

    Attributes:
        images: files of the channels, in order.
        label: file of the segmentation.
        record: JSON file of the record.
    """

    images: tuple[Path, ...]
    label: Path
    record: Path

    @classmethod
    def of(cls, folder: Path, case: str, *, channels: int, file_ending: str, accepted: bool) -> CasePaths:
        root = folder if accepted else folder / REJECTED
        return cls(
            tuple(root / "imagesTr" / f"{case}_{channel:04d}{file_ending}" for channel in range(channels)),
            root / "labelsTr" / f"{case}{file_ending}",
            root / "records" / f"{case}.json",
        )


def shape_donors(record: Mapping[str, Any]) -> list[str]:
    """Cases of the dataset whose lesion shapes a synthetic case borrows, sorted, without files of a bank."""
    lesions = (lesion for lesion in record["lesions"] if lesion.get("shape") != BANK)
    return sorted({lesion["borrowed_from"] for lesion in lesions if lesion.get("borrowed_from")})


def synthetic_dataset_json(folder: Path) -> dict[str, Any]:
    """Read ``dataset.json`` of a folder of synthetic cases; UserError if it is not such a folder."""
    path = folder / "dataset.json"
    has_records = (folder / "records").is_dir() or (folder / REJECTED / "records").is_dir()
    if not has_records or not path.is_file():
        raise UserError(f"{folder} is not a folder of synthetic cases; fvae-synthesize makes such folders")
    return read_dataset_json(path)


def read_synthetic_cases(folder: Path, *, accepted: bool = True) -> list[SyntheticCase]:
    """Read the accepted (or rejected) cases of a folder, sorted by name; an empty list if there are none.

    Raises:
        UserError: it is not a folder of synthetic cases, files of a case are missing, or a record is incomplete.
    """
    dataset_json = synthetic_dataset_json(folder)
    channels = len(channel_names(dataset_json))
    ending = dataset_json["file_ending"]
    cases = []
    for path in sorted((folder if accepted else folder / REJECTED).joinpath("records").glob("*.json")):
        paths = CasePaths.of(folder, path.stem, channels=channels, file_ending=ending, accepted=accepted)
        missing = [file for file in (*paths.images, paths.label) if not file.is_file()]
        if missing:
            raise UserError(f"{missing[0]} is missing, although {path} exists; run fvae-synthesize again")
        record = read_json(path, NEEDED, remedy=_REMEDY)
        if record["case"] != path.stem:
            raise UserError(f"{path} describes {record['case']}. {_REMEDY}")
        cases.append(SyntheticCase(record, paths.images, paths.label))
    return cases
