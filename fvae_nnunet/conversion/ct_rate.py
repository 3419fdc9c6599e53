"""CT-RATE's volumes: what their names say, and where they lie.

The published folders (huggingface.co/datasets/ibrahimhamamci/CT-RATE)::

    dataset/train_fixed/train_1/train_1_a/train_1_a_1.nii.gz     since 2025: HU, geometry in the header
    dataset/train/train_1/train_1_a/train_1_a_1.nii.gz           first release: stored values, blank header
    dataset/valid_fixed/..., dataset/valid/...
    dataset/metadata/train_metadata.csv, validation_metadata.csv, no_chest_train.txt, no_chest_valid.txt
    dataset/radiology_text_reports/train_reports.csv, validation_reports.csv
    dataset/multi_abnormality_labels/train_predicted_labels.csv, valid_predicted_labels.csv
    dataset/ts_seg/ts_total/train_fixed/train_1/train_1_a/train_1_a_1.nii.gz   TotalSegmentator's structures
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fvae_nnunet.errors import UserError

SPLITS = ("train", "valid")
ENDING = ".nii.gz"
_NAME = re.compile(r"(train|valid)_([1-9]\d*)_([a-z]+)_([1-9]\d*)(?:\.nii\.gz)?")

METADATA_FILES = {"train": "metadata/train_metadata.csv", "valid": "metadata/validation_metadata.csv"}
REPORT_FILES = {
    "train": "radiology_text_reports/train_reports.csv",
    "valid": "radiology_text_reports/validation_reports.csv",
}
LABEL_FILES = {
    "train": "multi_abnormality_labels/train_predicted_labels.csv",
    "valid": "multi_abnormality_labels/valid_predicted_labels.csv",
}
NO_CHEST_FILES = {"train": "metadata/no_chest_train.txt", "valid": "metadata/no_chest_valid.txt"}
STRUCTURES_FOLDER = "ts_seg/ts_total"


@dataclass(frozen=True, order=True)
class VolumeName:
    """What the name of a volume says: ``train_1_a_2.nii.gz`` is reconstruction 2 of scan a of patient 1.

    Volumes sort by split, patient, scan and reconstruction.
    """

    split: str
    patient_number: int
    scan_letter: str
    reconstruction: int

    @classmethod
    def parse(cls, name: str) -> VolumeName | None:
        """From a file's name with or without ``.nii.gz``; None where it is no such name."""
        match = _NAME.fullmatch(name)
        return cls(match[1], int(match[2]), match[3], int(match[4])) if match else None

    @property
    def patient(self) -> str:
        """The patient, such as ``train_1``: numbers start anew in each split."""
        return f"{self.split}_{self.patient_number}"

    @property
    def scan(self) -> str:
        return f"{self.patient}_{self.scan_letter}"

    @property
    def case(self) -> str:
        """The name without ending: what the case is called in nnU-Net's folders."""
        return f"{self.scan}_{self.reconstruction}"

    @property
    def file_name(self) -> str:
        return self.case + ENDING

    @property
    def nested(self) -> Path:
        """Where the published folders keep it below ``train_fixed`` and the like."""
        return Path(self.patient, self.scan, self.file_name)


def data_folder(root: Path) -> Path:
    """The published ``dataset`` folder: below ``root``, or ``root`` itself.

    Raises:
        UserError: ``root`` is no folder.
    """
    if not root.is_dir():
        raise UserError(f"{root} is no folder")
    inside = (root / "dataset", root / "data_volumes" / "dataset")
    return next((folder for folder in inside if folder.is_dir()), root)


def published_files(folder: Path, names: dict[str, str], splits: Iterable[str]) -> list[Path]:
    """Those of the published files of these splits that are there."""
    return [path for split in splits if (path := folder / names[split]).is_file()]


def find_volumes(root: Path, splits: Iterable[str]) -> dict[VolumeName, Path]:
    """The volumes of these splits, sorted. Of a volume in ``train_fixed`` and in ``train`` the fixed one counts.

    A folder without these subfolders may hold the files themselves.

    Raises:
        UserError: no volume, a file with another name, or one volume twice.
    """
    folder = data_folder(root)
    found: dict[VolumeName, Path] = {}
    foreign: list[Path] = []
    searched = [folder / f"{split}{suffix}" for split in splits for suffix in ("_fixed", "")]
    present = [place for place in searched if place.is_dir()]
    for place in present or [folder]:
        here: dict[VolumeName, Path] = {}
        for path in sorted(place.rglob(f"*{ENDING}") if present else place.glob(f"*{ENDING}")):
            name = VolumeName.parse(path.name)
            if path.name.startswith("."):
                continue
            if name is None:
                foreign.append(path)
            elif name in here:
                raise UserError(f"{here[name]} and {path} are the same volume; remove one of them")
            elif name.split in splits:
                here[name] = path
        found = here | found
    if foreign:
        raise UserError(
            f"{foreign[0]} is not named as CT-RATE's volumes are (train_1_a_1{ENDING}); {len(foreign)} such files. "
            "Move them elsewhere"
        )
    if not found:
        raise UserError(
            f"{root} holds no volume of CT-RATE; looked in {', '.join(str(place) for place in searched)} and for "
            f"train_1_a_1{ENDING} and the like in {folder}"
        )
    return dict(sorted(found.items()))


def first_reconstructions(volumes: Iterable[VolumeName], converted: Iterable[VolumeName] = ()) -> list[VolumeName]:
    """The volume with the lowest reconstruction number of each scan, sorted; none other of a scan already converted.

    CT-RATE has on average two reconstructions of a scan (kernels of lung and soft tissue): the same anatomy twice.

    Args:
        volumes: to choose from.
        converted: in the dataset already; they need not be among ``volumes``.
    """
    volumes = sorted(volumes)
    chosen: dict[str, VolumeName] = {}
    for volume in [*sorted(converted), *volumes]:
        chosen.setdefault(volume.scan, volume)
    return [volume for volume in volumes if chosen[volume.scan] == volume]


def read_no_chest(paths: Iterable[Path]) -> set[VolumeName]:
    """The volumes that the publishers list as scans of other body parts, one name or path a line.

    Raises:
        UserError: a line is no volume's name.
    """
    listed = set()
    for path in paths:
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if not line.strip():
                continue
            name = VolumeName.parse(line.strip().replace("\\", "/").rsplit("/", 1)[-1])
            if name is None:
                raise UserError(f"{path}, line {number}: {line!r} is no name of a volume")
            listed.add(name)
    return listed


def read_selection(path: Path, volumes: Iterable[VolumeName]) -> set[VolumeName]:
    """The volumes that a list names: a volume, a scan (``train_1_a``) or a patient (``train_1``) a line.

    Raises:
        UserError: a line names nothing that is there.
    """
    if not path.is_file():
        raise UserError(f"`selection`: {path} is no file")
    by_name: dict[str, set[VolumeName]] = {}
    for volume in volumes:
        for name in (volume.patient, volume.scan, volume.case):
            by_name.setdefault(name, set()).add(volume)
    lines = [line.strip().removesuffix(ENDING) for line in path.read_text().splitlines() if line.strip()]
    unknown = [line for line in lines if line not in by_name]
    if unknown:
        raise UserError(
            f"`selection`: {path}: {len(unknown)} of {len(lines)} lines name no volume that is there and belongs to "
            f"`split` (first: {unknown[0]})"
        )
    return set().union(*(by_name[line] for line in lines))
