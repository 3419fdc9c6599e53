"""Write the files that describe a converted dataset as a whole: reports, structures, ``dataset.json`` and folds."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from fvae_nnunet.conversion.cases import CASE_RECORD, Conversion, recorded_masks
from fvae_nnunet.conversion.nnunet_dataset import SUFFIXES, image_path, write_dataset_json
from fvae_nnunet.conversion.plan import Plan
from fvae_nnunet.conversion.structures import structures
from fvae_nnunet.errors import UserError, some_of
from fvae_nnunet.jobs.manifest import write_json
from fvae_nnunet.nnunet.case_reports import FILE_NAME, CaseReport, CaseReports, read_case_reports, write_case_reports
from fvae_nnunet.nnunet.files import read_splits
from fvae_nnunet.nnunet.patient_splits import FILE_NAME as SPLITS_FILE
from fvae_nnunet.nnunet.patient_splits import check_leakage, deal_folds, write_folds
from fvae_nnunet.nnunet.structures import NAMES_FILE
from fvae_nnunet.numbers_as_text import counted
from fvae_nnunet.training.views import SEPARATOR

MOST_NAMED = 20
"""Maximum number of invalid cases named in a message."""

DESCRIPTIONS = {
    "ct-rate": "CT-RATE (Hamamci et al. 2024, arXiv 2403.17834)",
    "rexgroundingct": "ReXGroundingCT (Baharoon et al. 2025, arXiv 2507.22030) on CT-RATE",
}


def check_plan(plan: Plan, conversion: Conversion, preprocessed: Path, folds: int, *, overwrite: bool) -> None:
    """Raise UserError before any work if the splits are not possible or earlier conversions have become invalid.

    Cases that cannot be converted are ignored for the splits.

    Args:
        plan: the cases to convert.
        conversion: settings and target folder.
        preprocessed: folder of the dataset in ``nnUNet_preprocessed``.
        folds: number of folds; 0: none.
        overwrite: ignore what was converted before.
    """
    before = _cases_before(conversion, overwrite)
    if not overwrite:
        _refuse_doubtful(plan, conversion, before)
    cases = {case: report for case, report in before.items() if case not in plan.left_out}
    cases |= {case: report for case, report in plan.reports.items() if plan.sources[case].problem is None}
    check_leakage(cases)
    if folds and _has_training(cases):
        path = preprocessed / SPLITS_FILE
        deal_folds(cases, folds, read_splits(path) if path.exists() and not overwrite else None)


def finish_dataset(
    plan: Plan, conversion: Conversion, preprocessed: Path, folds: int, *, failed: Collection[str], overwrite: bool
) -> list[str]:
    """Write the dataset-level files for all complete cases, and return sentences on what was written.

    Cases of earlier calls are kept. Arguments as for ``check_plan``; with ``overwrite`` all folds are dealt again.

    Args:
        failed: cases that could not be converted; an earlier conversion of them is kept.

    Raises:
        UserError: a patient is on both sides of a split, or there are too few patients.
    """
    raw, manifest = conversion.raw, conversion.manifest
    cases = _cases_before(conversion, overwrite)
    names: dict[str, int] = {}
    for case, report in plan.reports.items():
        record = manifest.read_case(case, CASE_RECORD)
        if record is not None and not (case in failed and case in cases):
            cases[case] = replace(report, split=record["split"], disease_masks=recorded_masks(record))
    cases = {case: cases[case] for case in sorted(cases) if image_path(raw, cases[case].split, case).is_file()}
    findings: tuple[str, ...] = ()
    if any(report.findings is not None for report in cases.values()):
        findings = plan.findings or read_case_reports(raw / FILE_NAME).findings
    write_case_reports(raw / FILE_NAME, CaseReports(findings, cases))
    write_dataset_json(raw, plan.labels, DESCRIPTIONS[conversion.kind])
    if conversion.structures is not None:
        occurring = {
            name for case in cases for name in (manifest.read_case(case, CASE_RECORD) or {}).get("structures", {})
        }
        names = {structure.name: structure.id for structure in structures() if structure.name in occurring}
        for split, suffix in SUFFIXES.items():
            if any(report.split == split for report in cases.values()):
                write_json(raw / f"structures{suffix}" / NAMES_FILE, names)
    said = [f"{raw / FILE_NAME}: {counted(len(cases), 'case')}"]
    if unrecorded := sorted(cases.keys() - set(manifest.cases)):
        said.append(
            f"WARNING: {counted(len(unrecorded), 'case')} of an earlier conversion may be damaged, as a conversion of "
            f"them did not end: {some_of(unrecorded, MOST_NAMED)}"
        )
    if names:
        said.append(f"{counted(len(names), 'structure')} found")
    said += _still_preprocessed(raw, preprocessed)
    check_leakage(cases)
    if folds and _has_training(cases):
        path = preprocessed / SPLITS_FILE
        dealt = write_folds(path, cases, folds, anew=overwrite)
        said.append(f"{path}: {counted(len(dealt), 'fold')} by patient")
    return said


def _has_training(cases: Mapping[str, CaseReport]) -> bool:
    return any(report.split == "train" for report in cases.values())


def _cases_before(conversion: Conversion, overwrite: bool) -> dict[str, CaseReport]:
    """The cases of ``reports.json`` whose image exists."""
    path = conversion.raw / FILE_NAME
    if overwrite or not path.exists():
        return {}
    cases = read_case_reports(path).cases
    return {case: report for case, report in cases.items() if image_path(conversion.raw, report.split, case).is_file()}


def _refuse_doubtful(plan: Plan, conversion: Conversion, before: Mapping[str, CaseReport]) -> None:
    """Raise UserError if converted cases are now invalid, or belong to another call that was interrupted."""
    converted = set(conversion.manifest.cases)
    wrong = [
        f"{case}: {source.problem}"
        for case, source in plan.sources.items()
        if source.problem is not None and case in converted
    ]
    if wrong:
        raise UserError(
            f"{counted(len(wrong), 'case')} converted before would now be invalid:\n  "
            + some_of(wrong, MOST_NAMED, "\n  ")
            + "\nNothing was done. Repair them, or give `overwrite=True` to convert everything again without them"
        )
    unknown = sorted(converted - before.keys() - plan.sources.keys() - plan.left_out.keys())
    stray = [case for case in unknown if any(image_path(conversion.raw, split, case).is_file() for split in SUFFIXES)]
    if stray:
        raise UserError(
            f"{conversion.raw} has {counted(len(stray), 'case')} of an interrupted run (first: {stray[0]}) that this "
            "run does not include. Complete that run, or give `overwrite=True` to convert everything again"
        )


def _still_preprocessed(raw: Path, preprocessed: Path) -> list[str]:
    """A sentence if nnU-Net has preprocessed cases that are no longer training cases."""
    there = {path.stem for path in preprocessed.glob("*/*.pkl") if SEPARATOR not in path.parent.name}
    stale = sorted(case for case in there if not image_path(raw, "train", case).is_file())
    if not stale:
        return []
    return [
        f"{preprocessed} has {counted(len(stale), 'case')} no longer in the training set (first: {stale[0]}). Run "
        "nnUNetv2_plan_and_preprocess again; otherwise nnU-Net's fold all trains on them"
    ]
