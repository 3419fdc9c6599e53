"""Synthetic cases for the training of a classifier, without those that depend on patients held out for evaluation.

A synthetic case depends on the patient of its source case, on the donors of its lesions' shapes, and, through the
weights of the diffusion model, on the patients that the model was trained on.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvae_nnunet.errors import UserError
from fvae_nnunet.findings.cases import Case, only_ct_channel
from fvae_nnunet.nnunet.case_reports import FILE_NAME, CaseReports, read_case_reports
from fvae_nnunet.nnunet.folders import nnunet_folder
from fvae_nnunet.nnunet.synthetic_folder import read_synthetic_cases, shape_donors, synthetic_dataset_json
from fvae_nnunet.numbers_as_text import counted


@dataclass(frozen=True)
class SyntheticCases:
    """Synthetic cases selected for a training.

    Attributes:
        used: selected cases.
        left_out: reason -> number of cases.
        seen: keys of used cases that may depend on a held-out patient; empty unless allowed.
    """

    used: tuple[Case, ...]
    left_out: Mapping[str, int]
    seen: tuple[str, ...]


class _Patients:
    """Case -> patient, in this dataset and in others of nnUNet_raw that have a ``reports.json``."""

    def __init__(self, dataset: str, reports: CaseReports) -> None:
        self._of_dataset = {dataset: {case: report.patient for case, report in reports.cases.items()}}

    def of(self, dataset: str, case: str) -> str | None:
        """The patient of a case; None if unknown."""
        if dataset not in self._of_dataset:
            path = nnunet_folder("nnUNet_raw") / dataset / FILE_NAME
            cases = read_case_reports(path).cases if path.is_file() else {}
            self._of_dataset[dataset] = {case: report.patient for case, report in cases.items()}
        return self._of_dataset[dataset].get(case)


def gather_synthetic(
    folders: Sequence[Path],
    *,
    dataset: str,
    reports: CaseReports,
    held_out_patients: frozenset[str],
    findings: Sequence[str],
    allow_seen: bool = False,
) -> SyntheticCases:
    """Select the accepted synthetic cases that may be used for training.

    Cases without findings are left out, as are those whose source or shape donor belongs to a held-out patient. Unless
    ``allow_seen``, cases are also left out if their diffusion model was trained on held-out patients, or if one of
    these patients is unknown.

    Args:
        folders: output folders of ``fvae-synthesize``.
        dataset: name of the training dataset.
        reports: reports of that dataset.
        held_out_patients: patients on whom no training case may depend.
        findings: names that the classifier learns; a case needs at least one of them.
        allow_seen: see above.

    Raises:
        UserError: a folder is given twice or does not hold synthetic cases, a finding is not in the dataset or not 0 or
            1, or no case is left.
    """
    places = [folder.resolve() for folder in folders]
    if len(set(places)) < len(places):
        raise UserError("`synthetic` names a folder twice")
    patients = _Patients(dataset, reports)
    used: list[Case] = []
    seen: list[str] = []
    left_out: Counter[str] = Counter()
    for folder in places:
        channel = only_ct_channel(folder, synthetic_dataset_json(folder))
        prefix = f"{folder.name}_{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}__"
        for case in read_synthetic_cases(folder):
            values = _findings(case.record, reports.findings, folder)
            if not any(name in values for name in findings):
                left_out["its record names no finding"] += 1
                continue
            if reason := _forbidden(case.record, patients, held_out_patients):
                left_out[reason] += 1
                continue
            if reason := _doubtful(case.record, patients, held_out_patients):
                if not allow_seen:
                    left_out[reason] += 1
                    continue
                seen.append(prefix + case.name)
            used.append(Case(prefix + case.name, case.images[channel], values, synthetic=True))
    if not used:
        reasons = "\n  ".join(f"{counted(number, 'case')}: {reason}" for reason, number in left_out.items())
        raise UserError(
            f"no synthetic case in {', '.join(map(str, folders))} can be used for training:\n  "
            f"{reasons or 'there is none'}\n"
            "Create some for this fold (fvae-train-ldm and fvae-synthesize with `fold`, findings from a list), or "
            "accept scores that may be too good: `allow_seen=True` uses those with doubtful model or source"
        )
    return SyntheticCases(tuple(used), dict(left_out), tuple(seen))


def _findings(record: Mapping[str, Any], known: Sequence[str], folder: Path) -> dict[str, int]:
    values = record.get("findings") or {}
    wrong = [f"{name}: {value!r}" for name, value in values.items() if name not in known or value not in (0, 1)]
    if wrong:
        raise UserError(
            f"{folder / 'records'}/{record['case']}.json: findings must be 0 or 1 of {', '.join(known)}; got "
            f"{', '.join(wrong)}"
        )
    return {name: int(value) for name, value in values.items()}


def _origins(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(dataset, case) of the source case and of each shape donor, as far as recorded."""
    cases = [record["source_case"], *shape_donors(record)]
    return [(record["dataset"], case) for case in cases if case]


def _forbidden(record: Mapping[str, Any], patients: _Patients, held_out: frozenset[str]) -> str | None:
    if any(patients.of(*origin) in held_out for origin in _origins(record)):
        return "made from a case of a patient who is held out for validation or test"
    return None


def _doubtful(record: Mapping[str, Any], patients: _Patients, held_out: frozenset[str]) -> str | None:
    model = record["model"]
    dataset = model.get("dataset")
    trained_on = [dataset and patients.of(dataset, case) for case in model.get("training_cases") or ()]
    if held_out.intersection(trained_on):
        return "its diffusion model was trained on patients who are held out for validation or test"
    if not record["source_case"] or None in [patients.of(*origin) for origin in _origins(record)]:
        return "the patient from whom it was made is unknown"
    if not trained_on or None in trained_on:
        return "the patients on whom its diffusion model was trained are unknown"
    return None
