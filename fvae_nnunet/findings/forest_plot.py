"""A comparison of findings classifiers as a picture: AUCs with intervals, and their differences beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fvae_nnunet.files.recorded import atomic_write
from fvae_nnunet.numbers_as_text import counted
from fvae_nnunet.pictures.series import names_in_plot, series_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW_INCHES = 0.15
"""Of one model in one finding; a row has room for all its models."""

_WIDE_INCHES, _NARROW_INCHES = 11.0, 6.5
_LINE_COLOUR = "#8b9099"


def forest_plot(comparison: Mapping[str, Any], path: Path) -> Path:
    """Write a PNG with a row for each finding and one for their mean.

    Left the AUC of each model with its 95 % interval, right the differences of the comparisons; filled dots where p
    (of findings: Holm's) is below 0.05. A finding without AUC has an empty row that says why. With one model there is
    no right side.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [*comparison["findings"], comparison["mean"]]
    names = [model["name"] for model in comparison["models"]]
    colours = series_colours(names)
    shown = names_in_plot(names)
    pairs = [(entry["first"], entry["second"]) for entry in comparison["mean"]["comparisons"]]
    with matplotlib.rc_context({"text.parse_math": False, "font.size": 9}):
        height = 1.6 + len(rows) * (0.13 + ROW_INCHES * len(names))
        figure = Figure(figsize=(_WIDE_INCHES if pairs else _NARROW_INCHES, height), layout="constrained")
        FigureCanvasAgg(figure)
        left, *others = figure.subplots(1, 2 if pairs else 1, sharey=True, squeeze=False)[0]
        _draw(
            left, rows, "models", [shown[name] for name in names], [colours[name] for name in names], value="auc",
            reference=0.5,
        )  # fmt: skip
        left.set(xlabel="AUC, 95 % interval", xlim=_limits(rows, "models", "auc", 0.5))
        left.set_yticks(range(len(rows)), [_row_name(row, comparison) for row in rows])
        left.set_ylim(len(rows) - 0.4, -0.6)
        left.get_yticklabels()[-1].set_fontweight("bold")
        for right in others:
            labels = [f"{shown[second]} − {shown[first]}" for first, second in pairs]
            pair_colours = [colours[second] for _, second in pairs]
            _draw(right, rows, "comparisons", labels, pair_colours, value="difference", reference=0.0)
            right.set(xlabel="difference of AUC, 95 % interval; filled: p < 0.05")
            right.set_xlim(_limits(rows, "comparisons", "difference", 0.0))
            right.tick_params(left=False)
        figure.suptitle(
            f"{counted(comparison['cases'], 'case')} of {counted(comparison['patients'], 'patient')}", fontsize=10
        )
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120)
    return path


def _row_name(row: Mapping[str, Any], comparison: Mapping[str, Any]) -> str:
    if "name" in row:
        return f"{row['name']} ({row['positive']}/{row['positive'] + row['negative']})"
    return f"mean of {comparison['mean']['findings']}"


def _draw(
    axes: Axes,
    rows: Sequence[Mapping[str, Any]],
    kind: str,
    labels: Sequence[str],
    colours: Sequence[str],
    *,
    value: str,
    reference: float,
) -> None:
    axes.axvline(reference, color=_LINE_COLOUR, linewidth=0.8, linestyle=":")
    axes.axhline(len(rows) - 1.5, color=_LINE_COLOUR, linewidth=0.8)
    for place, (label, colour) in enumerate(zip(labels, colours, strict=True)):
        offset = 0.6 * ((place + 0.5) / len(labels) - 0.5)
        axes.plot([], [], "o-", color=colour, label=label, markersize=4.5, linewidth=1.4)
        for at, row in enumerate(rows):
            entry, y = row[kind][place], at + offset
            if not math.isfinite(entry[value]):
                continue
            low, high = entry["interval"]
            if entry["interval_method"] != "none":
                axes.plot([low, high], [y, y], color=colour, linewidth=1.4, solid_capstyle="round")
            filled = kind == "models" or entry.get("p_holm", entry.get("p")) < 0.05
            face = colour if filled else "white"
            marker, size = ("o", 4.5) if "name" in row else ("D", 5.5)
            axes.plot([entry[value]], [y], marker, color=colour, markerfacecolor=face, markersize=size)
    for at, row in enumerate(rows):
        if row.get("reason"):
            axes.text(
                0.5, at, row["reason"], transform=axes.get_yaxis_transform(), ha="center", va="center", fontsize=8,
                color=_LINE_COLOUR, style="italic",
            )  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False, fontsize=8.5)


def _limits(rows: Sequence[Mapping[str, Any]], kind: str, value: str, reference: float) -> tuple[float, float]:
    """Room for every interval and for the reference, with a margin."""
    numbers = [number for row in rows for entry in row[kind] for number in (entry[value], *entry["interval"])]
    numbers = [number for number in numbers if math.isfinite(number)] + [reference]
    margin = 0.04 * (max(numbers) - min(numbers)) or 0.05
    return min(numbers) - margin, max(numbers) + margin
