"""The cases of a dataset that a classifier is trained, validated and tested on, so that no patient is on two sides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fvae_nnunet.errors import UserError
from fvae_nnunet.nnunet.case_reports import CaseReports
from fvae_nnunet.nnunet.ct_channels import find_ct_channels
from fvae_nnunet.nnunet.files import read_dataset_json, read_splits
from fvae_nnunet.nnunet.folders import nnunet_folder
from fvae_nnunet.nnunet.patient_splits import FILE_NAME, deal_folds, shared_patients
from fvae_nnunet.numbers_as_text import counted

FOLDS = 5
"""Of patients, where there is no splits_final.json; dealt as ``fvae-convert`` deals them."""

_NAMED = 5
"""Cases or patients that a message names."""


@dataclass(frozen=True)
class Case:
    """A volume with what is known of it.

    Attributes:
        key: unique among all volumes of a training; names its file in the cache.
        image: the file of its CT channel.
        findings: name -> 0 or 1; what is not there is unknown.
        synthetic: made by a diffusion model.
    """

    key: str
    image: Path
    findings: Mapping[str, int]
    synthetic: bool = False


@dataclass(frozen=True)
class CaseSplit:
    """The real cases of a training. Cases without findings are in none of the lists.

    Attributes:
        training, validation, test: in the order of their names; without a fold validation is empty.
        without_findings: names of the cases that were left out for that.
        held_out_patients: of validation and test, with those whose cases have no findings.
        ct_channel: which channel of the dataset is read.
    """

    training: tuple[Case, ...]
    validation: tuple[Case, ...]
    test: tuple[Case, ...]
    without_findings: tuple[str, ...]
    held_out_patients: frozenset[str]
    ct_channel: int


def split_cases(dataset: str, reports: CaseReports, *, fold: int | None) -> CaseSplit:
    """Find the images and share the cases out.

    Args:
        dataset: its name; the folder is in nnUNet_raw.
        reports: of the dataset. ``split`` "train" is in imagesTr, "test" in imagesTs.
        fold: of nnU-Net's splits_final.json, or where there is no such file of the five that ``fvae-convert`` would
            deal; None: train on all training cases.

    Raises:
        UserError: a patient is on two sides, an image is missing, there is no such fold, or no case to train on has
            findings.
    """
    raw = nnunet_folder("nnUNet_raw") / dataset
    of_split = {split: [case for case, report in reports.cases.items() if report.split == split] for split in _FOLDERS}
    _check_patients(reports, of_split["train"], of_split["test"], f"{raw}, imagesTr and imagesTs")
    training, validation = of_split["train"], list[str]()
    if fold is not None:
        training, validation = _fold(dataset, reports, fold)
    channel, images = _images(raw, of_split)
    known = {
        case: Case(case, images[case], report.findings)
        for case, report in reports.cases.items()
        if report.findings is not None
    }
    parts = [tuple(known[case] for case in sorted(cases) if case in known) for cases in (training, validation)]
    if not parts[0] or (fold is not None and not parts[1]):
        lacking = "to train on" if not parts[0] else "to validate on"
        raise UserError(
            f"{raw / 'reports.json'}: no case {lacking} has findings; docs/conversion.md says where they come from"
        )
    return CaseSplit(
        training=parts[0],
        validation=parts[1],
        test=tuple(known[case] for case in sorted(of_split["test"]) if case in known),
        without_findings=tuple(sorted(set(reports.cases) - set(known))),
        held_out_patients=frozenset(reports.cases[case].patient for case in [*validation, *of_split["test"]]),
        ct_channel=channel,
    )


def label_array(cases: Sequence[Case], findings: Sequence[str]) -> np.ndarray:
    """(n, F) float32: 0 or 1, NaN where it is not known."""
    return np.array(
        [[case.findings.get(name, np.nan) for name in findings] for case in cases], dtype=np.float32
    ).reshape(len(cases), len(findings))


def named(names: Iterable[str]) -> str:
    """The first of some names, and how many there are besides."""
    names = sorted(names)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


_FOLDERS = {"train": "imagesTr", "test": "imagesTs"}


def _images(raw: Path, of_split: Mapping[str, Sequence[str]]) -> tuple[int, dict[str, Path]]:
    """The CT channel, and its file of each case."""
    if not (raw / "dataset.json").is_file():
        raise UserError(f"{raw / 'dataset.json'} is missing; the classifier reads the raw dataset")
    dataset_json = read_dataset_json(raw / "dataset.json")
    channels = find_ct_channels(dataset_json, {"configurations": {}})
    if len(channels) > 1:
        raise UserError(f"{raw} has {len(channels)} CT channels; the classifier takes one")
    ending = f"_{channels[0]:04d}{dataset_json['file_ending']}"
    images = {case: raw / _FOLDERS[split] / f"{case}{ending}" for split, cases in of_split.items() for case in cases}
    missing = [case for case, path in images.items() if not path.is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(images)} cases in {raw / 'reports.json'} have no image such as "
            f"{images[min(missing)]}: {named(missing)}. Complete the conversion"
        )
    return channels[0], images


def _fold(dataset: str, reports: CaseReports, fold: int) -> tuple[list[str], list[str]]:
    """Training and validation cases."""
    path = nnunet_folder("nnUNet_preprocessed") / dataset / FILE_NAME
    folds = read_splits(path) if path.is_file() else deal_folds(reports.cases, FOLDS)
    source = path if path.is_file() else f"{dataset} (without {path})"
    if not 0 <= fold < len(folds):
        raise UserError(f"`fold={fold}`: {source} has the folds 0 to {len(folds) - 1}")
    training, validation = folds[fold]["train"], folds[fold]["val"]
    known = {case for case, report in reports.cases.items() if report.split == "train"}
    if strange := {*training, *validation} - known:
        raise UserError(
            f"{source}: fold {fold} has {counted(len(strange), 'case')} outside of the training cases of reports.json: "
            f"{named(strange)}. Take them out, or complete the conversion"
        )
    _check_patients(reports, training, validation, f"{source}, training and validation of fold {fold}")
    return training, validation


def _check_patients(reports: CaseReports, one: Iterable[str], other: Iterable[str], where: str) -> None:
    shared = shared_patients(one, other, {case: report.patient for case, report in reports.cases.items()})
    if shared:
        raise UserError(
            f"{where}: {counted(len(shared), 'patient')} in both: "
            f"{named(f'{patient} ({named(cases)})' for patient, cases in shared.items())}. Scores would be too good; "
            "put all cases of a patient on one side"
        )
