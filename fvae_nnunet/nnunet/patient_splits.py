"""Splits by patient, and the check that no patient is on both sides of a split."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from fvae_nnunet.errors import UserError, some_of
from fvae_nnunet.jobs.manifest import MANIFEST_FOLDER, Manifest, write_json
from fvae_nnunet.nnunet.case_reports import CaseReport, find_case_reports, read_case_reports
from fvae_nnunet.nnunet.files import read_splits
from fvae_nnunet.nnunet.folders import nnunet_folder
from fvae_nnunet.numbers_as_text import counted

FILE_NAME = "splits_final.json"
Fold = dict[str, list[str]]


def shared_patients(one: Iterable[str], other: Iterable[str], patients: Mapping[str, str]) -> dict[str, list[str]]:
    """Patients with cases in both sets, sorted, each with its cases."""
    one, other = list(one), list(other)
    both = {patients[case] for case in one} & {patients[case] for case in other}
    return {patient: sorted(case for case in {*one, *other} if patients[case] == patient) for patient in sorted(both)}


def check_leakage(cases: Mapping[str, CaseReport], folds: list[Fold] | None = None) -> None:
    """Raise UserError, with their names, if patients are in training and test, or on both sides of a fold.

    Args:
        cases: cases of ``reports.json``.
        folds: folds of ``splits_final.json``; None to check only training against test.
    """
    patients = {case: report.patient for case, report in cases.items()}
    of_split = {split: [case for case, report in cases.items() if report.split == split] for split in ("train", "test")}
    refuse_shared(
        shared_patients(of_split["train"], of_split["test"], patients),
        "training (Tr) and test (Ts)",
        ". For ReXGroundingCT, `leave_out_shared=True` removes their cases from training",
    )
    for number, fold in enumerate(folds or []):
        unknown = sorted({*fold["train"], *fold["val"]} - patients.keys())
        if unknown:
            raise UserError(f"fold {number} has {unknown[0]}, which is not in reports.json ({len(unknown)} such)")
        tested = sorted({*fold["train"], *fold["val"]} & set(of_split["test"]))
        if tested:
            raise UserError(f"fold {number} has {tested[0]}, which is a test case ({len(tested)} such)")
        refuse_shared(
            shared_patients(fold["train"], fold["val"], patients), f"training and validation of fold {number}"
        )


def refuse_shared(shared: Mapping[str, list[str]], where: str, remedy: str = "") -> None:
    """Raise UserError if there are patients with cases on both sides; ``where`` names both sides."""
    if shared:
        named = [f"{patient} ({', '.join(cases)})" for patient, cases in shared.items()]
        raise UserError(f"{counted(len(shared), 'patient')} in both {where}: {some_of(named, 10, '; ')}{remedy}")


def deal_folds(cases: Mapping[str, CaseReport], folds: int, before: list[Fold] | None = None) -> list[Fold]:
    """Divide training cases into folds of similar size, with all cases of a patient in the same fold.

    Patients are taken in the order of the SHA-256 of their names and put into the fold with the fewest cases so far,
    so the folds depend only on the names. Patients that already have a fold stay there.

    Args:
        cases: all cases; only those of split ``train`` are used.
        folds: number of folds, at least 2.
        before: existing folds to keep.

    Raises:
        UserError: fewer patients than folds, or ``before`` has another number of folds or a patient in two of them.
    """
    if folds < 2:
        raise UserError(f"`folds` must be at least 2, got {folds}")
    if before is not None and len(before) != folds:
        raise UserError(
            f"there are already {len(before)} folds, not {folds}; give `folds={len(before)}`, or remove {FILE_NAME} to "
            "make new folds"
        )
    of_patient: dict[str, list[str]] = {}
    for case in sorted(case for case, report in cases.items() if report.split == "train"):
        of_patient.setdefault(cases[case].patient, []).append(case)
    if len(of_patient) < folds:
        raise UserError(
            f"{counted(len(of_patient), 'training patient')} cannot fill {folds} folds; give a lower `folds`"
        )
    home: dict[str, int] = {}
    for number, fold in enumerate(before or []):
        for case in (case for case in fold["val"] if case in cases):
            if home.setdefault(cases[case].patient, number) != number:
                raise UserError(
                    f"the existing folds leak: {cases[case].patient} is validated in fold "
                    f"{home[cases[case].patient]} and in fold {number}; remove {FILE_NAME} to make new folds"
                )
    validation: list[list[str]] = [[] for _ in range(folds)]
    for patient in sorted(of_patient, key=lambda patient: (patient not in home, _digest(patient))):
        number = home.get(patient, min(range(folds), key=lambda number: len(validation[number])))
        validation[number] += of_patient[patient]
    every = sorted(case for group in validation for case in group)
    dealt = []
    for group in map(set, validation):
        dealt.append({"train": [case for case in every if case not in group], "val": sorted(group)})
    return dealt


def _digest(patient: str) -> str:
    return hashlib.sha256(patient.encode()).hexdigest()


def write_folds(path: Path, cases: Mapping[str, CaseReport], folds: int, *, anew: bool = False) -> list[Fold]:
    """Write ``splits_final.json``, keeping the folds of patients that already have one, and check it.

    Args:
        path: path of the file.
        cases: cases of ``reports.json``.
        folds: number of folds.
        anew: make new folds and ignore an existing file.

    Raises:
        UserError: as ``deal_folds`` and ``check_leakage``; then nothing is written.
    """
    before = read_splits(path) if path.exists() and not anew else None
    dealt = deal_folds(cases, folds, before)
    check_leakage(cases, dealt)
    write_json(path, dealt)
    return dealt


def check_dataset(dataset: str) -> list[str]:
    """Check the files and splits of a dataset against its ``reports.json``; return sentences on the results.

    Raises:
        UserError: images are missing, unknown or not recorded by the conversion that made them, a patient is on both
            sides of a split, or a training case is in no validation fold or in several.
    """
    raw = nnunet_folder("nnUNet_raw") / dataset
    cases = read_case_reports(find_case_reports(raw)).cases
    for split, folder in (("train", "imagesTr"), ("test", "imagesTs")):
        named = {case for case, report in cases.items() if report.split == split}
        there = {path.name.removesuffix("_0000.nii.gz") for path in (raw / folder).glob("*_0000.nii.gz")}
        for wrong, what in (
            (named - there, "has no image of"),
            (there - named, "has an image that is not in reports.json:"),
        ):
            if wrong:
                raise UserError(
                    f"{raw / folder} {what} {min(wrong)} ({len(wrong)} such); run the conversion again, or remove "
                    "leftover files"
                )
    manifest = Manifest(raw / MANIFEST_FOLDER)
    if manifest.is_begun and (unrecorded := sorted(cases.keys() - set(manifest.cases))):
        raise UserError(
            f"{raw}: {counted(len(unrecorded), 'case')} may be damaged, as a conversion of them did not end: "
            f"{some_of(unrecorded, 5)}. Run the conversion again"
        )
    check_leakage(cases)
    patients = {
        split: {report.patient for report in cases.values() if report.split == split} for split in ("train", "test")
    }
    in_train, in_test = len(patients["train"]), len(patients["test"])
    said = [
        f"{counted(len(cases), 'case')}; {counted(in_train, 'patient')} in training, {in_test} in test, none in both"
    ]
    path = nnunet_folder("nnUNet_preprocessed") / dataset / FILE_NAME
    if not path.exists():
        return [*said, f"no {path}: nnU-Net would make its folds by case, not by patient"]
    folds = read_splits(path)
    check_leakage(cases, folds)
    validated = Counter(case for fold in folds for case in fold["val"])
    twice = sorted(case for case, times in validated.items() if times > 1)
    never = sorted({case for case, report in cases.items() if report.split == "train"} - validated.keys())
    if twice or never:
        raise UserError(
            f"{path}: " + (f"{twice[0]} is validated in several folds" if twice else f"{never[0]} is in no fold's val")
        )
    sizes = ", ".join(str(len(fold["val"])) for fold in folds)
    return [
        *said,
        f"{counted(len(folds), 'fold')} with {sizes} validation cases; no patient in training and validation of a fold",
    ]
