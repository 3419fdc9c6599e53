"""Read a list of volumes to generate, the input of ``fvae-synthesize``.

The list is JSON, a list of objects::

    [{"case": "nodule_001", "source": "train_1_a_1", "keep_lesions": false,
      "diseases": {"nodule": "masks/nodule_001.nii.gz"},
      "text": "A nodule of 12 mm in the right upper lobe.", "findings": ["Lung nodule"], "seed": 7}]

or CSV with columns of these names. In CSV, several diseases are ``nodule=a.nii.gz;effusion=b.nii.gz``, several findings
``Lung nodule;Pleural effusion`` (``none``: examined and absent), and ``keep_lesions`` is ``yes`` or ``no``. An empty
cell is a missing entry.

=============  ======================================================================================================
case           name of the volume; letters, digits, ``.``, ``_`` and ``-``
source         a case of the dataset: its structures (or organ), geometry and, unless ``keep_lesions`` is false, lesions
structures     instead of ``source``: a mask file of structures with the dataset's values; the volume has its geometry
keep_lesions   whether the source's own lesions are kept; default true
diseases       label -> mask file on the same grid, nonzero where the disease is
labels         instead of or in addition to ``diseases``: a file with the values of the lesion labels
text           the report, for models trained with text
findings       names of the present findings, from the list in ``reports.json``; recorded for classifiers
seed           seed of the noise; default: derived from the common seed and the case's name
=============  ======================================================================================================

Paths are relative to the folder of the list. Where masks overlap, later diseases overwrite earlier ones, diseases
overwrite ``labels``, and these overwrite the source's own lesions.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvae_nnunet.errors import UserError
from fvae_nnunet.files.checked_json import read_json

FIELDS = ("case", "source", "structures", "keep_lesions", "diseases", "labels", "text", "findings", "seed")
NO_FINDING = "none"
_CELLS = "wrong number of cells"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class ListedCase:
    """A row of a list. Picklable.

    Attributes:
        where: place of the row, for messages: ``line 3`` or ``entry 3``.
        case: name of the volume.
        source: case of the dataset; None if ``structures`` is given.
        structures: mask file of structures; None if ``source`` is given.
        keep_lesions: whether to keep the lesions of the source.
        diseases: label and mask file of each disease, in order.
        labels: a file with several labels.
        text: text of the report.
        findings: names of the present findings; None: unknown.
        seed: seed of the noise; None: derived from the common seed and the name.
    """

    where: str
    case: str
    source: str | None = None
    structures: Path | None = None
    keep_lesions: bool = True
    diseases: tuple[tuple[str, Path], ...] = ()
    labels: Path | None = None
    text: str | None = None
    findings: tuple[str, ...] | None = None
    seed: int | None = None

    @property
    def mask_files(self) -> list[tuple[str, Path]]:
        """Role and file of each mask that the row gives."""
        given = [("structures", self.structures), ("labels", self.labels)]
        return [(role, path) for role, path in given if path] + [(f"disease {n}", path) for n, path in self.diseases]

    @property
    def recorded(self) -> dict[str, Any]:
        """The entries of the row that determine the case, in addition to the content of its files."""
        return {
            "source": self.source,
            "keep_lesions": self.keep_lesions,
            "diseases": [name for name, _ in self.diseases],
            "text": self.text,
            "findings": None if self.findings is None else sorted(self.findings),
            "seed": self.seed,
        }


def read_case_list(path: Path) -> list[ListedCase | str]:
    """Read the rows of a list in order; for an invalid row, its place and the reason instead.

    Raises:
        UserError: the file does not exist, has another format, or has no rows.
    """
    if not path.is_file():
        raise UserError(f"the list {path} does not exist")
    rows = _csv_rows(path) if path.suffix == ".csv" else _json_rows(path)
    if not rows:
        raise UserError(f"the list {path} has no rows")
    # on case-insensitive file systems, cases A and a would be one file
    times = Counter(str(row.get("case")).lower() for _, row in rows)
    listed: list[ListedCase | str] = []
    for where, row in rows:
        try:
            if times[str(row.get("case")).lower()] > 1 and "case" in row:
                raise UserError(f"the case {row['case']} occurs more than once")
            listed.append(_listed(where, row, path.parent))
        except UserError as error:
            listed.append(f"{where}: {error}")
    return listed


def _csv_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    rows: list[tuple[str, dict[str, Any]]] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restkey="", strict=True)
            _check_fields(path, reader.fieldnames or ())
            for cells in reader:
                where = f"line {reader.line_num}"
                if "" in cells or None in cells.values():
                    rows.append((where, {_CELLS: True}))
                    continue
                rows.append((where, {name: _cell(name, cell.strip()) for name, cell in cells.items() if cell.strip()}))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"the list {path} cannot be read: {error}") from error
    return rows


def _cell(name: str, cell: str) -> Any:
    """Convert a cell to its JSON value; unchanged if it is not a valid one."""
    parts = [part.strip() for part in cell.split(";")]
    if name == "keep_lesions":
        return {"yes": True, "no": False}.get(cell.lower(), cell)
    if name == "seed":
        return int(cell) if cell.isdecimal() else cell
    if name == "findings":
        return [] if cell == NO_FINDING else parts
    if name == "diseases":
        pairs = [part.partition("=") for part in parts]
        diseases = {name.strip(): file.strip() for name, _, file in pairs}
        return diseases if all(file for *_, file in pairs) and len(diseases) == len(pairs) else cell
    return cell


def _json_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    if path.suffix != ".json":
        raise UserError(f"the list {path} must end in .json or .csv")
    rows = read_json(path, [{}], remedy="Correct it; docs/synthesis_volumes.md describes the format")
    for row in rows:
        _check_fields(path, row)
    return [(f"entry {number}", row) for number, row in enumerate(rows, start=1)]


def _check_fields(path: Path, names: Any) -> None:
    unknown = [name for name in names if name not in FIELDS]
    if unknown:
        raise UserError(f"the list {path} has the unknown field {unknown[0]!r}; choose from {', '.join(FIELDS)}")


def _listed(where: str, row: dict[str, Any], folder: Path) -> ListedCase:
    if _CELLS in row:
        raise UserError("the number of cells differs from that of the header; put cells with commas in quotes")
    row = {name: value for name, value in row.items() if value is not None}
    for name in ("case", "source", "structures", "labels", "text"):
        if name in row and (not isinstance(row[name], str) or not row[name].strip()):
            raise UserError(f"{name} must be a non-empty text, not {row[name]!r}")
    if not _NAME.fullmatch(row.get("case", "")):
        raise UserError(f"a case needs a name of letters, digits, '.', '_' and '-', got {row.get('case')!r}")
    if ("source" in row) == ("structures" in row):
        raise UserError("give either source or structures")
    keep = row.get("keep_lesions", True)
    if not isinstance(keep, bool) or ("structures" in row and "keep_lesions" in row):
        raise UserError(
            f"keep_lesions must be yes or no (JSON: true or false), and only in rows with a source; got {keep!r}"
        )
    diseases = row.get("diseases", {})
    if not isinstance(diseases, dict) or not all(isinstance(file, str) and file for file in diseases.values()):
        raise UserError(f"diseases must name a mask file for each label (CSV: label=file;label=file), not {diseases!r}")
    findings = row.get("findings")
    if findings is not None and (not isinstance(findings, list) or not all(isinstance(x, str) for x in findings)):
        raise UserError(f"findings must be a list of names, not {findings!r}")
    seed = row.get("seed")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or seed < 0):
        raise UserError(f"seed must be a whole number, at least 0, not {seed!r}")
    return ListedCase(
        where=where,
        case=row["case"],
        source=row.get("source"),
        structures=folder / row["structures"] if "structures" in row else None,
        keep_lesions=keep,
        diseases=tuple((name, folder / file) for name, file in diseases.items()),
        labels=folder / row["labels"] if "labels" in row else None,
        text=row["text"].strip() if "text" in row else None,
        findings=None if findings is None else tuple(findings),
        seed=seed,
    )
