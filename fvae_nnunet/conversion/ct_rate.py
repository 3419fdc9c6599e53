"""The volumes of CT-RATE: their names and their places in the published folders.

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
from fvae_nnunet.numbers_as_text import counted

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
    """The parts of a volume's name: ``train_1_a_2.nii.gz`` is reconstruction 2 of scan a of patient 1.

    Volumes sort by split, patient, scan and reconstruction.
    """

    split: str
    patient_number: int
    scan_letter: str
    reconstruction: int

    @classmethod
    def parse(cls, name: str) -> VolumeName | None:
        """Parse a file name with or without ``.nii.gz``; None if it is not the name of a volume."""
        match = _NAME.fullmatch(name)
        return cls(match[1], int(match[2]), match[3], int(match[4])) if match else None

    @property
    def patient(self) -> str:
        """The patient, such as ``train_1``; patient numbers start again in each split."""
        return f"{self.split}_{self.patient_number}"

    @property
    def scan(self) -> str:
        return f"{self.patient}_{self.scan_letter}"

    @property
    def case(self) -> str:
        """The name without its ending, used as the case name in nnU-Net's folders."""
        return f"{self.scan}_{self.reconstruction}"

    @property
    def file_name(self) -> str:
        return self.case + ENDING

    @property
    def nested(self) -> Path:
        """The path of the volume below ``train_fixed``, ``train`` etc. in the published folders."""
        return Path(self.patient, self.scan, self.file_name)


def data_folder(root: Path) -> Path:
    """The published ``dataset`` folder: below ``root``, or ``root`` itself.

    Raises:
        UserError: ``root`` is not a folder.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder")
    inside = (root / "dataset", root / "data_volumes" / "dataset")
    return next((folder for folder in inside if folder.is_dir()), root)


def published_files(folder: Path, names: dict[str, str], splits: Iterable[str]) -> list[Path]:
    """The published files of these splits that exist."""
    return [path for split in splits if (path := folder / names[split]).is_file()]


def find_volumes(root: Path, splits: Iterable[str]) -> dict[VolumeName, Path]:
    """Find the volumes of these splits, sorted by name.

    If ``train_fixed`` and ``train`` both have a volume, the fixed one is used. A folder without these subfolders may
    contain the files directly.

    Raises:
        UserError: no volume is found, a file has another kind of name, or a volume occurs twice.
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
            f"{foreign[0]} is not named like a volume of CT-RATE (train_1_a_1{ENDING}); found "
            f"{counted(len(foreign), 'such file')}. Move {'it' if len(foreign) == 1 else 'them'} elsewhere"
        )
    if not found:
        raise UserError(
            f"{root} contains no volume of CT-RATE; searched {', '.join(str(place) for place in searched)}, and "
            f"{folder} for files such as train_1_a_1{ENDING}"
        )
    return dict(sorted(found.items()))


def first_reconstructions(volumes: Iterable[VolumeName], converted: Iterable[VolumeName] = ()) -> list[VolumeName]:
    """Choose one volume per scan, sorted: the one already converted, or the one with the lowest reconstruction number.

    CT-RATE has on average two reconstructions per scan (lung and soft-tissue kernels), which show the same anatomy.

    Args:
        volumes: volumes to choose from.
        converted: volumes already in the dataset; for a scan whose volume is not among ``volumes``, none is chosen.
    """
    volumes = sorted(volumes)
    chosen: dict[str, VolumeName] = {}
    for volume in [*sorted(converted), *volumes]:
        chosen.setdefault(volume.scan, volume)
    return [volume for volume in volumes if chosen[volume.scan] == volume]


def read_no_chest(paths: Iterable[Path]) -> set[VolumeName]:
    """Read the publishers' lists of scans of other body parts, one volume name or path per line.

    Raises:
        UserError: a line is not the name of a volume.
    """
    listed = set()
    for path in paths:
        for number, line in enumerate(_lines(path), start=1):
            if not line.strip():
                continue
            name = VolumeName.parse(line.strip().replace("\\", "/").rsplit("/", 1)[-1])
            if name is None:
                raise UserError(f"{path}, line {number}: {line!r} is not the name of a volume")
            listed.add(name)
    return listed


def read_selection(path: Path, volumes: Iterable[VolumeName]) -> set[VolumeName]:
    """Read a list of volumes, scans (``train_1_a``) or patients (``train_1``), one per line; returns their volumes.

    Raises:
        UserError: the file is missing, has no line, or a line matches none of the volumes.
    """
    if not path.is_file():
        raise UserError(f"`selection`: {path} is not a file")
    by_name: dict[str, set[VolumeName]] = {}
    for volume in volumes:
        for name in (volume.patient, volume.scan, volume.case):
            by_name.setdefault(name, set()).add(volume)
    lines = [line.strip().removesuffix(ENDING) for line in _lines(path) if line.strip()]
    if not lines:
        raise UserError(f"`selection`: {path} names nothing; write one volume, scan or patient per line")
    unknown = [line for line in lines if line not in by_name]
    if unknown:
        raise UserError(
            f"`selection`: {path}: {len(unknown)} of {counted(len(lines), 'line')} match no available volume of "
            f"`split` (first: {unknown[0]})"
        )
    return set().union(*(by_name[line] for line in lines))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not in UTF-8: {error.reason} at byte {error.start}; save it in UTF-8") from error
