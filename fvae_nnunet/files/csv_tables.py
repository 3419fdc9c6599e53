"""Writing of CSV tables in which no cell is interpreted as a formula.

Names of cases, labels and findings come from files, and spreadsheets run cells that look like formulas. A text that
begins with ``=``, ``+``, ``-``, ``@``, a tab or a line break therefore gets a leading apostrophe, unless it is a number
such as -3.5. ``plain_text`` removes the apostrophe again.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence

_FORMULA = r"[=+\-@\t\r\n]"


def csv_bytes(rows: Iterable[Mapping[str, object]], columns: Sequence[str] | None = None) -> bytes:
    """Return a table with its header as UTF-8 bytes.

    Args:
        rows: values by column; a missing value becomes an empty cell.
        columns: columns in order; None: all that occur, in order of appearance.
    """
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row) if columns is None else columns)
    lines = [csv_line(names), *(csv_line(row.get(name, "") for name in names) for row in rows)]
    return "".join(lines).encode()


def csv_line(values: Iterable[object]) -> str:
    """One row of the table, with its line break."""
    text = io.StringIO()
    csv.writer(text).writerow([_cell(value) for value in values])
    return text.getvalue()


def plain_text(cell: str) -> str:
    """Original text of a cell."""
    return cell[1:] if re.match(rf"'+{_FORMULA}", cell) else cell


def _cell(value: object) -> object:
    if not isinstance(value, str) or not re.match(rf"'*{_FORMULA}", value) or _is_number(value):
        return value
    return f"'{value}"


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)", text) is not None
