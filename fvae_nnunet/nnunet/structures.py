"""Masks of many anatomical structures, used as classes of a condition.

A folder (such as ``structuresTr`` of a dataset of ``fvae-convert``) has a file ``CASE.nii.gz`` for each case, whose
values are structures, and ``structures.json``, which names them: ``{"heart": 51, "lung_upper_lobe_left": 10, ...}``.
Any values other than 0 and these are an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fvae_nnunet.errors import UserError, some_of
from fvae_nnunet.files.checked_json import Rule, read_json
from fvae_nnunet.nnunet.mask_files import find_masks

NAMES_FILE = "structures.json"
TRAINING_FOLDER = "structuresTr"
MOST_CLASSES = 254
"""Maximum number of classes: class maps are uint8, 0 is background, and 255 marks unknown values during reading."""

_UNKNOWN = 255
_VALUE = Rule(
    f"a whole number from 1 to {MOST_CLASSES}", lambda value: type(value) is int and 1 <= value <= MOST_CLASSES
)


@dataclass(frozen=True)
class Structures:
    """Structures as classes 1, 2, ... Picklable.

    Attributes:
        folder: folder of the masks.
        files: case -> its mask.
        values: name -> value in the files.
        names: names of the classes, in order. A class without a value here has no voxels, and a value without a class
            is background.
    """

    folder: Path
    files: Mapping[str, Path]
    values: Mapping[str, int]
    names: tuple[str, ...]

    @classmethod
    def open(cls, folder: Path, cases: Iterable[str]) -> Structures:
        """Open a folder with each structure as a class, in the order of their values.

        Raises:
            UserError: the folder is missing, ``structures.json`` is missing or wrong, or a case has no mask.
        """
        files = find_masks(folder, cases)
        values = read_structure_names(folder / NAMES_FILE)
        return cls(folder, files, values, tuple(sorted(values, key=lambda name: values[name])))

    @property
    def unknown(self) -> tuple[str, ...]:
        """Structures of the files that are not classes."""
        return tuple(name for name in self.values if name not in self.names)

    def for_model(self, names: Sequence[str]) -> Structures:
        """Return the same files with the classes of a model, matched by name.

        Raises:
            UserError: no structure of the files is a class of the model.
        """
        if not set(names) & self.values.keys():
            raise UserError(f"none of the model's structures ({some_of(names, 5)}) is in {self.folder / NAMES_FILE}")
        return replace(self, names=tuple(names))

    def class_map(self, mask: np.ndarray, path: Path) -> np.ndarray:
        """Convert the values of a mask to classes: uint8, same shape.

        Args:
            mask: mask of any real dtype.
            path: path of the mask, for messages.

        Raises:
            UserError: a value is not a structure.
        """
        table = np.full(256, _UNKNOWN, dtype=np.uint8)
        table[0] = 0
        for name, value in self.values.items():
            table[value] = self.names.index(name) + 1 if name in self.names else 0
        whole = mask
        if mask.dtype != np.uint8:
            within = mask.clip(0, _UNKNOWN)
            whole = np.where(within == mask, within, _UNKNOWN).astype(np.uint8)
            whole[whole != within] = _UNKNOWN
        class_map = table[whole]
        if (class_map == _UNKNOWN).any():
            value = mask[class_map == _UNKNOWN].flat[0]
            raise UserError(f"{path} holds the value {value:g}, which {self.folder / NAMES_FILE} does not name")
        return class_map


def read_structure_names(path: Path) -> dict[str, int]:
    """Read name -> value from ``structures.json``.

    Raises:
        UserError: the file is missing, or not an object of names with different values from 1 to 254.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; it names the values of the structure masks: {{name: value}}")
    values: dict[str, int] = read_json(path, {"*": _VALUE}, remedy="Correct it, or restore it from a copy")
    if not values:
        raise UserError(f"{path} must be an object {{name: value}} with at least one structure")
    if len(set(values.values())) < len(values):
        names = [name for name in values if list(values.values()).count(values[name]) > 1]
        raise UserError(f"{path}: {' and '.join(names[:2])} have the same value {values[names[0]]}")
    return values
