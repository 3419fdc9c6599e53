"""Write the result files of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fvae_nnunet.errors import UserError
from fvae_nnunet.files.csv_tables import csv_bytes
from fvae_nnunet.files.recorded import atomic_write
from fvae_nnunet.jobs.manifest import write_json


def write_results(
    results: Mapping[str, Any], path: Path, tables: Mapping[Path, Iterable[Mapping[str, object]]]
) -> None:
    """Write results as JSON and their tables as CSV; files appear only when all are complete.

    Raises:
        UserError: one of them cannot be written.
    """
    try:
        with ExitStack() as written:
            for table, rows in tables.items():
                written.enter_context(atomic_write(table)).write_bytes(csv_bytes(rows))
            write_json(path, dict(results))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; choose another folder") from error
