"""A list of volumes to generate, as ``fvae-synthesize`` takes it.

JSON, a list of objects::

    [{"case": "nodule_001", "source": "train_1_a_1", "keep_lesions": false,
      "diseases": {"nodule": "masks/nodule_001.nii.gz"},
      "text": "A nodule of 12 mm in the right upper lobe.", "findings": ["Lung nodule"], "seed": 7}]

or CSV with columns of these names; there several diseases are ``nodule=a.nii.gz;effusion=b.nii.gz``, several findings
``Lung nodule;Pleural effusion`` (``none``: looked for and absent), and ``keep_lesions`` is ``yes`` or ``no``. An empty
cell is an entry left out.

=============  ======================================================================================================
case           name of the volume; letters, digits, ``.``, ``_`` and ``-``
source         a case of the dataset: its structures (or organ), geometry and, unless ``keep_lesions`` is false, lesions
structures     instead: a mask file of structures with the dataset's values; the volume has its geometry
keep_lesions   whether the source's own lesions are kept; default true
diseases       label -> mask file on the same grid, not 0 where the disease is
labels         instead of or beside them: a file with the values of the lesions' labels
text           the report, for models trained with text
findings       names of those that are present, of the list in ``reports.json``; recorded for classifiers
seed           of the noise; default: from the seed of all and the case's name
=============  ======================================================================================================

Paths are relative to the list's folder. Where masks overlap, a disease that is named later has the voxel, diseases
come after ``labels``, and these after the source's own lesions.
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
        where: the row, for messages: ``line 3`` or ``entry 3``.
        case: name of the volume.
        source: case of the dataset; or
        structures: mask file.
        keep_lesions: of the source.
        diseases: label and mask file, in order.
        labels: a file with several labels.
        text: of the report.
        findings: names of those that are present; None: unknown.
        seed: of the noise; None: from the seed of all and the name.
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
        """What is given beside the source: role and file."""
        given = [("structures", self.structures), ("labels", self.labels)]
        return [(role, path) for role, path in given if path] + [(f"disease {n}", path) for n, path in self.diseases]

    @property
    def recorded(self) -> dict[str, Any]:
        """What of the row decides the case beside the content of its files."""
        return {
            "source": self.source,
            "keep_lesions": self.keep_lesions,
            "diseases": [name for name, _ in self.diseases],
            "text": self.text,
            "findings": None if self.findings is None else sorted(self.findings),
            "seed": self.seed,
        }


def read_case_list(path: Path) -> list[ListedCase | str]:
    """The rows of a list in order; of one that is wrong by itself what is wrong with it, with its place.

    Raises:
        UserError: no such file, another format, or no rows.
    """
    if not path.is_file():
        raise UserError(f"there is no list {path}")
    rows = _csv_rows(path) if path.suffix == ".csv" else _json_rows(path)
    if not rows:
        raise UserError(f"the list {path} has no row")
    # file systems that do not tell A from a would make one file of two cases
    times = Counter(str(row.get("case")).lower() for _, row in rows)
    listed: list[ListedCase | str] = []
    for where, row in rows:
        try:
            if times[str(row.get("case")).lower()] > 1 and "case" in row:
                raise UserError(f"the case {row['case']} is there twice")
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
    """A cell as the JSON value that it stands for; as it is where it stands for none."""
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
    rows = read_json(path, [{}], remedy="Correct it; docs/synthesis_volumes.md says what it holds")
    for row in rows:
        _check_fields(path, row)
    return [(f"entry {number}", row) for number, row in enumerate(rows, start=1)]


def _check_fields(path: Path, names: Any) -> None:
    unknown = [name for name in names if name not in FIELDS]
    if unknown:
        raise UserError(f"the list {path} has the unknown field {unknown[0]!r}; known are {', '.join(FIELDS)}")


def _listed(where: str, row: dict[str, Any], folder: Path) -> ListedCase:
    if _CELLS in row:
        raise UserError("it has not as many cells as the head; put cells with commas in quotes")
    row = {name: value for name, value in row.items() if value is not None}
    for name in ("case", "source", "structures", "labels", "text"):
        if name in row and (not isinstance(row[name], str) or not row[name].strip()):
            raise UserError(f"{name} must be a text that is not empty, not {row[name]!r}")
    if not _NAME.fullmatch(row.get("case", "")):
        raise UserError(f"a case needs a name of letters, digits, '.', '_' and '-', got {row.get('case')!r}")
    if ("source" in row) == ("structures" in row):
        raise UserError("it needs a source or structures, and not both")
    keep = row.get("keep_lesions", True)
    if not isinstance(keep, bool) or ("structures" in row and "keep_lesions" in row):
        raise UserError(f"keep_lesions is yes or no (JSON: true or false), for rows with a source; got {keep!r}")
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
