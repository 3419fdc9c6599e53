"""Read CT-RATE's tables of reports, findings and scanner metadata row by row, and report every invalid row."""

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
"""The 18 columns of ``multi_abnormality_labels``, in this order."""

REPORT_COLUMNS = ("Findings_EN", "Impressions_EN")
"""Columns that CT-CLIP was trained on, in this order."""

METADATA_COLUMNS = ("RescaleSlope", "RescaleIntercept", "XYSpacing", "ZSpacing")
_OPTIONAL_METADATA_COLUMNS = ("ImagePositionPatient", "ImageOrientationPatient", "Rows", "Columns")
_NOT_GIVEN = ("not given", "not given.", "nan", "none")

Content = TypeVar("Content")


@dataclass
class Table(Generic[Content]):
    """The rows of one or several tables of one kind.

    Attributes:
        rows: volume -> content of its row.
        wrong: volume -> why its row is invalid, with file and line.
        unassigned_rows: file, line and reason of each row that belongs to no volume.
    """

    rows: dict[VolumeName, Content] = field(default_factory=dict)
    wrong: dict[VolumeName, str] = field(default_factory=dict)
    unassigned_rows: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class VolumeMetadata:
    """A row of CT-RATE's metadata; values are parsed on access, so that only the ones used have to be valid.

    Attributes:
        place: file and line of the row.
        values: column -> text, for the columns that are used.
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
        """Spacing (x, y, z); UserError unless above 0 and equal in x and y, as both orders of x and y are in use."""
        in_plane, z_mm = self._numbers("XYSpacing", 2), self._number("ZSpacing")
        if min(*in_plane, z_mm) <= 0:
            raise UserError(f"{self.place}: spacings must be above 0, got {in_plane} and {z_mm:g}")
        if not math.isclose(*in_plane, rel_tol=1e-3):
            raise UserError(f"{self.place}: XYSpacing {in_plane} has unequal numbers; it is unknown which one is x")
        return in_plane[0], in_plane[1], z_mm

    @property
    def placement(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Origin in mm and direction (9 numbers, row by row) in SimpleITK's convention, from the DICOM values.

        The columns of the direction are the row cosines, the column cosines and their cross product, along which the
        slices are stacked, as in TorchIO's ``CtRate``, which adapts the publishers' script.

        Raises:
            UserError: a value is missing, or the cosines are not two perpendicular unit vectors.
        """
        origin = self._numbers("ImagePositionPatient", 3)
        cosines = np.asarray(self._numbers("ImageOrientationPatient", 6)).reshape(2, 3)
        if not np.allclose(cosines @ cosines.T, np.eye(2), atol=1e-3):
            raise UserError(f"{self.place}: ImageOrientationPatient is not a pair of perpendicular unit vectors")
        direction = np.stack([*cosines, np.cross(*cosines)], axis=1)
        return origin, tuple(float(value) for value in direction.ravel())

    @property
    def in_plane_shape(self) -> tuple[int, int] | None:
        """Rows and columns; None if the table does not give them."""
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
            raise UserError(f"{self.place}: {column} is not a finite number: {text!r}")
        return number

    def _numbers(self, column: str, count: int) -> tuple[float, ...]:
        """Parse a list such as ``[0.75, 0.75]``."""
        text = self._text(column)
        try:
            numbers = tuple(float(value) for value in ast.literal_eval(text))
        except (ValueError, SyntaxError, TypeError):
            numbers = ()
        if len(numbers) != count or not all(map(math.isfinite, numbers)):
            raise UserError(f"{self.place}: {column} must be {count} numbers, such as [0.75, 0.75], not {text!r}")
        return numbers


def read_metadata(paths: Iterable[Path]) -> Table[VolumeMetadata]:
    """Read ``train_metadata.csv`` and similar tables."""

    def metadata(place: str, values: Mapping[str, str]) -> VolumeMetadata:
        columns = (*METADATA_COLUMNS, *_OPTIONAL_METADATA_COLUMNS)
        return VolumeMetadata(place, {column: values[column] for column in columns if column in values})

    return _read(paths, METADATA_COLUMNS, metadata)


def read_reports(paths: Iterable[Path]) -> Table[str]:
    """Read ``train_reports.csv`` and similar tables: findings and impressions as one text without line breaks.

    A volume whose texts are all empty or "Not given." has no report and is not in the rows.
    """

    def text(place: str, values: Mapping[str, str]) -> str | None:
        parts = [" ".join((values[column] or "").split()) for column in REPORT_COLUMNS]
        return " ".join(part for part in parts if part and part.lower() not in _NOT_GIVEN) or None

    return _read(paths, REPORT_COLUMNS, text)


def read_findings(paths: Iterable[Path]) -> Table[dict[str, int]]:
    """Read ``train_predicted_labels.csv`` and similar tables: 0 or 1 for each of ``FINDINGS``.

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
    """Read rows by volume; ``content`` converts the place and cells of a row, and returns None if it is empty.

    Two rows of one volume must be identical.

    Raises:
        UserError: a file is missing, is not a table, or lacks a column.
    """
    table: Table[Content] = Table()
    seen: dict[VolumeName, tuple[str, int]] = {}
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} is not a file")
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
        table.unassigned_rows.append(f"{place}: {values[NAME_COLUMN]!r} is not the name of a volume")
        return
    cells = hash(repr(values))
    if volume in seen:
        before, cells_before = seen[volume]
        if cells_before != cells:
            table.wrong[volume] = f"{place}: {volume.case} is also in {before}, and the rows differ"
        return
    seen[volume] = place, cells
    if None in values or None in values.values():
        table.wrong[volume] = f"{place}: the number of cells differs from the number of columns"
        return
    try:
        made = content(place, values)
    except UserError as error:
        table.wrong[volume] = str(error)
    else:
        if made is not None:
            table.rows[volume] = made
