"""A folder of synthetic cases, as ``fvae-synthesize`` writes it and the preprocessing and the report read it.

::

    dataset.json                      as the source dataset's
    imagesTr/<case>_0000.nii.gz       accepted cases in nnU-Net's raw format, geometry of the source case
    labelsTr/<case>.nii.gz
    structuresTr/<case>.nii.gz        from a list, with a model of structures: what the volume was made from
    structuresTr/structures.json      names of its values
    records/<case>.json               how the case was made and what its quality is
    rejected/imagesTr, labelsTr, records    the same for cases that quality control kept aside
    real_lesions.json                 figures of the dataset's real lesions, which quality control compares with
    fvae_manifest/                    settings, and which cases are complete (``manifest``)

A record::

    {"case": "synthetic_0000", "number": 0, "seed": 0, "dataset": "Dataset007_Pancreas",
     "source_case": "pancreas_001", "mode": "inpaint", "accepted": true, "reasons": [],
     "text": null, "findings": null,
     "lesions": [{"shape": "ellipsoid", "borrowed_from": null, "diameter_mm": 14.2, "voxels": 830,
                  "centre_voxel": [z, y, x], "centre_mm": [x, y, z], "inside_fraction": 0.97,
                  "appearance": {"core_mean_hu": 52.0, "texture_sd_hu": 7.0}, "replaces": null}],
     "label": {"name": "tumour", "value": 2},
     "model": {"folder": "...", "weights_sha256": "...", "vae": "...", "vae_sha256": "...", "training_cases": [...]},
     "settings": {...}, "quality": {...}}

``centre_voxel`` counts in the axes of the image's array (z, y, x as SimpleITK reads it), ``centre_mm`` is the same
point in the patient's space (x, y, z; SimpleITK). ``borrowed_from`` is the case that lent a ``borrowed`` shape, or
the file that lent one of a ``bank``, which is no case of the dataset. ``appearance`` is what the lesion was to look
like, null where that was left to the model, ``replaces`` diameter and voxels of the lesion that is now larger or
smaller (``shape`` is ``own``), null for a new one. ``reasons`` says why a case was rejected, a sentence each. ``text``
is the report that it was made with, ``findings`` what the list says of it: {name: 0 or 1}, all names of the dataset.

Of a volume from a list (``case_list``), ``number`` is null, ``source_case`` is null where it was made from a file of
structures, ``lesions`` has an entry for each disease that the row gave, all its pieces together (``shape`` is
``given``, and there is its ``name``), ``label`` is that of the largest of them, and there is, of all diseases in its
label map::

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
"""``shape`` of a lesion that a file of a bank of shapes has lent."""

NEEDED = {
    "case": str,
    "dataset": str,
    "source_case": (str, None),
    "lesions": [{"diameter_mm?": float, "borrowed_from?": (str, None)}],
    "label": ({"value?": int}, None),
    "model": dict,
}
"""What every record says; a shape of ``files.checked_json``."""
_REMEDY = "Remove it and run fvae-synthesize again"


@dataclass(frozen=True)
class SyntheticCase:
    """A synthetic case in its folder.

    Attributes:
        record: as the module says.
        images: its channels, in order.
        label: its segmentation.
    """

    record: dict[str, Any]
    images: tuple[Path, ...]
    label: Path

    @property
    def name(self) -> str:
        return str(self.record["case"])


@dataclass(frozen=True)
class CasePaths:
    """Where the files of a case belong.

    Attributes:
        images: the channels, in order.
        label: the segmentation.
        record: the JSON.
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


def cases_borrowed_from(record: Mapping[str, Any]) -> list[str]:
    """The cases of the dataset whose lesions lent a synthetic case their shape, sorted; files of a bank are none."""
    lesions = (lesion for lesion in record["lesions"] if lesion.get("shape") != BANK)
    return sorted({lesion["borrowed_from"] for lesion in lesions if lesion.get("borrowed_from")})


def synthetic_dataset_json(folder: Path) -> dict[str, Any]:
    """``dataset.json`` of a folder of synthetic cases; UserError where the folder is none."""
    path = folder / "dataset.json"
    has_records = (folder / "records").is_dir() or (folder / REJECTED / "records").is_dir()
    if not has_records or not path.is_file():
        raise UserError(f"{folder} is no folder of synthetic cases; fvae-synthesize makes one")
    return read_dataset_json(path)


def read_synthetic_cases(folder: Path, *, accepted: bool = True) -> list[SyntheticCase]:
    """The accepted (or the rejected) cases of a folder, by name; an empty list where there are none.

    Raises:
        UserError: the folder is not one of synthetic cases, files of a case are missing, or a record is incomplete.
    """
    dataset_json = synthetic_dataset_json(folder)
    channels = len(channel_names(dataset_json))
    ending = dataset_json["file_ending"]
    cases = []
    for path in sorted((folder if accepted else folder / REJECTED).joinpath("records").glob("*.json")):
        paths = CasePaths.of(folder, path.stem, channels=channels, file_ending=ending, accepted=accepted)
        missing = [file for file in (*paths.images, paths.label) if not file.is_file()]
        if missing:
            raise UserError(f"{missing[0]} is missing, though {path} describes it; run fvae-synthesize again")
        record = read_json(path, NEEDED, remedy=_REMEDY)
        if record["case"] != path.stem:
            raise UserError(f"{path} describes {record['case']}. {_REMEDY}")
        cases.append(SyntheticCase(record, paths.images, paths.label))
    return cases
