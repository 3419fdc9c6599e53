"""What dataset.json says about segmentations: file ending, labels or regions with their names, and the ignore label."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvae_nnunet.errors import UserError
from fvae_nnunet.files.checked_json import read_json

Label = int | tuple[int, ...]
"""A label's value, or the values of a region."""

VOLUME_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".gipl")
"""File endings of volumes of one file that carry their spacing and that SimpleITK reads."""


@dataclass(frozen=True)
class LabelScheme:
    """The files of a dataset's segmentations and what is to be scored in them.

    Attributes:
        names: label or region -> its name in dataset.json, in nnU-Net's order, without background.
        known_labels: every value that a voxel may have, the ignore label included.
        ignore_label: the value of voxels that are left out, or None.
        file_ending: such as ``.nii.gz``.
    """

    names: dict[Label, str]
    known_labels: tuple[int, ...]
    ignore_label: int | None
    file_ending: str

    @classmethod
    def read(cls, path: Path) -> LabelScheme:
        """The scheme of a dataset.json of nnU-Net v2, labels understood as nnU-Net's `LabelManager` does.

        Raises:
            UserError: there is no such file, it is none of nnU-Net v2 or not for volumes, nnU-Net refuses its labels,
                or it has none but background.
        """
        from nnunetv2.utilities.label_handling.label_handling import LabelManager

        if not path.is_file():
            raise UserError(f"{path} is no file")
        content = read_json(path)
        entries: dict[str, Any] = content if isinstance(content, dict) else {}
        labels, ending = entries.get("labels"), entries.get("file_ending")
        if not isinstance(labels, dict) or not isinstance(ending, str):
            raise UserError(f"{path} is no dataset.json of nnU-Net v2: it needs labels and file_ending")
        if ending not in VOLUME_ENDINGS:
            raise UserError(f"{path}: file_ending {ending} is none of a volume's: {', '.join(VOLUME_ENDINGS)}")
        try:
            manager = LabelManager(labels, entries.get("regions_class_order"))
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"{path}: nnU-Net does not accept the labels: {error}") from error
        scored = manager.foreground_regions if manager.has_regions else manager.foreground_labels
        if not scored:
            raise UserError(f"{path} declares no label but background")
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
    """dataset.json beside the predictions, where nnU-Net puts it, else above or beside the references.

    Raises:
        UserError: it is in none of these places.
    """
    found = dataset_json_near(reference_folder, prediction_folder)
    if found is None:
        places = _places(reference_folder, prediction_folder)
        raise UserError(f"no dataset.json in {', '.join(map(str, places))}; name it with `dataset_json`")
    return found


def dataset_json_near(reference_folder: Path, prediction_folder: Path) -> Path | None:
    """As ``find_dataset_json``; None where there is none."""
    files = [place / "dataset.json" for place in _places(reference_folder, prediction_folder)]
    return next(filter(Path.is_file, files), None)


def _places(reference_folder: Path, prediction_folder: Path) -> list[Path]:
    return [prediction_folder, reference_folder.resolve().parent, reference_folder]


def _values(label: int | list[int] | tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(value) for value in label) if isinstance(label, (list, tuple)) else (int(label),)
