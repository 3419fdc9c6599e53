"""What a training tells its user: a bar with an estimate, a table of all steps, TensorBoard on request.

``progress.csv`` has a row for each step::

    step, stage, loss, lesion_loss, gradient_norm, learning_rate, seconds

``loss`` is what is minimised, ``lesion_loss`` the mean error in lesion (squared, or with ``l1`` absolute; each cell
weighted with its share of lesion; empty where the step had none), ``seconds`` since this run began. At each checkpoint
``progress.png`` is drawn from it.
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
    """The bar and the records of the process that keeps them; rows of steps behind ``done`` are dropped.

    Args:
        output: folder of the training.
        done, total: steps.
        tensorboard: write events to ``<output>/tensorboard`` too.

    Raises:
        UserError: TensorBoard is wanted and not installed.
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
        """Record a step: ``loss``, ``lesion_loss``, ``gradient_norm``, ``learning_rate``; None: not known."""
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
        """Make sure that what was added is on disk."""
        self._file.flush()
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        self.bar.close()
        self._file.close()
        if self._writer is not None:
            self._writer.close()


def read_progress(output: Path) -> list[dict[str, str]]:
    """The rows of a training's table; none where it has not begun. A row cut short by a crash is left out."""
    path = output / FILE
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row.get("seconds")]
