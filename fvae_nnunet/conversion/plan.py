"""What a published dataset holds and what is to be done with it, before any image is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fvae_nnunet.case_reports import CaseReport
from fvae_nnunet.conversion import ct_rate, rexgroundingct
from fvae_nnunet.conversion.cases import Source
from fvae_nnunet.conversion.ct_rate import VolumeName
from fvae_nnunet.conversion.rexgroundingct import GroundedCase
from fvae_nnunet.conversion.splits import shared_patients
from fvae_nnunet.conversion.tables import (
    FINDINGS,
    Table,
    VolumeMetadata,
    read_findings,
    read_metadata,
    read_reports,
)
from fvae_nnunet.errors import UserError

TABLES = {
    "metadata": (ct_rate.METADATA_FILES, read_metadata),
    "reports": (ct_rate.REPORT_FILES, read_reports),
    "labels": (ct_rate.LABEL_FILES, read_findings),
}


@dataclass
class Plan:
    """The cases to convert and what is known about them.

    Attributes:
        sources: case -> what it is made from.
        reports: case -> what is known about it, still without disease masks.
        findings: names; empty where there are no labels.
        labels: classes of the label maps; empty where there are none.
        notes: sentences for the user.
        homeless: rows of the tables that belong to no volume.
    """

    findings: tuple[str, ...]
    labels: Mapping[str, int] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)
    reports: dict[str, CaseReport] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    homeless: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Tables:
    metadata: Table[VolumeMetadata]
    reports: Table[str]
    labels: Table[dict[str, int]]
    files: Mapping[str, list[Path]]

    def problem(self, volume: VolumeName) -> str | None:
        wrong = (table.wrong.get(volume) for table in (self.metadata, self.reports, self.labels))
        return "; ".join(reason for reason in wrong if reason) or None


def plan_ct_rate(
    root: Path, *, split: str, scans: str, selection: Path | None, tables: Mapping[str, list[Path] | None]
) -> Plan:
    """CT-RATE: ``train`` goes to Tr, ``valid`` to Ts; volumes that the publishers list as no chest are left out.

    Args:
        root: the download.
        split: ``train``, ``valid`` or ``all``.
        scans: ``first``: the lowest reconstruction number of each scan; ``all``: every reconstruction.
        selection: a list of volumes, scans or patients; None for all.
        tables: ``metadata``, ``reports``, ``labels`` -> files, or None for the published ones that are there.

    Raises:
        UserError: files are missing or are none of this dataset's.
    """
    splits = ct_rate.SPLITS if split == "all" else (split,)
    found = ct_rate.find_volumes(root, splits)
    folder = ct_rate.data_folder(root)
    read = _read_tables(folder, splits, tables)
    plan = _begin(read)
    no_chest = ct_rate.read_no_chest(ct_rate.published_files(folder, ct_rate.NO_CHEST_FILES, splits))
    chosen = [volume for volume in found if volume not in no_chest]
    if len(chosen) < len(found):
        plan.notes.append(f"{len(found) - len(chosen)} volumes are left out: the publishers list them as no chest")
    if selection is not None:
        named = ct_rate.read_selection(selection, chosen)
        chosen = [volume for volume in chosen if volume in named]
    if scans == "first":
        before, chosen = len(chosen), ct_rate.first_reconstructions(chosen)
        if len(chosen) < before:
            plan.notes.append(f"{before - len(chosen)} further reconstructions of the same scans are left out")
    for volume in chosen:
        _add(plan, read, volume, found[volume], split="test" if volume.split == "valid" else "train")
    _say_what_is_missing(plan, read)
    return plan


def plan_rexgroundingct(
    root: Path,
    *,
    volumes: Path,
    json_file: Path | None,
    split: str,
    selection: Path | None,
    tables: Mapping[str, list[Path] | None],
    leave_out_shared: bool,
) -> Plan:
    """ReXGroundingCT: ``train`` goes to Tr, ``val`` to Ts; ``test``, whose masks are withheld, is left out.

    Args:
        root: the download of the masks.
        volumes: that of CT-RATE.
        json_file: the list of findings; None for ``dataset.json``.
        split: ``train``, ``val`` or ``all``.
        selection, tables: as for ``plan_ct_rate``.
        leave_out_shared: leave training cases out whose patient is in Ts; else that is an error.

    Raises:
        UserError: as ``plan_ct_rate``, or patients are in Tr and Ts.
    """
    if not root.is_dir():
        raise UserError(f"{root} is no folder")
    grounded = rexgroundingct.read_cases(json_file or root / "dataset.json")
    found = ct_rate.find_volumes(volumes, ct_rate.SPLITS)
    read = _read_tables(ct_rate.data_folder(volumes), ct_rate.SPLITS, tables)
    plan = replace(_begin(read), labels=rexgroundingct.LABELS)
    plan.homeless += grounded.homeless
    withheld = sum(case.split == "test" for case in grounded.rows.values())
    if withheld:
        plan.notes.append(f"{withheld} cases of the split test are left out: their masks are withheld")
    wanted = rexgroundingct.SPLITS if split == "all" else (split,)
    chosen = {volume: case for volume, case in grounded.rows.items() if case.split in wanted}
    named = {*chosen, *grounded.wrong}
    if selection is not None:
        named &= ct_rate.read_selection(selection, named)
    chosen = _without_shared(plan, {volume: chosen[volume] for volume in chosen if volume in named}, leave_out_shared)
    for volume in sorted(chosen):
        case = chosen[volume]
        problem: str | None = None
        mask: Path | None = root
        try:
            mask = rexgroundingct.find_mask(root, volume) if case.findings else None
            if volume not in found:
                raise UserError(f"{volumes} has no volume {volume.file_name}")
        except UserError as error:
            problem = str(error)
        target = "test" if case.split == "val" else "train"
        image = found.get(volume, volumes)
        _add(plan, read, volume, image, split=target, grounding=(case, mask), problem=problem)
    for volume in sorted(named & grounded.wrong.keys()):
        _add(plan, read, volume, volumes, split="train", problem=grounded.wrong[volume])
    if not read.files["reports"]:
        plan.notes.append("there is no table of reports: a case's text is that of its findings, one after the other")
        for volume, case in chosen.items():
            text = " ".join(_sentence(finding.text) for finding in case.findings) or None
            plan.reports[volume.case] = replace(plan.reports[volume.case], report=text)
    _say_what_is_missing(plan, read)
    return plan


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else text + "."


def _without_shared(
    plan: Plan, cases: Mapping[VolumeName, GroundedCase], leave_out: bool
) -> dict[VolumeName, GroundedCase]:
    """The cases without those training cases whose patient is in test; UserError unless that is wanted."""
    patients = {volume.case: volume.patient for volume in cases}
    train, test = ([volume.case for volume, case in cases.items() if case.split == name] for name in ("train", "val"))
    shared = shared_patients(train, test, patients)
    if shared and not leave_out:
        named = "; ".join(f"{patient} ({', '.join(of_patient)})" for patient, of_patient in shared.items())
        raise UserError(
            f"{len(shared)} patients are in the published splits train and val: {named}. "
            "--leave-out-shared leaves their cases out of training"
        )
    kept = {volume: case for volume, case in cases.items() if case.split == "val" or volume.patient not in shared}
    if len(kept) < len(cases):
        left_out = ", ".join(volume.case for volume in cases if volume not in kept)
        plan.notes.append(f"left out of training, as their patients are in test: {left_out}")
    return kept


def _read_tables(folder: Path, splits: Iterable[str], given: Mapping[str, list[Path] | None]) -> _Tables:
    splits = list(splits)
    files = {}
    for kind, (names, _) in TABLES.items():
        paths = given.get(kind)
        files[kind] = ct_rate.published_files(folder, names, splits) if paths is None else paths
    read: dict[str, Any] = {kind: reader(files[kind]) for kind, (_, reader) in TABLES.items()}
    return _Tables(**read, files=files)


def _begin(tables: _Tables) -> Plan:
    homeless = [row for table in (tables.metadata, tables.reports, tables.labels) for row in table.homeless]
    return Plan(FINDINGS if tables.files["labels"] else (), homeless=homeless)


def _add(
    plan: Plan,
    tables: _Tables,
    volume: VolumeName,
    image: Path,
    *,
    split: str,
    grounding: tuple[GroundedCase, Path | None] | None = None,
    problem: str | None = None,
) -> None:
    metadata = tables.metadata.rows.get(volume)
    problem = problem or tables.problem(volume)
    plan.sources[volume.case] = Source(volume, image, split, metadata, grounding, problem)
    plan.reports[volume.case] = CaseReport(
        volume.patient,
        split,
        volume.file_name,
        tables.reports.rows.get(volume),
        tables.labels.rows.get(volume),
    )


def _say_what_is_missing(plan: Plan, tables: _Tables) -> None:
    """Tables that are not there, and cases without a row."""
    for kind, (names, _) in TABLES.items():
        if not tables.files[kind]:
            plan.notes.append(f"no table of {kind} ({', '.join(names.values())}); --{kind} names one")
    without = {
        "report": [case for case, report in plan.reports.items() if report.report is None],
        "labels": [case for case, report in plan.reports.items() if report.findings is None],
    }
    for what, cases in without.items():
        if tables.files["labels" if what == "labels" else "reports"] and cases:
            plan.notes.append(f"{len(cases)} of {len(plan.reports)} cases have no {what} (first: {cases[0]})")
