"""Reading of report texts by case, from JSON, ``reports.json`` or CSV."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from fvae_nnunet.errors import UserError
from fvae_nnunet.nnunet.case_reports import KIND, read_case_reports

DEFAULT_TEXT_ENCODER = "microsoft/BiomedVLP-CXR-BERT-specialized"
"""Text encoder of the paper on the hub (Boecking et al. 2022), 768 channels."""


def read_reports(path: Path) -> dict[str, str]:
    """Read report texts by case from JSON ``{case: text}``, ``reports.json`` of ``fvae-convert``, or CSV with the
    columns ``case`` and ``text``.

    All in UTF-8. White space around a text is removed. Cases of ``reports.json`` without a report are left out.

    Raises:
        UserError: the file is missing, has another ending or content, a case twice, or an empty text.
    """
    if not path.is_file():
        raise UserError(f"reports: no such file: {path}")
    try:
        if path.suffix == ".json":
            pairs = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=list)
            if not isinstance(pairs, list) or any(not isinstance(pair, tuple) for pair in pairs):
                raise UserError(f"reports: {path} must hold one object {{case: text}}")
            if ("kind", KIND) in pairs:
                known = read_case_reports(path).cases
                pairs = [(case, entry.report) for case, entry in known.items() if entry.report is not None]
        elif path.suffix == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = csv.DictReader(file)
                if not {"case", "text"} <= set(rows.fieldnames or ()):
                    raise UserError(f"reports: {path} needs the columns case and text, got {rows.fieldnames}")
                pairs = [(row["case"], row["text"]) for row in rows]
        else:
            raise UserError(f"reports: {path} must end in .json or .csv")
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise UserError(f"reports: {path} cannot be read: {error}") from error
    reports: dict[str, str] = {}
    for case, text in pairs:
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"reports: {path}: the text of {case!r} is empty or not a text; leave out the case instead")
        if case in reports:
            raise UserError(f"reports: {path} has {case!r} twice")
        reports[case] = text.strip()
    return reports
