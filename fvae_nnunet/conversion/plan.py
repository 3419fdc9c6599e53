"""Plan a conversion: find the cases of a published dataset and what is known about them, before any image is read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fvae_nnunet.conversion import ct_rate, rexgroundingct
from fvae_nnunet.conversion.cases import Source
from fvae_nnunet.conversion.ct_rate import VolumeName
from fvae_nnunet.conversion.rexgroundingct import GroundedCase, GroundedCases
from fvae_nnunet.conversion.tables import (
    FINDINGS,
    Table,
    VolumeMetadata,
    read_findings,
    read_metadata,
    read_reports,
)
from fvae_nnunet.errors import UserError
from fvae_nnunet.nnunet.case_reports import CaseReport
from fvae_nnunet.nnunet.patient_splits import refuse_shared, shared_patients
from fvae_nnunet.numbers_as_text import counted

TABLES = {
    "metadata": (ct_rate.METADATA_FILES, read_metadata),
    "reports": (ct_rate.REPORT_FILES, read_reports),
    "labels": (ct_rate.LABEL_FILES, read_findings),
}


@dataclass
class Plan:
    """The cases to convert and what is known about them.

    Attributes:
        findings: names of the findings; empty if there is no table of labels.
        labels: classes of the label maps; empty if there are no label maps.
        sources: case -> its inputs.
        reports: case -> its report and findings, still without disease masks.
        left_out: case -> why it must not be in the dataset, regardless of other options.
        notes: sentences for the user.
        unassigned_rows: rows of the tables that belong to no volume.
    """

    findings: tuple[str, ...]
    labels: Mapping[str, int] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)
    reports: dict[str, CaseReport] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    unassigned_rows: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Tables:
    metadata: Table[VolumeMetadata]
    reports: Table[str]
    labels: Table[dict[str, int]]
    files: Mapping[str, list[Path]]

    def problem(self, volume: VolumeName) -> str | None:
        wrong = (table.wrong.get(volume) for table in (self.metadata, self.reports, self.labels))
        return "; ".join(reason for reason in wrong if reason) or None

    @property
    def volumes(self) -> set[VolumeName]:
        """All volumes that have a row, valid or not."""
        every = (self.metadata, self.reports, self.labels)
        return {volume for table in every for volume in (*table.rows, *table.wrong)}


def plan_ct_rate(
    root: Path,
    *,
    split: str,
    scans: str,
    selection: Path | None,
    tables: Mapping[str, list[Path] | None],
    converted: Collection[str] = (),
) -> Plan:
    """Plan the conversion of CT-RATE: ``train`` goes to Tr, ``valid`` to Ts.

    Left out are volumes that the publishers list as not showing the chest, and volumes that only the tables name.

    Args:
        root: folder of the download.
        split: ``train``, ``valid`` or ``all``.
        scans: ``first``: one reconstruction per scan, the one already converted or the one with the lowest number;
            ``all``: every reconstruction.
        selection: file with a list of volumes, scans or patients; None: all.
        tables: ``metadata``, ``reports``, ``labels`` -> files; None: the published ones that exist.
        converted: cases that are already in the dataset.

    Raises:
        UserError: files are missing or do not belong to this dataset.
    """
    splits = ct_rate.SPLITS if split == "all" else (split,)
    found = ct_rate.find_volumes(root, splits)
    folder = ct_rate.data_folder(root)
    read = _read_tables(folder, splits, tables)
    plan = _begin(read)
    no_chest = ct_rate.read_no_chest(ct_rate.published_files(folder, ct_rate.NO_CHEST_FILES, splits))
    plan.left_out = {volume.case: "the publishers list it as not showing the chest" for volume in no_chest}
    _say_absent(plan, {volume for volume in read.volumes - no_chest if volume.split in splits}, found, root)
    chosen = [volume for volume in found if volume not in no_chest]
    if len(chosen) < len(found):
        left_out = counted(len(found) - len(chosen), "volume")
        plan.notes.append(f"{left_out} left out: listed by the publishers as not showing the chest")
    if selection is not None:
        named = ct_rate.read_selection(selection, found)
        chosen = [volume for volume in chosen if volume in named]
    if scans == "first":
        there = {volume for case in converted if (volume := VolumeName.parse(case))} - no_chest
        every, chosen = chosen, ct_rate.first_reconstructions(chosen, there)
        further = {*every} - {*chosen} - there
        if further:
            plan.notes.append(f"{counted(len(further), 'further reconstruction')} of the same scans left out")
    for volume in chosen:
        _add(plan, read, volume, found[volume], split="test" if volume.split == "valid" else "train")
    if not chosen:
        raise UserError("nothing is left to convert: " + "; ".join(plan.notes or ["no volume is chosen"]))
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
    """Plan the conversion of ReXGroundingCT: ``train`` goes to Tr, ``val`` to Ts.

    Left out are the cases of ``test``, whose masks are withheld, and cases whose volume is missing.

    Args:
        root: folder of the downloaded masks.
        volumes: folder of the downloaded CT-RATE.
        json_file: list of findings; None: ``dataset.json`` in ``root``.
        split: ``train``, ``val`` or ``all``.
        selection, tables: as for ``plan_ct_rate``.
        leave_out_shared: leave out training cases whose patient is also in ``val``, regardless of ``split`` and
            ``selection``. False: converting both is an error.

    Raises:
        UserError: as for ``plan_ct_rate``; no listed volume exists, or a patient is in Tr and Ts.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder")
    json_file = json_file or root / "dataset.json"
    grounded = rexgroundingct.read_cases(json_file)
    found = ct_rate.find_volumes(volumes, ct_rate.SPLITS)
    read = _read_tables(ct_rate.data_folder(volumes), ct_rate.SPLITS, tables)
    plan = replace(_begin(read), labels=rexgroundingct.LABELS)
    plan.unassigned_rows += grounded.unassigned_rows
    if grounded.withheld:
        plan.notes.append(f"{counted(grounded.withheld, 'case')} of the split test left out: their masks are withheld")
    wanted = set(rexgroundingct.SPLITS if split == "all" else (split,))
    listed = {volume for volume, splits in grounded.published.items() if splits & wanted}
    if not listed:
        raise UserError(f"{json_file} lists no case of `split={split!r}`")
    chosen = listed & found.keys()
    if not chosen:
        raise UserError(
            f"{volumes} has none of the {counted(len(listed), 'volume')} listed in {json_file} (first: "
            f"{min(listed).file_name}); give the download of CT-RATE with `volumes`"
        )
    _say_absent(plan, listed, found, volumes)
    if selection is not None:
        chosen &= ct_rate.read_selection(selection, chosen)
    chosen = _without_shared(plan, grounded, chosen, leave_out_shared)
    for volume in sorted(chosen):
        case, problem = grounded.rows.get(volume), grounded.wrong.get(volume)
        mask = None
        if case is not None and case.findings:
            try:
                mask = rexgroundingct.find_mask(root, volume)
            except UserError as error:
                problem = str(error)
        target = "test" if "val" in grounded.published[volume] else "train"
        grounding = None if case is None else (case, mask)
        _add(plan, read, volume, found[volume], split=target, grounding=grounding, problem=problem)
    if not read.files["reports"]:
        plan.notes.append("no table of reports is given: the report of a case is the text of its findings")
        for volume in chosen & grounded.rows.keys():
            case = grounded.rows[volume]
            texts = [finding.text.strip() for finding in case.findings]
            text = " ".join(_sentence(text) for text in texts if text) or None
            plan.reports[volume.case] = replace(plan.reports[volume.case], report=text)
    _say_what_is_missing(plan, read)
    return plan


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else text + "."


def _without_shared(plan: Plan, grounded: GroundedCases, chosen: set[VolumeName], leave_out: bool) -> set[VolumeName]:
    """The chosen volumes, with ``leave_out`` without those of ``train`` whose patient is also in ``val``.

    Without ``leave_out`` they are kept, and the plan notes it.

    Raises:
        UserError: without ``leave_out``, cases of one patient from both splits would be converted.
    """
    shared = grounded.in_training_and_val
    if leave_out:
        plan.left_out = {volume.case: "its patient is also in val" for volume in shared}
        if chosen & shared:
            plan.notes.append(f"left out of training, as their patients are also in val: {_cases(chosen & shared)}")
        return chosen - shared
    right = chosen & grounded.rows.keys()
    train, test = ([v.case for v in right if grounded.rows[v].split == split] for split in rexgroundingct.SPLITS)
    both = shared_patients(train, test, {volume.case: volume.patient for volume in right})
    refuse_shared(both, "train and val", ". Leave their cases out of training with `leave_out_shared=True`")
    if right & shared:
        plan.notes.append(
            f"training cases whose patients are also in val: {_cases(right & shared)}; leave them out with "
            "`leave_out_shared=True`"
        )
    return chosen


def _cases(volumes: Iterable[VolumeName]) -> str:
    return ", ".join(volume.case for volume in sorted(volumes))


def _say_absent(plan: Plan, listed: Collection[VolumeName], found: Collection[VolumeName], root: Path) -> None:
    absent = {*listed} - {*found}
    if absent:
        plan.notes.append(
            f"{len(absent)} of {counted(len(listed), 'listed volume')} left out: not found in {root} "
            f"(first: {min(absent).case})"
        )


def _read_tables(folder: Path, splits: Iterable[str], given: Mapping[str, list[Path] | None]) -> _Tables:
    splits = list(splits)
    files = {}
    for kind, (names, _) in TABLES.items():
        paths = given.get(kind)
        files[kind] = ct_rate.published_files(folder, names, splits) if paths is None else paths
    read: dict[str, Any] = {kind: reader(files[kind]) for kind, (_, reader) in TABLES.items()}
    return _Tables(**read, files=files)


def _begin(tables: _Tables) -> Plan:
    unassigned_rows = [
        row for table in (tables.metadata, tables.reports, tables.labels) for row in table.unassigned_rows
    ]
    return Plan(FINDINGS if tables.files["labels"] else (), unassigned_rows=unassigned_rows)


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
    """Note missing tables and cases without a row."""
    for kind, (names, _) in TABLES.items():
        if not tables.files[kind]:
            plan.notes.append(f"no table of {kind} ({', '.join(names.values())}); give one with `{kind}`")
    without = {
        "report": [case for case, report in plan.reports.items() if report.report is None],
        "labels": [case for case, report in plan.reports.items() if report.findings is None],
    }
    for what, cases in without.items():
        if tables.files["labels" if what == "labels" else "reports"] and cases:
            plan.notes.append(
                f"{len(cases)} of {counted(len(plan.reports), 'case')} without {what} (first: {cases[0]})"
            )
