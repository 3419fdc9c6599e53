"""Picture of a comparison of findings classifiers: AUCs with intervals, and their differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fvae_nnunet.files.recorded import atomic_write
from fvae_nnunet.numbers_as_text import counted
from fvae_nnunet.pictures.forest import GREY, Estimate, draw_forest, forest_height_inches, legend_dot
from fvae_nnunet.pictures.series import series_colours
from fvae_nnunet.short_names import short_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDE_INCHES, _NARROW_INCHES = 11.0, 6.5


def forest_plot(comparison: Mapping[str, Any], path: Path) -> Path:
    """Write a PNG with a row for each finding and one for their mean.

    On the left is the AUC of each model with its 95 % interval; on the right are the differences of the comparisons in
    the colour of the second model, as rings unless p (for findings: Holm's) is below 0.05. A legend names the models,
    with a key of shortened names. A finding without AUC has a row with the reason. With one model there is no right
    side.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [*comparison["findings"], comparison["mean"]]
    names = [model["name"] for model in comparison["models"]]
    colours, shown = series_colours(names), short_names(names)
    pairs = comparison["mean"]["comparisons"]
    with matplotlib.rc_context({"text.parse_math": False, "font.size": 9}):
        key = [f"{short}: {name}" for name, short in shown.items() if short != name]
        height = 1.3 + 0.15 * len(key) + forest_height_inches(len(rows), max(len(names), len(pairs)))
        figure = Figure(figsize=(_WIDE_INCHES if pairs else _NARROW_INCHES, height), layout="constrained")
        FigureCanvasAgg(figure)
        left, *others = figure.subplots(1, 2 if pairs else 1, sharey=True, squeeze=False)[0]
        draw_forest(
            left,
            [[Estimate(one["auc"], one["interval"], colours[one["model"]]) for one in row["models"]] for row in rows],
            reference=0.5,
        )
        left.set_xlabel("AUC, 95 % interval")
        left.set_yticks(range(len(rows)), [_row_name(row, comparison) for row in rows])
        left.get_yticklabels()[-1].set_fontweight("bold")
        for right in others:
            draw_forest(right, [[_difference(one, colours) for one in row["comparisons"]] for row in rows], reference=0)
            right.set_xlabel(f"difference of AUC, 95 % interval; filled: p < 0.05\n{_order_of(pairs, shown)}")
        for axes in (left, *others):
            _say_reasons(axes, rows)
        figure.suptitle(
            f"{counted(comparison['cases'], 'case')} of {counted(comparison['patients'], 'patient')}", fontsize=10
        )
        handles = [legend_dot(colours[name], shown[name]) for name in names]
        figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False, title="\n".join(key) or None)
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120)
    return path


def _difference(one: Mapping[str, Any], colours: Mapping[str, str]) -> Estimate:
    is_sure = one.get("p_holm", one.get("p")) < 0.05
    return Estimate(one["difference"], one["interval"], colours[one["second"]], is_sure)


def _order_of(pairs: Sequence[Mapping[str, Any]], shown: Mapping[str, str]) -> str:
    """Label of the order of the differences, from the top of a row."""
    if len({pair["first"] for pair in pairs}) == 1:
        return f"from {shown[pairs[0]['first']]}"
    return "from the top: " + ", ".join(f"{shown[pair['second']]} − {shown[pair['first']]}" for pair in pairs)


def _row_name(row: Mapping[str, Any], comparison: Mapping[str, Any]) -> str:
    if "name" in row:
        return f"{row['name']} ({row['positive']}/{row['positive'] + row['negative']})"
    return f"mean of {comparison['mean']['findings']}"


def _say_reasons(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    axes.axhline(len(rows) - 1.5, color=GREY, linewidth=0.8)
    for at, row in enumerate(rows):
        if row.get("reason"):
            axes.text(
                0.5, at, row["reason"], transform=axes.get_yaxis_transform(), ha="center", va="center", fontsize=8,
                color=GREY, style="italic",
            )  # fmt: skip
