"""What belongs to a converted dataset as a whole: reports, structures, ``dataset.json`` and folds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from fvae_nnunet.case_reports import FILE_NAME, CaseReport, CaseReports, read_case_reports, write_case_reports
from fvae_nnunet.conversion.cases import Conversion, recorded_masks
from fvae_nnunet.conversion.nnunet_dataset import SUFFIXES, image_path, write_dataset_json
from fvae_nnunet.conversion.plan import Plan
from fvae_nnunet.conversion.splits import FILE_NAME as SPLITS_FILE
from fvae_nnunet.conversion.splits import check_leakage, deal_folds, read_folds, write_folds
from fvae_nnunet.conversion.structures import structures
from fvae_nnunet.manifest import write_json
from fvae_nnunet.synthesis.structures import NAMES_FILE

DESCRIPTIONS = {
    "ct-rate": "CT-RATE (Hamamci et al. 2024, arXiv 2403.17834)",
    "rexgroundingct": "ReXGroundingCT (Baharoon et al. 2025, arXiv 2507.22030) on CT-RATE",
}


def check_plan(plan: Plan, conversion: Conversion, preprocessed: Path, folds: int, *, overwrite: bool) -> None:
    """Raise UserError where the splits cannot be made, before any work.

    Args:
        plan: what is to be converted.
        conversion: how and where to.
        preprocessed: the dataset's folder in ``nnUNet_preprocessed``.
        folds: how many; 0 for none.
        overwrite: what is there does not count.
    """
    cases = _cases_before(conversion, overwrite) | plan.reports
    check_leakage(cases)
    if folds and _has_training(cases):
        path = preprocessed / SPLITS_FILE
        deal_folds(cases, folds, read_folds(path) if path.exists() and not overwrite else None)


def finish_dataset(plan: Plan, conversion: Conversion, preprocessed: Path, folds: int, *, overwrite: bool) -> list[str]:
    """Write what belongs to the dataset as a whole, for the cases that are complete; sentences on what was written.

    Cases of earlier calls stay. Arguments as for ``check_plan``; ``overwrite`` deals the folds anew.

    Raises:
        UserError: the splits leak, or there are too few patients.
    """
    raw, manifest = conversion.raw, conversion.manifest
    cases = dict(_cases_before(conversion, overwrite=overwrite))
    names: dict[str, int] = {}
    for case, report in plan.reports.items():
        record = manifest.read_case(case)
        if record is not None and plan.sources[case].problem is None:
            cases[case] = replace(report, disease_masks=recorded_masks(record))
        else:
            cases.pop(case, None)
    cases = {case: cases[case] for case in sorted(cases) if image_path(raw, cases[case].split, case).is_file()}
    findings = plan.findings or (read_case_reports(raw / FILE_NAME).findings if (raw / FILE_NAME).exists() else ())
    write_case_reports(raw / FILE_NAME, CaseReports(findings, cases))
    write_dataset_json(raw, plan.labels, DESCRIPTIONS[conversion.kind])
    if conversion.structures is not None:
        occurring = {name for case in cases for name in (manifest.read_case(case) or {}).get("structures", {})}
        names = {structure.name: structure.id for structure in structures() if structure.name in occurring}
        for split, suffix in SUFFIXES.items():
            if any(report.split == split for report in cases.values()):
                write_json(raw / f"structures{suffix}" / NAMES_FILE, names)
    said = [f"{raw / FILE_NAME}: {len(cases)} cases"]
    if names:
        said.append(f"{len(names)} structures occur")
    check_leakage(cases)
    if folds and _has_training(cases):
        path = preprocessed / SPLITS_FILE
        dealt = write_folds(path, cases, folds, anew=overwrite)
        said.append(f"{path}: {len(dealt)} folds by patient")
    return said


def _has_training(cases: Mapping[str, CaseReport]) -> bool:
    return any(report.split == "train" for report in cases.values())


def _cases_before(conversion: Conversion, overwrite: bool) -> dict[str, CaseReport]:
    path = conversion.raw / FILE_NAME
    return dict(read_case_reports(path).cases) if path.exists() and not overwrite else {}
