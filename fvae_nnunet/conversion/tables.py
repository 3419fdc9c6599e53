"""CT-RATE's tables: reports, findings and what the scanner wrote, read row by row with every bad row named."""

from __future__ import annotations

import ast
import csv
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from fvae_nnunet.conversion.ct_rate import VolumeName
from fvae_nnunet.errors import UserError

NAME_COLUMN = "VolumeName"

FINDINGS = (
    "Medical material",
    "Arterial wall calcification",
    "Cardiomegaly",
    "Pericardial effusion",
    "Coronary artery wall calcification",
    "Hiatal hernia",
    "Lymphadenopathy",
    "Emphysema",
    "Atelectasis",
    "Lung nodule",
    "Lung opacity",
    "Pulmonary fibrotic sequela",
    "Pleural effusion",
    "Mosaic attenuation pattern",
    "Peribronchial thickening",
    "Consolidation",
    "Bronchiectasis",
    "Interlobular septal thickening",
)
"""The 18 columns of ``multi_abnormality_labels``, in their order."""

REPORT_COLUMNS = ("Findings_EN", "Impressions_EN")
"""What CT-CLIP was trained on, in this order."""

METADATA_COLUMNS = ("RescaleSlope", "RescaleIntercept", "XYSpacing", "ZSpacing")
_OPTIONAL_METADATA_COLUMNS = ("ImagePositionPatient", "ImageOrientationPatient", "Rows", "Columns")
_NOT_GIVEN = ("not given", "not given.", "nan", "none")

Content = TypeVar("Content")


@dataclass
class Table(Generic[Content]):
    """The rows of one or several files of a kind.

    Attributes:
        rows: volume -> its content.
        wrong: volume -> what is wrong with its row, with file and line.
        unassigned_rows: rows that belong to no volume, with file, line and reason.
    """

    rows: dict[VolumeName, Content] = field(default_factory=dict)
    wrong: dict[VolumeName, str] = field(default_factory=dict)
    unassigned_rows: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class VolumeMetadata:
    """A row of CT-RATE's metadata; each part is read when it is asked for, so that only what is used must be right.

    Attributes:
        place: file and line.
        values: column -> text, of the columns that are used.
    """

    place: str
    values: Mapping[str, str]

    @property
    def rescale(self) -> tuple[float, float]:
        """Slope and intercept with ``HU = slope * stored + intercept``; UserError unless finite and slope > 0."""
        slope, intercept = self._number("RescaleSlope"), self._number("RescaleIntercept")
        if slope <= 0:
            raise UserError(f"{self.place}: RescaleSlope must be above 0, got {slope:g}")
        return slope, intercept

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """(x, y, z); UserError unless above 0 and equal in x and y, as both orders of the two are in use."""
        in_plane, z_mm = self._numbers("XYSpacing", 2), self._number("ZSpacing")
        if min(*in_plane, z_mm) <= 0:
            raise UserError(f"{self.place}: spacings must be above 0, got {in_plane} and {z_mm:g}")
        if not math.isclose(*in_plane, rel_tol=1e-3):
            raise UserError(f"{self.place}: XYSpacing {in_plane} has unequal numbers; which is x cannot be known")
        return in_plane[0], in_plane[1], z_mm

    @property
    def placement(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Origin in mm and direction (9 numbers, row by row) as SimpleITK has them, from DICOM's.

        Columns of the direction are the row's cosines, the column's, and their cross product, along which the slices
        lie, as in TorchIO's ``CtRate``, which adapts the publishers' script.

        Raises:
            UserError: missing, or no two perpendicular unit vectors.
        """
        origin = self._numbers("ImagePositionPatient", 3)
        cosines = np.asarray(self._numbers("ImageOrientationPatient", 6)).reshape(2, 3)
        if not np.allclose(cosines @ cosines.T, np.eye(2), atol=1e-3):
            raise UserError(f"{self.place}: ImageOrientationPatient is no pair of perpendicular unit vectors")
        direction = np.stack([*cosines, np.cross(*cosines)], axis=1)
        return origin, tuple(float(value) for value in direction.ravel())

    @property
    def in_plane_shape(self) -> tuple[int, int] | None:
        """Rows and columns, or None where the table has none."""
        if not (self.values.get("Rows") and self.values.get("Columns")):
            return None
        return int(self._number("Rows")), int(self._number("Columns"))

    def _text(self, column: str) -> str:
        text = (self.values.get(column) or "").strip()
        if not text:
            raise UserError(f"{self.place}: {column} is empty")
        return text

    def _number(self, column: str) -> float:
        text = self._text(column)
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise UserError(f"{self.place}: {column} is no finite number: {text!r}")
        return number

    def _numbers(self, column: str, count: int) -> tuple[float, ...]:
        """From the text of a list such as ``[0.75, 0.75]``."""
        text = self._text(column)
        try:
            numbers = tuple(float(value) for value in ast.literal_eval(text))
        except (ValueError, SyntaxError, TypeError):
            numbers = ()
        if len(numbers) != count or not all(map(math.isfinite, numbers)):
            raise UserError(f"{self.place}: {column} must be {count} numbers, such as [0.75, 0.75], not {text!r}")
        return numbers


def read_metadata(paths: Iterable[Path]) -> Table[VolumeMetadata]:
    """``train_metadata.csv`` and the like."""

    def metadata(place: str, values: Mapping[str, str]) -> VolumeMetadata:
        columns = (*METADATA_COLUMNS, *_OPTIONAL_METADATA_COLUMNS)
        return VolumeMetadata(place, {column: values[column] for column in columns if column in values})

    return _read(paths, METADATA_COLUMNS, metadata)


def read_reports(paths: Iterable[Path]) -> Table[str]:
    """``train_reports.csv`` and the like: findings and impressions as one text, without line breaks.

    A volume whose parts are all empty or "Not given." is not in the rows: it has no report.
    """

    def text(place: str, values: Mapping[str, str]) -> str | None:
        parts = [" ".join((values[column] or "").split()) for column in REPORT_COLUMNS]
        return " ".join(part for part in parts if part and part.lower() not in _NOT_GIVEN) or None

    return _read(paths, REPORT_COLUMNS, text)


def read_findings(paths: Iterable[Path]) -> Table[dict[str, int]]:
    """``train_predicted_labels.csv`` and the like: 0 or 1 for each of ``FINDINGS``.

    The publishers' labels are the output of a text classifier on the reports, not of radiologists.
    """

    def labels(place: str, values: Mapping[str, str]) -> dict[str, int]:
        found = {}
        for name in FINDINGS:
            text = (values[name] or "").strip()
            if text not in ("0", "1", "0.0", "1.0"):
                raise UserError(f"{place}: {name} must be 0 or 1, not {text!r}")
            found[name] = int(float(text))
        return found

    return _read(paths, FINDINGS, labels)


def _read(
    paths: Iterable[Path], columns: Iterable[str], content: Callable[[str, Mapping[str, str]], Content | None]
) -> Table[Content]:
    """Rows by volume; ``content`` makes one from its place and columns, or None where there is nothing in it.

    Two rows of one volume must say the same.

    Raises:
        UserError: a file is missing, is no table, or lacks a column.
    """
    table: Table[Content] = Table()
    seen: dict[VolumeName, tuple[str, int]] = {}
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} is no file")
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file)
                lacking = [name for name in (NAME_COLUMN, *columns) if name not in (reader.fieldnames or ())]
                if lacking:
                    raise UserError(f"{path} lacks the columns {', '.join(lacking)}; is it the right file?")
                line = reader.line_num + 1
                for values in reader:
                    place, line = f"{path.name}, line {line}", reader.line_num + 1
                    _take(table, seen, place, values, content)
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path} cannot be read as a table: {error}") from error
    return table


def _take(
    table: Table[Content],
    seen: dict[VolumeName, tuple[str, int]],
    place: str,
    values: dict[str, str],
    content: Callable[[str, Mapping[str, str]], Content | None],
) -> None:
    volume = VolumeName.parse((values[NAME_COLUMN] or "").strip())
    if volume is None:
        table.unassigned_rows.append(f"{place}: {values[NAME_COLUMN]!r} is no name of a volume")
        return
    cells = hash(repr(values))
    if volume in seen:
        before, cells_before = seen[volume]
        if cells_before != cells:
            table.wrong[volume] = f"{place}: {volume.case} is in {before} too, and the rows differ"
        return
    seen[volume] = place, cells
    if None in values or None in values.values():
        table.wrong[volume] = f"{place}: the number of cells is not that of the columns"
        return
    try:
        made = content(place, values)
    except UserError as error:
        table.wrong[volume] = str(error)
    else:
        if made is not None:
            table.rows[volume] = made
