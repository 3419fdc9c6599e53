"""Raw cases of a dataset as synthesis needs them: HU, labels, organ and lesion on one axial grid."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fvae_nnunet.ct_channels import find_ct_channels
from fvae_nnunet.errors import UserError
from fvae_nnunet.image_files import SINGLE_FILE_ENDINGS, Geometry, read_volume
from fvae_nnunet.intensity import round_to_int16
from fvae_nnunet.manifest import read_json, sha256_of_file
from fvae_nnunet.nnunet_folders import dataset_name, nnunet_folder
from fvae_nnunet.orientation import AxisOrder
from fvae_nnunet.synthesis.organs import OrganSource

_SPLIT_SEED, _SPLITS = 12345, 5  # nnU-Net's own, nnUNetTrainer.do_split


@dataclass(frozen=True)
class SourceCase:
    """A raw case. All arrays are axial, (z, y, x) = (body axis, front-back, left-right), and of one shape.

    Attributes:
        case: its name.
        volume_hu: int16.
        labels: the dataset's label values.
        class_map: uint8; 0 background, else the place (from 1) in ``SourceDataset.class_names``; the lesion is last.
        organ: bool, with the lesions; all False for an organ source ``none``.
        lesion: bool.
        spacing_mm: (z, y, x).
        geometry: of the image file.
        axis_order: ``array.transpose(axis_order)`` of an array as the file holds it (z, y, x as SimpleITK reads it)
            is axial.
        digests: sha256 of each file that it was read from, by name.
    """

    case: str
    volume_hu: np.ndarray
    labels: np.ndarray
    class_map: np.ndarray
    organ: np.ndarray
    lesion: np.ndarray
    spacing_mm: tuple[float, float, float]
    geometry: Geometry
    axis_order: AxisOrder
    digests: dict[str, str]

    def as_in_file(self, axial: np.ndarray) -> np.ndarray:
        """An axial array with its axes in the order of the image file."""
        return axial.transpose(tuple(np.argsort(self.axis_order)))


@dataclass(frozen=True)
class SourceDataset:
    """The training cases of a raw dataset. Picklable.

    Attributes:
        name: ``DatasetNNN_Something``.
        raw_folder: its folder in nnUNet_raw.
        dataset_json: content of its dataset.json.
        image_files: case -> the files of its channels, in order. Only cases of the chosen fold.
        label_files: case -> its segmentation.
        ct_channel: the channel that is CT.
        organ: where the organ comes from.
        lesion_name, lesion_value: the lesion's label.
        known_labels: every value that a voxel may have.
    """

    name: str
    raw_folder: Path
    dataset_json: dict[str, Any]
    image_files: dict[str, list[Path]]
    label_files: dict[str, Path]
    ct_channel: int
    organ: OrganSource
    lesion_name: str
    lesion_value: int
    known_labels: tuple[int, ...]

    @property
    def cases(self) -> list[str]:
        return sorted(self.image_files)

    @property
    def file_ending(self) -> str:
        return str(self.dataset_json["file_ending"])

    @property
    def class_names(self) -> tuple[str, ...]:
        """The condition classes in the order of their values in ``SourceCase.class_map``, from 1."""
        return (self.lesion_name,) if self.organ.kind == "none" else ("organ", self.lesion_name)

    def without(self, cases: Iterable[str]) -> SourceDataset:
        """The dataset without some cases; UserError where one is not among them, or none is left."""
        left_out = set(cases)
        unknown = sorted(left_out - self.image_files.keys())
        if unknown:
            raise UserError(f"there is no training case {unknown[0]!r} to leave out of {self.name}")
        kept = {case: files for case, files in self.image_files.items() if case not in left_out}
        if not kept:
            raise UserError(f"all cases of {self.name} are left out")
        return replace(self, image_files=kept)

    def read_size(self, case: str) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Voxels and spacing in mm of a case's image, (z, y, x), axial, from the head of its file.

        Raises:
            UserError: the file cannot be read.
        """
        import SimpleITK as sitk

        path = self.image_files[case][self.ct_channel]
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise UserError(f"{path} cannot be read: {str(error).strip().splitlines()[-1]}") from error
        size, spacing_mm = reader.GetSize()[::-1], reader.GetSpacing()[::-1]
        order = Geometry(reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection()).axial_order
        return tuple(size[axis] for axis in order), tuple(spacing_mm[axis] for axis in order)

    def digests(self, case: str) -> dict[str, str]:
        """sha256 of each file that ``read`` would read, by the role and name of the file."""
        roles = [("image", self.image_files[case][self.ct_channel]), ("label", self.label_files[case])]
        roles += [("organ", path) for path in self.organ.files_of(case)]
        return {f"{role} {path.name}": sha256_of_file(path) for role, path in roles}

    def read(self, case: str, *, digests: dict[str, str] | None = None) -> SourceCase:
        """Read a case.

        Args:
            case: one of ``cases``.
            digests: of its files, where they are known already.

        Raises:
            UserError: a file is missing or damaged, image and label differ in shape, HU are not finite or do not fit
                int16, a label is not in dataset.json, or the organ is empty.
        """
        if case not in self.image_files:
            raise UserError(f"{self.name} has no case {case!r} to read; it has {', '.join(self.cases[:5])} ...")
        image_path, label_path = self.image_files[case][self.ct_channel], self.label_files[case]
        for path in (image_path, label_path):
            if not path.is_file():
                raise UserError(f"{case}: {path} is missing")
        raw, geometry = read_volume(image_path)
        try:
            volume_hu = round_to_int16(raw)
        except UserError as error:
            raise UserError(f"{image_path}: {error}") from error
        labels, _ = read_volume(label_path)
        if labels.shape != volume_hu.shape:
            raise UserError(
                f"{case}: the image {image_path} has {volume_hu.shape} voxels (z, y, x), its segmentation {label_path} "
                f"{labels.shape}; run nnUNetv2_plan_and_preprocess --verify_dataset_integrity and repair the dataset"
            )
        self._check_labels(label_path, labels)
        order = geometry.axial_order
        spacing_mm = tuple(geometry.spacing_mm[::-1][axis] for axis in order)
        volume_hu = np.ascontiguousarray(volume_hu.transpose(order))
        labels = np.ascontiguousarray(labels.transpose(order).astype(_smallest_dtype(self.known_labels)))
        lesion = labels == self.lesion_value
        organ = self.organ.mask(case, volume_hu, labels, spacing_mm=spacing_mm, geometry=geometry)
        class_map = np.zeros(volume_hu.shape, dtype=np.uint8)
        if self.organ.kind != "none":
            organ = organ | lesion
            if not organ.any():
                raise UserError(
                    f"{case}: the organ ({self.organ.text}) has no voxel; correct {label_path} or the organ mask, give "
                    "another --organ, or leave the case out"
                )
            class_map[organ] = 1
        class_map[lesion] = len(self.class_names)
        return SourceCase(
            case=case,
            volume_hu=volume_hu,
            labels=labels,
            class_map=class_map,
            organ=organ,
            lesion=lesion,
            spacing_mm=(spacing_mm[0], spacing_mm[1], spacing_mm[2]),
            geometry=geometry,
            axis_order=order,
            digests=self.digests(case) if digests is None else digests,
        )

    def _check_labels(self, path: Path, labels: np.ndarray) -> None:
        unknown = sorted(set(np.unique(labels).tolist()) - set(self.known_labels))
        if unknown:
            raise UserError(
                f"{path} holds the labels {', '.join(f'{value:g}' for value in unknown[:5])}, which dataset.json does "
                f"not declare (it has {', '.join(map(str, self.known_labels))})"
            )


def open_source_dataset(
    id_or_name: str,
    *,
    organ: str | None = None,
    lesion: str | None = None,
    fold: int | None = None,
    plans_name: str = "nnUNetPlans",
) -> SourceDataset:
    """Find a raw dataset and check that lesions can be learnt from it and put into it.

    Args:
        id_or_name: as nnU-Net's commands take it.
        organ: where the organ comes from, see ``organs.FORMS``; None: all labels but the lesion's.
        lesion: name of the lesion's label; None: the only one whose name is a lesion's (``LESION_NAME``), or the only
            label.
        fold: keep the training cases of this fold of nnU-Net's splits_final.json, or, where there is no such file
            yet, of the split that nnU-Net will make; None: all training cases.
        plans_name: identifier of the plans, which say what channel is CT where dataset.json does not.

    Raises:
        UserError: something is missing, unknown or not supported.
    """
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    from fvae_nnunet.evaluation.label_scheme import LabelScheme

    name = dataset_name(id_or_name)
    raw = nnunet_folder("nnUNet_raw") / name
    if not (raw / "dataset.json").is_file():
        raise UserError(f"{raw / 'dataset.json'} is missing; synthesis starts from the raw dataset")
    dataset_json = read_json(raw / "dataset.json")
    scheme = LabelScheme.read(raw / "dataset.json")
    if scheme.file_ending not in SINGLE_FILE_ENDINGS:
        raise UserError(
            f"{raw}: images of the format {scheme.file_ending} are not supported; {', '.join(SINGLE_FILE_ENDINGS)} are"
        )
    label_values = {name: (label,) if isinstance(label, int) else label for label, name in scheme.names.items()}
    lesion_name = _lesion_name(raw, label_values, lesion)
    if len(label_values[lesion_name]) != 1:
        raise UserError(
            f"{raw / 'dataset.json'}: {lesion_name} is a region of {len(label_values[lesion_name])} values; a "
            "synthetic lesion is written as one value. Give a label of one value with --lesion"
        )
    files = get_filenames_of_train_images_and_targets(str(raw), dataset_json)
    if not files:
        raise UserError(f"{raw} holds no training images")
    cases = sorted(files) if fold is None else _training_cases(name, sorted(files), fold)
    label_files = {case: Path(files[case]["label"]) for case in cases}
    missing = [path for path in label_files.values() if not path.is_file()]
    if missing:
        raise UserError(f"{len(missing)} of {len(cases)} cases of {raw} have no segmentation (first: {missing[0]})")
    return SourceDataset(
        name=name,
        raw_folder=raw,
        dataset_json=dataset_json,
        image_files={case: [Path(path) for path in files[case]["images"]] for case in cases},
        label_files=label_files,
        ct_channel=_ct_channel(name, dataset_json, plans_name),
        organ=OrganSource.parse(organ, label_values=label_values, lesion_name=lesion_name, cases=cases),
        lesion_name=lesion_name,
        lesion_value=label_values[lesion_name][0],
        known_labels=scheme.known_labels,
    )


def _lesion_name(raw: Path, label_values: dict[str, tuple[int, ...]], wanted: str | None) -> str:
    from fvae_nnunet.evaluation.lesions import LESION_NAME

    names = list(label_values)
    if wanted is not None:
        if wanted not in names:
            raise UserError(f"{raw / 'dataset.json'} has no label {wanted!r}; it has {', '.join(names)}")
        return wanted
    found = [name for name in names if LESION_NAME.search(name)] or (names if len(names) == 1 else [])
    if len(found) != 1:
        which = f"{', '.join(found)} could be" if found else f"none of {', '.join(names)} has the name of"
        raise UserError(f"{raw / 'dataset.json'}: {which} the lesion's label; name it with --lesion")
    return found[0]


def _ct_channel(name: str, dataset_json: dict[str, Any], plans_name: str) -> int:
    plans_path = nnunet_folder("nnUNet_preprocessed") / name / f"{plans_name}.json"
    plans = read_json(plans_path) if plans_path.is_file() else {"configurations": {}}
    channels = find_ct_channels(dataset_json, plans)
    if len(channels) > 1:
        raise UserError(
            f"{name} has {len(channels)} CT channels ({', '.join(map(str, channels))}); a lesion would have to be "
            "synthesised in all of them alike, which is not supported. One CT channel and others that are not CT is"
        )
    return channels[0]


def _training_cases(name: str, cases: list[str], fold: int) -> list[str]:
    """Those of a fold: of nnU-Net's file, or of the split that nnU-Net makes where there is none (five folds)."""
    path = nnunet_folder("nnUNet_preprocessed") / name / "splits_final.json"
    if path.is_file():
        splits = read_json(path)
    else:
        from nnunetv2.utilities.crossval_split import generate_crossval_split

        if len(cases) < _SPLITS:
            raise UserError(f"{name} has {len(cases)} cases, too few for {_SPLITS} folds; leave --fold out")
        splits = generate_crossval_split(cases, seed=_SPLIT_SEED, n_splits=_SPLITS)
    if not 0 <= fold < len(splits):
        raise UserError(f"--fold {fold}: {path} has the folds 0 to {len(splits) - 1}")
    chosen = sorted(set(map(str, splits[fold]["train"])) & set(cases))
    if not chosen:
        raise UserError(f"no training case of fold {fold} in {path} has a raw image")
    return chosen


def _smallest_dtype(labels: tuple[int, ...]) -> np.dtype:
    return np.min_scalar_type(max(labels))
