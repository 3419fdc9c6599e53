"""Picture of the curves of a training: losses and learning rate over steps."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from fvae_nnunet.files.recorded import atomic_write
from fvae_nnunet.pictures.colours import BLUE, GREEN, VERMILION
from fvae_nnunet.pictures.log_axes import label_plainly

MOST_POINTS = 200
"""Maximum number of points of a curve; more steps are averaged, so that long trainings are as fast to draw."""

LOSSES = {"loss": ("loss", BLUE), "lesion_loss": ("loss in lesions", VERMILION)}
"""Column of the table -> name and colour."""


def draw_training_curves(table: Path, *, title: str) -> Path | None:
    """Draw a table as a PNG of the same name beside it.

    Lines are means over neighbouring steps; the band around each extends from their 10th to their 90th percentile.

    Args:
        table: CSV with the columns ``step``, ``loss`` and ``learning_rate``, and optionally ``lesion_loss`` (empty if a
            step has none) and ``stage``, whose changes are marked. Truncated rows are left out.
        title: headline.

    Returns:
        The picture; None if there is no table or it has no rows.
    """
    import matplotlib
    from matplotlib.figure import Figure

    columns = read_columns(table) if table.is_file() else {}
    steps = columns.get("step", np.empty(0))
    if not steps.size:
        return None
    path = table.with_suffix(".png")
    with matplotlib.rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(9, 5.5), layout="constrained")
        above, below = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
        for column, (name, colour) in LOSSES.items():
            if column not in columns or not np.isfinite(columns[column]).any():
                continue
            at, mean, low, high = brought_together(steps, columns[column])
            above.fill_between(at, low, high, color=colour, alpha=0.2, linewidth=0)
            above.plot(at, mean, color=colour, label=name, marker="." if len(at) == 1 else None)
        above.set(yscale="log", ylabel="loss", title=title)
        label_plainly(above.yaxis)
        above.legend(frameon=False, fontsize=9)
        below.plot(*brought_together(steps, columns["learning_rate"])[:2], color=GREEN)
        below.set(xlabel="step", ylabel="learning rate")
        for begin in steps[1:][np.diff(columns.get("stage", np.zeros(len(steps)))) != 0]:
            for panel in (above, below):
                panel.axvline(begin, color="0.4", linestyle=":", linewidth=1)
        for panel in (above, below):
            panel.grid(alpha=0.3)
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format="png", dpi=100)
    return path


def read_columns(table: Path) -> dict[str, np.ndarray]:
    """The columns of a CSV of numbers by name, float (n,), without truncated rows; empty values are NaN."""
    with table.open(newline="") as file:
        head, *rows = csv.reader(file)
    numbers = [[float(value) if value else np.nan for value in row] for row in rows if len(row) == len(head)]
    return dict(zip(head, np.array(numbers).reshape(-1, len(head)).T, strict=True))


def brought_together(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Means of neighbouring steps and of their values, and the 10th and 90th percentiles of the values; each (m,), at
    most `MOST_POINTS`. Values that are not finite are ignored."""
    finite = np.isfinite(values)
    parts = [
        (part, of_part)
        for part, of_part in zip(
            np.array_split(steps[finite], MOST_POINTS), np.array_split(values[finite], MOST_POINTS), strict=True
        )
        if part.size
    ]
    rows = [(part.mean(), of_part.mean(), *np.percentile(of_part, (10, 90))) for part, of_part in parts]
    at, mean, low, high = np.array(rows).reshape(-1, 4).T
    return at, mean, low, high
