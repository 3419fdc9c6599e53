"""Segmentation settings of a dataset.json: file ending, labels or regions with their names, and ignore label."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvae_nnunet.errors import UserError
from fvae_nnunet.files.checked_json import read_json
from fvae_nnunet.nnunet.folders import folders_above

Label = int | tuple[int, ...]
"""Value of a label, or values of a region."""

VOLUME_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".gipl")
"""Endings of single-file volumes that store their spacing and that SimpleITK can read."""


@dataclass(frozen=True)
class LabelScheme:
    """Format of the segmentations of a dataset, and the labels to score in them.

    Attributes:
        names: label or region -> its name in dataset.json, in nnU-Net's order, without background.
        known_labels: all values that a voxel may have, including the ignore label.
        ignore_label: value of voxels that are ignored, or None.
        file_ending: ending of the files, such as ``.nii.gz``.
    """

    names: dict[Label, str]
    known_labels: tuple[int, ...]
    ignore_label: int | None
    file_ending: str

    @classmethod
    def read(cls, path: Path) -> LabelScheme:
        """Read the scheme from a dataset.json of nnU-Net v2, with labels interpreted by nnU-Net's `LabelManager`.

        Raises:
            UserError: the file is missing, not of nnU-Net v2 or not for volumes; nnU-Net rejects its labels; or it has
                only background.
        """
        from nnunetv2.utilities.label_handling.label_handling import LabelManager

        if not path.is_file():
            raise UserError(f"{path} is not a file")
        content = read_json(path)
        entries: dict[str, Any] = content if isinstance(content, dict) else {}
        labels, ending = entries.get("labels"), entries.get("file_ending")
        if not isinstance(labels, dict) or not isinstance(ending, str):
            raise UserError(f"{path} is not a dataset.json of nnU-Net v2: it needs labels and file_ending")
        if ending not in VOLUME_ENDINGS:
            raise UserError(f"{path}: file_ending {ending} is not one of volumes: {', '.join(VOLUME_ENDINGS)}")
        try:
            manager = LabelManager(labels, entries.get("regions_class_order"))
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"{path}: nnU-Net does not accept the labels: {error}") from error
        scored = manager.foreground_regions if manager.has_regions else manager.foreground_labels
        if not scored:
            raise UserError(f"{path} declares no label other than background")
        name_of = {_values(entry): name for name, entry in labels.items()}
        known = [int(label) for label in manager.all_labels]
        if manager.has_ignore_label:
            known.append(manager.ignore_label)
        return cls(
            {_values(label) if isinstance(label, tuple) else int(label): name_of[_values(label)] for label in scored},
            tuple(known),
            manager.ignore_label,
            ending,
        )


def find_dataset_json(reference_folder: Path, prediction_folder: Path) -> Path:
    """Find dataset.json in the prediction folder, where nnU-Net puts it, else above or in the reference folder.

    Raises:
        UserError: it is in none of these places.
    """
    found = dataset_json_near(reference_folder, prediction_folder)
    if found is None:
        places = _places(reference_folder, prediction_folder)
        raise UserError(f"no dataset.json in {', '.join(map(str, places))}; give its path with `dataset_json`")
    return found


def dataset_json_near(reference_folder: Path, prediction_folder: Path) -> Path | None:
    """As ``find_dataset_json``, but None if there is none."""
    files = [place / "dataset.json" for place in _places(reference_folder, prediction_folder)]
    return next(filter(Path.is_file, files), None)


def _places(reference_folder: Path, prediction_folder: Path) -> list[Path]:
    return [prediction_folder, *folders_above(reference_folder), reference_folder]


def _values(label: int | list[int] | tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(value) for value in label) if isinstance(label, (list, tuple)) else (int(label),)
