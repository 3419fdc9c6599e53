"""Reports, findings and patients of the cases of a dataset: ``reports.json`` in the raw folder.

``fvae-convert`` writes it::

    {"schema": 1, "kind": "reports", "findings": ["Medical material", ...], "cases": {"train_1_a_1": {
        "patient": "train_1", "split": "train", "source": "train_1_a_1.nii.gz",
        "report": "...",
        "findings": {"Medical material": 0, ...},
        "disease_masks": [{"label": 1, "name": "nodule", "text": "...", "voxels": 123}, ...]}}}

``report``, ``findings`` and ``disease_masks`` are left out if they are unknown. A case with ``disease_masks`` equal to
``[]`` was examined and has none. The ``findings`` of a case contain all names of the file's list.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fvae_nnunet.errors import UserError, some_of
from fvae_nnunet.files.checked_json import Rule, check_shape, problems, read_json
from fvae_nnunet.jobs.manifest import write_json

FILE_NAME = "reports.json"
SCHEMA = 1
KIND = "reports"
SPLITS = ("train", "test")
MOST_NAMED = 20
"""Maximum number of wrong entries listed in a message."""

_ABSENT = Rule("absent", lambda value: False)
_TEXT = Rule("a text that is not empty", lambda value: isinstance(value, str) and bool(value.strip()))
_MASK = {
    "label": Rule("a whole number from 1 to 255", lambda value: type(value) is int and 1 <= value <= 255),
    "name": str,
    "text": str,
    "voxels": int,
    "*": _ABSENT,
}


def _entries(findings: Iterable[str]) -> dict[str, Any]:
    """Shape of ``cases`` (see ``files.checked_json``); each case has all these findings or none."""
    zero_or_one = Rule("0 or 1", lambda value: type(value) is int and value in (0, 1))
    entry = {
        "patient": _TEXT,
        "split": Rule(" or ".join(SPLITS), lambda value: value in SPLITS),
        "source": _TEXT,
        "report?": _TEXT,
        "findings?": dict.fromkeys(findings, zero_or_one) | {"*": _ABSENT},
        "disease_masks?": [_MASK],
        "*": _ABSENT,
    }
    return {"*": entry}


@dataclass(frozen=True)
class DiseaseMask:
    """One described finding of a case and its class in the label map.

    Attributes:
        label: class in the label map, from 1.
        name: name of the class, as in ``dataset.json``.
        text: sentence that describes the finding; may be empty.
        voxels: number of voxels of its own mask, before other findings overwrite some of them.
    """

    label: int
    name: str
    text: str
    voxels: int


@dataclass(frozen=True)
class CaseReport:
    """Entry of one case.

    Attributes:
        patient: patient of the scan; all cases of a patient belong on one side of every split.
        split: ``train`` (imagesTr) or ``test`` (imagesTs).
        source: name of the file from which the image was made.
        report: report text for a text encoder; None if there is none.
        findings: name -> 0 or 1, for all names of the dataset; None if unknown.
        disease_masks: findings in the label map; None if there is no label map.
    """

    patient: str
    split: str
    source: str
    report: str | None = None
    findings: Mapping[str, int] | None = None
    disease_masks: tuple[DiseaseMask, ...] | None = None


@dataclass(frozen=True)
class CaseReports:
    """Entries of all cases of a dataset.

    Attributes:
        findings: names of the findings, in the order of the source dataset; empty if no case has any.
        cases: case -> its entry.
    """

    findings: tuple[str, ...] = ()
    cases: Mapping[str, CaseReport] = field(default_factory=dict)


def find_case_reports(raw_folder: Path) -> Path:
    """Path of the ``reports.json`` in a dataset folder in ``nnUNet_raw``.

    Raises:
        UserError: the file does not exist.
    """
    path = raw_folder / FILE_NAME
    if not path.is_file():
        raise UserError(
            f"{raw_folder} has no {FILE_NAME}; fvae-convert writes it, and docs/conversion.md describes its format"
        )
    return path


def read_case_reports(path: Path) -> CaseReports:
    """Read and check a ``reports.json``.

    Raises:
        UserError: the file is missing, not JSON, of another kind or schema, or has wrong entries; the message lists
            them, one per line.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file")
    content = read_json(path)
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise UserError(f"{path} is not a file of reports: expected kind {KIND!r}; fvae-convert writes such files")
    if content.get("schema") != SCHEMA:
        raise UserError(
            f"{path} has schema {content.get('schema')!r}, not {SCHEMA}; it was written by another version of "
            "fvae_nnunet. Convert the dataset again"
        )
    check_shape(path, content, {"findings": [_TEXT], "cases": dict})
    findings, cases = content["findings"], content["cases"]
    twice = sorted({name for name in findings if findings.count(name) > 1})
    if twice:
        raise UserError(f"{path}: findings names {', '.join(twice)} twice")
    wrong = list(problems(cases, _entries(findings)))
    if wrong:
        raise UserError(f"{path} has wrong entries:\n  " + some_of(wrong, MOST_NAMED, "\n  "))
    return CaseReports(tuple(findings), {case: _case(entry) for case, entry in cases.items()})


def write_case_reports(path: Path, reports: CaseReports) -> None:
    """Write a ``reports.json``, atomically; equal content gives equal bytes.

    Raises:
        UserError: an entry is wrong by the rules of ``read_case_reports``; then nothing is written.
    """
    cases = {case: _entry(report) for case, report in reports.cases.items()}
    wrong = list(problems(cases, _entries(reports.findings)))
    if wrong:
        entries = some_of(wrong, MOST_NAMED, "\n  ")
        raise UserError(f"{path} is not written, because these entries would be wrong:\n  {entries}")
    write_json(path, {"schema": SCHEMA, "kind": KIND, "findings": list(reports.findings), "cases": cases})


def _entry(report: CaseReport) -> dict[str, Any]:
    entry = asdict(report)
    if report.disease_masks is not None:
        entry["disease_masks"] = list(entry["disease_masks"])
    return {key: value for key, value in entry.items() if value is not None}


def _case(entry: dict[str, Any]) -> CaseReport:
    masks = entry.get("disease_masks")
    return CaseReport(
        **entry | {"disease_masks": None if masks is None else tuple(DiseaseMask(**mask) for mask in masks)}
    )
