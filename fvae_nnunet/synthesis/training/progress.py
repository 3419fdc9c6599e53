"""Report the progress of a training: a bar with the remaining time, a table of all steps, and optionally TensorBoard.

``progress.csv`` has a row for each step::

    step, stage, loss, lesion_loss, gradient_norm, learning_rate, seconds

``loss`` is the minimised loss; ``lesion_loss`` is the mean error in lesions (squared, or with ``l1`` absolute; each
cell weighted by its share of lesion; empty for a step without lesions); ``seconds`` count from the start of this run.
At each checkpoint ``progress.png`` is drawn from the table.
"""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

from fvae_nnunet.files.csv_tables import csv_bytes, csv_line
from fvae_nnunet.files.recorded import write_bytes
from fvae_nnunet.optional_packages import needed_for

FILE = "progress.csv"
COLUMNS = ("step", "stage", "loss", "lesion_loss", "gradient_norm", "learning_rate", "seconds")
_SMOOTHING = 0.95


class Progress:
    """Progress bar and records, kept by the main process; rows of steps after ``done`` are dropped.

    Args:
        output: folder of the training.
        done, total: number of steps done, and in total.
        tensorboard: also write events to ``<output>/tensorboard``.

    Raises:
        UserError: TensorBoard is requested but not installed.
    """

    def __init__(self, output: Path, *, done: int, total: int, tensorboard: bool) -> None:
        from fvae_nnunet.jobs.progress_bar import progress_bar

        self._writer: Any = None
        if tensorboard:
            with needed_for("TensorBoard"):
                from torch.utils.tensorboard import SummaryWriter
            self._writer = SummaryWriter(str(output / "tensorboard"), purge_step=done + 1)
        rows = [row for row in read_progress(output) if int(row["step"]) <= done]
        write_bytes(output / FILE, csv_bytes(rows, COLUMNS))
        self._file = (output / FILE).open("a", newline="")
        self._began = time.perf_counter()
        self._smooth: float | None = None
        self.bar = progress_bar(total=total, initial=done, unit="step")

    def add(self, step: int, stage: int, **values: float | None) -> None:
        """Record ``loss``, ``lesion_loss``, ``gradient_norm`` and ``learning_rate`` of a step; None: unknown."""
        figures = [values.get(name) for name in COLUMNS[2:-1]]
        shown = ["" if figure is None else f"{figure:.6g}" for figure in figures]
        self._file.write(csv_line([step, stage, *shown, f"{time.perf_counter() - self._began:.2f}"]))
        if self._writer is not None:
            for name, value in values.items():
                if value is not None:
                    self._writer.add_scalar(name, value, step)
        loss = values["loss"]
        if loss is not None:
            self._smooth = loss if self._smooth is None else _SMOOTHING * self._smooth + (1 - _SMOOTHING) * loss
            self.bar.set_postfix_str(f"stage {stage}, loss {self._smooth:.4f}", refresh=False)
        self.bar.update(step - self.bar.n)

    def flush(self) -> None:
        """Write buffered rows and events to disk."""
        self._file.flush()
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        self.bar.close()
        self._file.close()
        if self._writer is not None:
            self._writer.close()


def read_progress(output: Path) -> list[dict[str, str]]:
    """Read the rows of a training's table; empty if it has not started. A row truncated by a crash is left out."""
    path = output / FILE
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row.get("seconds")]
