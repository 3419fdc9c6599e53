"""Read raw cases of a dataset for synthesis: HU, labels, organ and lesion on one axial grid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fvae_nnunet.ct.files import read_header, read_volume
from fvae_nnunet.ct.geometry import Geometry
from fvae_nnunet.ct.hounsfield import check_volume_hu
from fvae_nnunet.ct.intensity import round_to_int16
from fvae_nnunet.errors import UserError, some_of
from fvae_nnunet.files.recorded import sha256_of_file
from fvae_nnunet.numbers_as_text import counted
from fvae_nnunet.synthesis.sources.organs import OrganSource

if TYPE_CHECKING:
    from fvae_nnunet.synthesis.model.folder import ModelSettings


@dataclass(frozen=True)
class SourceCase:
    """A raw case. All arrays are axial, (z, y, x) = (body axis, front-back, left-right), and have the same shape.

    Attributes:
        case: name of the case.
        volume_hu: int16.
        labels: label values of the dataset.
        class_map: uint8; 0: background, otherwise the position (from 1) in ``SourceDataset.class_names``; lesions come
            last.
        organ: bool, including lesions; all False for the organ source ``none``. With structures, those that receive
            lesions.
        lesion: bool, lesions of the class to insert; of all classes if none was chosen.
        lesion_class: class in ``class_map`` of the lesion to insert; 0: none.
        organ_classes: number of classes that are not lesions.
        geometry: geometry of the image file.
        digests: name -> sha256 of each file that was read.
    """

    case: str
    volume_hu: np.ndarray
    labels: np.ndarray
    class_map: np.ndarray
    organ: np.ndarray
    lesion: np.ndarray
    lesion_class: int
    organ_classes: int
    geometry: Geometry
    digests: dict[str, str]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size (z, y, x) in mm."""
        return self.geometry.axial_spacing_mm

    @property
    def any_lesion(self) -> np.ndarray:
        """bool, lesions of all classes."""
        return self.class_map > self.organ_classes


@dataclass(frozen=True)
class SourceDataset:
    """The training cases of a raw dataset. Picklable.

    Attributes:
        name: ``DatasetNNN_Something``.
        raw_folder: folder of the dataset in nnUNet_raw.
        dataset_json: content of dataset.json.
        image_files: case -> files of its channels, in order; only cases of the chosen fold.
        label_files: case -> its segmentation.
        ct_channel: index of the CT channel.
        organ: source of the organ.
        lesions: name -> label value of each lesion, in the order of their classes; empty: there are none.
        lesion_name: name of the lesion to insert; None if there is none, or if several and none was chosen.
        known_labels: all values that a voxel may have.
        hu_as_is: also read images that cannot be in HU.
    """

    name: str
    raw_folder: Path
    dataset_json: dict[str, Any]
    image_files: dict[str, list[Path]]
    label_files: dict[str, Path]
    ct_channel: int
    organ: OrganSource
    lesions: dict[str, int]
    lesion_name: str | None
    known_labels: tuple[int, ...]
    hu_as_is: bool = False

    @property
    def cases(self) -> list[str]:
        return sorted(self.image_files)

    @property
    def file_ending(self) -> str:
        return str(self.dataset_json["file_ending"])

    @property
    def reads_labels(self) -> bool:
        """Whether segmentations are read: for lesions, or for an organ that is a label."""
        return bool(self.lesions) or self.organ.kind == "label"

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the condition classes in ``SourceCase.class_map``, starting with class 1."""
        return (*self.organ.class_names, *self.lesions)

    @property
    def lesion_value(self) -> int:
        """The label value of the lesion to insert."""
        return self.lesions[self.check_lesion()]

    def check_lesion(self) -> str:
        """The name of the lesion to insert; UserError if none was chosen."""
        if self.lesion_name is None:
            raise UserError(
                f"the model knows several lesions; choose the one to insert with `lesion`: {', '.join(self.lesions)}"
                if self.lesions
                else "the model knows no lesion that could be inserted; generate whole volumes from a list"
            )
        return self.lesion_name

    def with_lesion(self, name: str) -> SourceDataset:
        """The same dataset with this lesion to insert; UserError if it does not exist."""
        if name not in self.lesions:
            raise UserError(f"`lesion`: the model knows no {name!r}; it knows {', '.join(self.lesions) or 'none'}")
        return replace(self, lesion_name=name)

    @property
    def lesion_class(self) -> int:
        """The class in ``SourceCase.class_map`` of the lesion to insert; 0: none."""
        return 0 if self.lesion_name is None else self.class_of(self.lesion_name)

    @property
    def label_without_lesion(self) -> int:
        """The label of lesion voxels when the lesion is left out: that of the organ, or 0 if it has none.

        Raises:
            UserError: the organ has several labels.
        """
        if self.organ.kind != "label":
            return 0
        if len(self.organ.values) > 1:
            raise UserError(
                f"`organ={self.organ.text}` has several labels, so the label below a lesion is unknown; give one label"
            )
        return self.organ.values[0]

    def class_of(self, lesion: str) -> int:
        """The class of a lesion in ``SourceCase.class_map``."""
        return len(self.organ.class_names) + list(self.lesions).index(lesion) + 1

    def without(self, cases: Iterable[str]) -> SourceDataset:
        """The dataset without some cases; UserError if one of them does not exist, or none is left."""
        left_out = set(cases)
        unknown = sorted(left_out - self.image_files.keys())
        if unknown:
            raise UserError(f"there is no training case {unknown[0]!r} to leave out of {self.name}")
        kept = {case: files for case, files in self.image_files.items() if case not in left_out}
        if not kept:
            raise UserError(f"all cases of {self.name} are left out; keep at least one")
        return replace(self, image_files=kept)

    def for_model(self, settings: ModelSettings, folder: Path) -> SourceDataset:
        """The dataset with its classes in the order of a model; both must have the same classes.

        A model with one organ and one lesion accepts those of this dataset under any name. Structures and several
        lesions are matched by name; structures unknown to the model become background.

        Args:
            settings: settings of the model.
            folder: folder of the model, for messages.

        Raises:
            UserError: the classes differ.
        """
        organ, organs = self.organ, settings.class_names[: len(settings.class_names) - settings.lesions]
        if organ.structures is not None and organs:
            organ = replace(organ, structures=organ.structures.for_model(organs))
        found = replace(self, organ=organ)
        by_name = organ.structures is not None or settings.lesions > 1
        if len(found.class_names) != len(settings.class_names) or (by_name and organ.class_names != organs):
            raise UserError(
                f"{folder} was trained on {_few(settings.class_names)}, but `organ={organ.text}` gives "
                f"{_few(found.class_names)}; give an `organ` with the same classes"
            )
        return found

    def read_size(self, case: str) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Shape and spacing in mm of a case's image, (z, y, x), axial, from the header of its file.

        Raises:
            UserError: the file cannot be read.
        """
        size, geometry = read_header(self.image_files[case][self.ct_channel])
        return tuple(size[axis] for axis in geometry.axial_order), geometry.axial_spacing_mm

    def axial_direction(self, case: str) -> np.ndarray:
        """``ct.geometry.Geometry.axial_direction`` of a case's image, from the header of its file.

        Raises:
            UserError: the file cannot be read.
        """
        return read_header(self.image_files[case][self.ct_channel])[1].axial_direction

    def digests(self, case: str) -> dict[str, str]:
        """The sha256 of each file that ``read`` would read, by role and name; UserError if one is missing."""
        roles = [("image", self.image_files[case][self.ct_channel])]
        roles += [("label", self.label_files[case])] if self.reads_labels else []
        roles += [("organ", path) for path in self.organ.files_of(case)]
        for _, path in roles:
            if not path.is_file():
                raise UserError(f"{case}: {path} is missing")
        return {f"{role} {path.name}": sha256_of_file(path) for role, path in roles}

    def read(self, case: str, *, digests: dict[str, str] | None = None, lesions: bool = True) -> SourceCase:
        """Read a case.

        Args:
            case: one of ``cases``.
            digests: digests of its files, if already known.
            lesions: False: read the case as if it had no lesions, see ``label_without_lesion``.

        Raises:
            UserError: a file is missing or damaged, image and label differ in shape, values are not finite, do not fit
                int16 or cannot be HU, a label is not in dataset.json, or the organ is empty.
        """
        if case not in self.image_files:
            raise UserError(f"{self.name} has no case {case!r}; it has {some_of(self.cases, 5)}")
        image_path = self.image_files[case][self.ct_channel]
        for path in (image_path, *([self.label_files[case]] if self.reads_labels else [])):
            if not path.is_file():
                raise UserError(f"{case}: {path} is missing")
        raw, geometry = read_volume(image_path)
        if not self.hu_as_is:
            check_volume_hu(raw, image_path)
        try:
            volume_hu = round_to_int16(raw)
        except UserError as error:
            raise UserError(f"{image_path}: {error}") from error
        order = geometry.axial_order
        labels = self._read_labels(case, image_path, volume_hu.shape)
        volume_hu = np.ascontiguousarray(volume_hu.transpose(order))
        labels = np.ascontiguousarray(labels.transpose(order))
        class_map = self.organ.class_map(case, volume_hu, labels, geometry=geometry)
        any_lesion = np.isin(labels, list(self.lesions.values()))
        organ = self.organ.where(class_map)
        if self.organ.kind != "none":
            organ |= any_lesion
            if not organ.any():
                organs = self.organ.recorded if self.organ.names else self.organ.text
                raise UserError(
                    f"{case}: the organ ({organs}) has no voxel; correct {self.label_files[case]} or the organ mask, "
                    "give another `organ`, or leave out the case (`leave_out`; in a list: its rows)"
                )
        if not lesions:
            class_map[any_lesion & (class_map == 0)] = 1 if self.organ.class_names == ("organ",) else 0
            labels[any_lesion] = self.label_without_lesion
            any_lesion[...] = False
        for name, value in self.lesions.items():
            class_map[labels == value] = self.class_of(name)
        return SourceCase(
            case=case,
            volume_hu=volume_hu,
            labels=labels,
            class_map=class_map,
            organ=organ,
            lesion=any_lesion if self.lesion_name is None else labels == self.lesion_value,
            lesion_class=self.lesion_class,
            organ_classes=len(self.organ.class_names),
            geometry=geometry,
            digests=self.digests(case) if digests is None else digests,
        )

    def _read_labels(self, case: str, image_path: Path, shape: tuple[int, ...]) -> np.ndarray:
        """The labels as stored in the file; all 0 if they are not read."""
        dtype = np.min_scalar_type(max(self.known_labels))
        if not self.reads_labels:
            return np.zeros(shape, dtype=dtype)
        path = self.label_files[case]
        labels, _ = read_volume(path)
        if labels.shape != shape:
            raise UserError(
                f"{case}: the image {image_path} has {shape} voxels (z, y, x), but its segmentation {path} has "
                f"{labels.shape}; repair the dataset"
            )
        self.check_labels(path, labels)
        return labels.astype(dtype)

    def check_labels(self, path: Path, labels: np.ndarray) -> None:
        """Raise UserError if a label map has values that ``dataset.json`` does not declare."""
        unknown = sorted(set(np.unique(labels).tolist()) - set(self.known_labels))
        if unknown:
            raise UserError(
                f"{path} has the labels {some_of([f'{value:g}' for value in unknown], 5)}, which dataset.json does not "
                f"declare (it has {', '.join(map(str, self.known_labels))})"
            )


def refuse_failed(failed: Mapping[str, Exception], done: str, consequence: str) -> None:
    """Raise UserError if cases have failed, with the reason for each and possible remedies.

    Args:
        failed: case -> its error.
        done: participle of the failed action, such as ``encoded``.
        consequence: a sentence on the other cases.
    """
    if not failed:
        return
    unexpected = next((error for error in failed.values() if not isinstance(error, UserError)), None)
    raise UserError(
        f"{counted(len(failed), 'case')} cannot be {done}:\n  "
        + "\n  ".join(_failure(case, error) for case, error in failed.items())
        + f"\n{consequence} Repair the failed ones, or leave them out (`leave_out={' '.join(failed)}`)"
    ) from unexpected


def _failure(case: str, error: Exception) -> str:
    said = str(error) if isinstance(error, UserError) else repr(error)
    return said if said.startswith(case) else f"{case}: {said}"


def _few(names: Sequence[str]) -> str:
    """The names, or the first and the last if there are more than eight."""
    return ", ".join(names if len(names) <= 8 else (*names[:4], f"... ({len(names)} classes)", *names[-2:]))
