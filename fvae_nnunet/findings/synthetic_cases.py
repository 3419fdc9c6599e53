"""Synthetic cases for the training of a classifier, without those that know what it is validated or tested on.

A synthetic case knows the patient whose case it was made from, the donors of its lesions' shapes, and, through the
weights of the diffusion model, those that the model was trained on.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvae_nnunet.errors import UserError
from fvae_nnunet.findings.cases import Case
from fvae_nnunet.nnunet.case_reports import FILE_NAME, CaseReports, read_case_reports
from fvae_nnunet.nnunet.folders import nnunet_folder
from fvae_nnunet.nnunet.synthetic_folder import read_synthetic_cases, shape_donors
from fvae_nnunet.numbers_as_text import counted


@dataclass(frozen=True)
class SyntheticCases:
    """What a training takes of folders of synthetic cases.

    Attributes:
        used: by key.
        left_out: reason -> number of cases.
        seen: names of used cases of which it is not sure that they know no held-out patient; empty unless allowed.
    """

    used: tuple[Case, ...]
    left_out: Mapping[str, int]
    seen: tuple[str, ...]


class _Patients:
    """Case -> patient, in this dataset and in others of nnUNet_raw that have a ``reports.json``."""

    def __init__(self, dataset: str, reports: CaseReports) -> None:
        self._of_dataset = {dataset: {case: report.patient for case, report in reports.cases.items()}}

    def of(self, dataset: str, case: str) -> str | None:
        """None where it is not known."""
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
    ct_channel: int = 0,
    allow_seen: bool = False,
) -> SyntheticCases:
    """The accepted synthetic cases of some folders that may be trained on.

    Left out are cases without findings, cases whose source or donor of a shape is of a held-out patient, and, unless
    ``allow_seen``, those whose diffusion model was trained on held-out patients or of which one of these is not known.

    Args:
        folders: that ``fvae-synthesize`` wrote.
        dataset: name of the dataset that is trained on.
        reports: of that dataset.
        held_out_patients: that no training case may know.
        findings: names that the classifier learns; a case needs at least one of them.
        ct_channel: the channel that is read.
        allow_seen: see above.

    Raises:
        UserError: a folder is given twice or is none of synthetic cases, a finding is none of the dataset's or not 0
            or 1, or no case is left.
    """
    places = [folder.resolve() for folder in folders]
    if len(set(places)) < len(places):
        raise UserError("`synthetic` names a folder twice")
    patients = _Patients(dataset, reports)
    used: list[Case] = []
    seen: list[str] = []
    left_out: Counter[str] = Counter()
    for folder in places:
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
            used.append(Case(prefix + case.name, case.images[ct_channel], values, synthetic=True))
    if not used:
        reasons = "\n  ".join(f"{counted(number, 'case')}: {reason}" for reason, number in left_out.items())
        raise UserError(
            f"no synthetic case in {', '.join(map(str, folders))} may be trained on:\n  {reasons or 'there is none'}\n"
            "Make some for this fold (fvae-train-ldm and fvae-synthesize with `fold`, findings by a list), or accept "
            "scores that may be too good: `allow_seen=True` takes those whose model or source is in doubt"
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
    """(dataset, case) of the source case and of each donor of a shape, as far as they are recorded."""
    cases = [record["source_case"], *shape_donors(record)]
    return [(record["dataset"], case) for case in cases if case]


def _forbidden(record: Mapping[str, Any], patients: _Patients, held_out: frozenset[str]) -> str | None:
    if any(patients.of(*origin) in held_out for origin in _origins(record)):
        return "made from a case of a patient that is held out for validation or test"
    return None


def _doubtful(record: Mapping[str, Any], patients: _Patients, held_out: frozenset[str]) -> str | None:
    model = record["model"]
    trained_on = [patients.of(record["dataset"], case) for case in model.get("training_cases") or ()]
    if held_out.intersection(trained_on):
        return "its diffusion model was trained on patients that are held out for validation or test"
    if not record["source_case"] or None in [patients.of(*origin) for origin in _origins(record)]:
        return "the patient that it was made from is not known"
    if not trained_on or None in trained_on:
        return "the patients that its diffusion model was trained on are not known"
    return None
