"""What is known about each case of a dataset beside its images: ``reports.json`` in the raw folder.

``fvae-convert`` writes it, and whatever needs texts, findings or patients reads it::

    {"schema": 1, "kind": "reports", "findings": ["Medical material", ...], "cases": {"train_1_a_1": {
        "patient": "train_1", "split": "train", "source": "train_1_a_1.nii.gz",
        "report": "...",
        "findings": {"Medical material": 0, ...},
        "disease_masks": [{"label": 1, "name": "nodule", "text": "...", "voxels": 123}, ...]}}}

``report``, ``findings`` and ``disease_masks`` are left out where they are unknown. A case with ``disease_masks`` equal
to ``[]`` was looked at and has none. Where a case has ``findings``, all names of the file's list are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fvae_nnunet.errors import UserError
from fvae_nnunet.files.checked_json import read_json
from fvae_nnunet.jobs.manifest import write_json

FILE_NAME = "reports.json"
SCHEMA = 1
KIND = "reports"
SPLITS = ("train", "test")
_REQUIRED = ("patient", "split", "source")
_OPTIONAL = ("report", "findings", "disease_masks")
_MASK_KEYS = {"label": int, "name": str, "text": str, "voxels": int}


@dataclass(frozen=True)
class DiseaseMask:
    """One described finding of a case and where it is in the case's label map.

    Attributes:
        label: its class in the label map, from 1.
        name: of the class, as in ``dataset.json``.
        text: the sentence that describes it; may be empty.
        voxels: that it has by itself, before another finding may have overwritten some.
    """

    label: int
    name: str
    text: str
    voxels: int


@dataclass(frozen=True)
class CaseReport:
    """What is known about one case.

    Attributes:
        patient: whose scan it is; cases of one patient belong on one side of every split.
        split: ``train`` (imagesTr) or ``test`` (imagesTs).
        source: name of the file that the image was made from.
        report: the text for a text encoder; None where the case has none.
        findings: name -> 0 or 1, all names of the dataset; None where unknown.
        disease_masks: what the label map shows; None where there is no label map.
    """

    patient: str
    split: str
    source: str
    report: str | None = None
    findings: Mapping[str, int] | None = None
    disease_masks: tuple[DiseaseMask, ...] | None = None


@dataclass(frozen=True)
class CaseReports:
    """All cases of a dataset.

    Attributes:
        findings: names, in the order of the source dataset; empty where no case has any.
        cases: case -> what is known about it.
    """

    findings: tuple[str, ...] = ()
    cases: Mapping[str, CaseReport] = field(default_factory=dict)


def find_case_reports(raw_folder: Path) -> Path:
    """The ``reports.json`` of a dataset folder in ``nnUNet_raw``.

    Raises:
        UserError: there is none.
    """
    path = raw_folder / FILE_NAME
    if not path.is_file():
        raise UserError(
            f"{raw_folder} has no {FILE_NAME}; fvae-convert writes it, and docs/conversion.md says what it holds"
        )
    return path


def read_case_reports(path: Path) -> CaseReports:
    """Read and check a ``reports.json``.

    Raises:
        UserError: there is no such file, it is no JSON, of another kind or schema, or an entry is wrong; all wrong
            entries are named, a line each.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file")
    content = read_json(path)
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise UserError(f"{path} is no file of reports: kind {KIND!r} is expected; fvae-convert writes such files")
    if content.get("schema") != SCHEMA:
        raise UserError(
            f"{path} has schema {content.get('schema')!r}, not {SCHEMA}; it was written by another version of "
            "fvae_nnunet. Convert the dataset again"
        )
    findings, cases = content.get("findings"), content.get("cases")
    if not isinstance(findings, list) or not all(isinstance(name, str) and name for name in findings):
        raise UserError(f"{path}: findings must be a list of names")
    if len(set(findings)) != len(findings):
        twice = sorted({name for name in findings if findings.count(name) > 1})
        raise UserError(f"{path}: findings names {', '.join(twice)} twice")
    if not isinstance(cases, dict):
        raise UserError(f"{path}: cases must be an object with an entry for each case")
    wrong = [f"{case}: {problem}" for case, entry in cases.items() for problem in _problems(entry, findings)]
    if wrong:
        more = f"\n  and {len(wrong) - 20} more" if len(wrong) > 20 else ""
        raise UserError(f"{path} has wrong entries:\n  " + "\n  ".join(wrong[:20]) + more)
    return CaseReports(tuple(findings), {case: _case(entry) for case, entry in cases.items()})


def write_case_reports(path: Path, reports: CaseReports) -> None:
    """Write a ``reports.json``, atomically; equal content gives equal bytes.

    Raises:
        UserError: an entry is wrong as ``read_case_reports`` has it; nothing is written then.
    """
    cases = {case: _entry(report) for case, report in reports.cases.items()}
    wrong = [f"{case}: {p}" for case, entry in cases.items() for p in _problems(entry, list(reports.findings))]
    if wrong:
        raise UserError(f"{path} is not written, for these would be wrong entries:\n  " + "\n  ".join(wrong[:20]))
    write_json(path, {"schema": SCHEMA, "kind": KIND, "findings": list(reports.findings), "cases": cases})


def _entry(report: CaseReport) -> dict[str, Any]:
    return {key: value for key, value in asdict(report).items() if value is not None}


def _case(entry: dict[str, Any]) -> CaseReport:
    masks = entry.get("disease_masks")
    return CaseReport(
        **entry | {"disease_masks": None if masks is None else tuple(DiseaseMask(**mask) for mask in masks)}
    )


def _problems(entry: Any, findings: list[str]) -> list[str]:
    """What is wrong with the entry of one case, a sentence each."""
    if not isinstance(entry, dict):
        return ["is no object"]
    found = [f"{key} is missing" for key in _REQUIRED if key not in entry]
    found += [f"{key} is not known" for key in entry if key not in _REQUIRED + _OPTIONAL]
    texts = [key for key in ("patient", "source", "report") if key in entry]
    found += [
        f"{key} must be a text that is not empty, not {entry[key]!r}"
        for key in texts
        if not isinstance(entry[key], str) or not entry[key].strip()
    ]
    if "split" in entry and entry["split"] not in SPLITS:
        found.append(f"split must be {' or '.join(SPLITS)}, not {entry['split']!r}")
    return found + _finding_problems(entry.get("findings", {}), findings, "findings" in entry) + _mask_problems(entry)


def _finding_problems(values: Any, findings: list[str], given: bool) -> list[str]:
    if not given:
        return []
    if not isinstance(values, dict):
        return ["findings must be an object of names and 0 or 1"]
    missing = [name for name in findings if name not in values]
    unknown = [name for name in values if name not in findings]
    found = [f"findings lacks {', '.join(missing)}"] if missing else []
    found += [f"findings has {', '.join(unknown)}, which the file's list has not"] if unknown else []
    return found + [
        f"finding {name} must be 0 or 1, not {value!r}"
        for name, value in values.items()
        if isinstance(value, bool) or not isinstance(value, int) or value not in (0, 1)
    ]


def _mask_problems(entry: dict[str, Any]) -> list[str]:
    masks = entry.get("disease_masks", [])
    if not isinstance(masks, list | tuple):
        return ["disease_masks must be a list"]
    found = []
    for number, mask in enumerate(masks):
        if not isinstance(mask, dict) or set(mask) != set(_MASK_KEYS):
            found.append(f"disease mask {number} must have {', '.join(_MASK_KEYS)}")
            continue
        found += [
            f"disease mask {number}: {key} must be {'a text' if kind is str else 'a whole number'}, not {mask[key]!r}"
            for key, kind in _MASK_KEYS.items()
            if not isinstance(mask[key], kind) or isinstance(mask[key], bool)
        ]
        if isinstance(mask["label"], int) and not 1 <= mask["label"] <= 255:
            found.append(f"disease mask {number}: label must be 1 to 255, not {mask['label']}")
    return found
