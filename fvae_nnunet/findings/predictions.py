"""Predicted probabilities of findings: a CSV with a row for each case.

::

    case,Medical material,Arterial wall calcification,...
    valid_1_a_1,0.12,0.83,...

Scores of any classifier can be compared in this format; only their order matters. ``fvae-train-classifier`` writes
``predictions_validation.csv`` and ``predictions_test.csv`` to its model folder.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fvae_nnunet.errors import UserError, some_of
from fvae_nnunet.files.csv_tables import csv_line, plain_text
from fvae_nnunet.files.recorded import write_bytes

PARTS = ("test", "validation")
"""Sets of cases with predictions in a model folder; the first one is the default."""


@dataclass(frozen=True)
class Predictions:
    """Scores (n, F) of cases (n) and findings (F), from a file."""

    path: Path
    findings: tuple[str, ...]
    cases: tuple[str, ...]
    scores: np.ndarray


def predictions_path(folder: Path, part: str) -> Path:
    """Path of the predictions of ``test`` or ``validation`` in a model folder."""
    return folder / f"predictions_{part}.csv"


def write_predictions(path: Path, findings: Sequence[str], scores: Mapping[str, np.ndarray]) -> None:
    """Write the scores (F,) of each case atomically, with cases in alphabetical order."""
    lines = [["case", *findings], *([case, *(f"{score:.8g}" for score in scores[case])] for case in sorted(scores))]
    write_bytes(path, "".join(map(csv_line, lines)).encode())


def read_predictions(path: Path) -> Predictions:
    """Read such a CSV, in any order of rows and columns.

    Raises:
        UserError: there is no such file, it has no column ``case`` or no finding, a name or case occurs twice, or a
            score is not a finite number; each invalid line is named.
    """
    if not path.is_file():
        raise UserError(f"no such file: {path}; expected a CSV of predictions with the columns case and the findings")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [[plain_text(cell) for cell in row] for row in csv.reader(file)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a CSV in UTF-8: {error}") from error
    header = [name.strip() for name in rows[0]] if rows else []
    if header.count("case") != 1 or len(header) < 2 or len(set(header)) < len(header):
        raise UserError(f"{path}: the first line must name the columns: case, and each finding once; got {header}")
    column = header.index("case")
    wrong: list[str] = []
    scores: dict[str, list[float]] = {}
    for line, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        if len(row) != len(header):
            wrong.append(f"line {line}: {len(row)} values for {len(header)} columns")
            continue
        texts = [text for place, text in enumerate(row) if place != column]
        values = [_number(text) for text in texts]
        bad = [text for text, value in zip(texts, values, strict=True) if not math.isfinite(value)]
        if bad:
            wrong.append(f"line {line}, {row[column]}: {bad[0]!r} is not a score")
        elif row[column] in scores:
            wrong.append(f"line {line}: {row[column]} occurs twice")
        else:
            scores[row[column]] = values
    if wrong:
        raise UserError(f"{path} has invalid lines:\n  " + some_of(wrong, 20, "\n  "))
    findings = tuple(name for name in header if name != "case")
    table = np.array(list(scores.values()), dtype=float).reshape(len(scores), len(findings))
    return Predictions(path, findings, tuple(scores), table)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
