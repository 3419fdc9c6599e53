"""Results of ``fvae-evaluate-reconstruction``: a JSON file, a CSV with a row for each case, and a table.

The JSON file::

    {"schema": 1, "kind": "reconstruction_quality", "version": "0.1.0",
     "raw_folder": "imagesTr", "view_folder": "view", "label_folder": "labelsTr" or null,
     "settings": {"hu_window": [-1000.0, 1000.0], "ssim_window_voxels": 7, "tissues_hu": {"fat": [-190.0, -30.0], ...},
                  "soft_hu": [-150.0, 250.0], "edge_hu_per_pixel": 20.0, "coarse_pixels": 3.0, "noise": {...},
                  "boundary": {...}, "windows": {"window_slices": 65, "overlap_slices": 16} or null},
     "view_settings": {"vae": "tiny", ...} or null,
     "labels": [{"key": "1", "name": "tumour", "value": 1}, ...],
     "cases": [{"case": "case_001", "raw_file": "...", "view_file": "...", "label_file": "..." or null,
                "shape": [60, 170, 170], "spacing_mm": [3.27, 0.98, 0.98],
                "volume": {"psnr_db": 39.7, "ssim": 0.97, "mse_hu2": ..., "mse_normalised": ..., "mae_hu": ...,
                           "bias_hu": ..., "soft_mae_hu": ..., "soft_edges_mae_hu": ...,
                           "soft_coarse_mae_hu": ..., "noise_raw_hu": ..., "noise_view_hu": ..., "noise_ratio": ...,
                           "noise_fine_raw_hu": ..., "noise_fine_view_hu": ..., "noise_fine_ratio": ...,
                           "noise_coarse_raw_hu": ..., "noise_coarse_view_hu": ..., "noise_coarse_ratio": ...,
                           "noise_voxels": ..., "seam_score": ...},
                "tissues": {"air": {"voxels": ..., "mae_hu": ..., "bias_hu": ...}, ...},
                "labels": {"1": {"voxels": ..., "mae_hu": ..., "bias_hu": ..., "surface_points": ...,
                                 "edge_points": ..., "lost_points": ..., "shift_median_mm": ...,
                                 "shift_abs_median_mm": ..., "shift_abs_p95_mm": ..., "sharpness_ratio": ...}}}, ...],
     "summary": {"volume": {"psnr_db": {"mean": ..., "low": ..., "high": ..., "sd": ..., "min": ..., "max": ...,
                                        "n": 24}, ...},
                 "tissues": {"air": {"mae_hu": {...}, ...}, ...}, "labels": {"1": {...}, ...}}}

Shapes and spacings are (z, y, x) with axial slices first. A limit of a tissue is null if there is none.
``view_settings`` are those of the manifest beside the view. A figure that is undefined in a case is NaN there (in the
file ``NaN``, as in nnU-Net's summary.json) and left out of the summary; ``n`` cases have a value; ``low`` and ``high``
are the ends of the mean's 95 % interval (``statistics.bootstrap_interval``), ``sd`` is the sample standard deviation
(n - 1); for fewer than two cases they are NaN. PSNR of equal volumes is ``Infinity``. Columns of the CSV have names
such as ``mae_hu``, ``tissue fat mae_hu`` or ``label tumour mae_hu``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fvae_nnunet.evaluation.statistics import bootstrap_interval
from fvae_nnunet.evaluation.text_table import text_table
from fvae_nnunet.numbers_as_text import counted, interval, number

SCHEMA = 1

IN_TABLE = {
    "psnr_db": ("PSNR (dB)", "dB"),
    "ssim": ("SSIM", ""),
    "mse_hu2": ("MSE (HU²)", "HU²"),
    "mse_normalised": ("MSE of [0, 1]", "of [0, 1]²"),
    "mae_hu": ("MAE (HU)", "HU"),
    "bias_hu": ("bias (HU)", "HU"),
    "soft_mae_hu": ("MAE, −150 to 250 HU", "HU"),
    "soft_edges_mae_hu": ("MAE at edges there", "HU"),
    "soft_coarse_mae_hu": ("MAE there, smoothed", "HU"),
    "noise_raw_hu": ("noise of image (HU)", "HU"),
    "noise_view_hu": ("noise of view (HU)", "HU"),
    "noise_ratio": ("noise, view/image", ""),
    "noise_fine_ratio": ("fine, view/image", ""),
    "noise_coarse_ratio": ("coarse, view/image", ""),
    "seam_score": ("seam score", ""),
    "edge_points": ("points at edges", "count"),
    "lost_points": ("lost in the view", "count"),
    "shift_median_mm": ("shift, median (mm)", "mm of a shift"),
    "shift_abs_median_mm": ("|shift|, median (mm)", "mm of a shift"),
    "shift_abs_p95_mm": ("|shift|, 95 % (mm)", "mm of a shift"),
    "sharpness_ratio": ("sharpness, view/image", ""),
}
"""Figures in tables: name, and quantity for ``numbers_as_text.FORMATS``."""

SIGNED = ("bias_hu", "shift_median_mm")
"""Figures shown with their sign."""

Figures = Mapping[str, float]

STATISTICS = ("mean", "low", "high", "sd", "min", "max")
"""Statistics over the cases that have a value."""

STATISTICS_SHOWN = ("mean", "95 % interval", "sd", "min", "max", "n")
"""Columns of tables."""


def summarise(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The entry ``summary`` (see module) for ``cases`` (at least one)."""
    first = cases[0]
    return {"volume": _over([case["volume"] for case in cases])} | {
        group: {key: _over([case[group][key] for case in cases]) for key in first[group]}
        for group in ("tissues", "labels")
    }


def case_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the CSV, one per case."""
    names = {label["key"]: label["name"] for label in results["labels"]}
    return [{"case": case["case"]} | dict(_columns(case, names)) for case in results["cases"]]


def format_table(results: Mapping[str, Any]) -> str:
    """A summary as text: one line per figure with mean, 95 % interval, minimum and maximum over cases."""
    summary, cases = results["summary"], results["cases"]
    names = {label["key"]: label["name"] for label in results["labels"]}
    parts = [("whole volume", summary["volume"])]
    parts += [(name, of_tissue) for name, of_tissue in summary["tissues"].items()]
    parts += [(f"label {names[key]}", of_label) for key, of_label in summary["labels"].items()]
    shown = [place for place, statistic in enumerate(STATISTICS_SHOWN) if statistic != "sd"]
    rows = [["", *(STATISTICS_SHOWN[place] for place in shown)]]
    for name, figures in parts:
        rows.append([name, *[""] * len(shown)])
        for figure, (heading, _) in IN_TABLE.items():
            if figure in figures and (figures[figure]["n"] or name == "whole volume"):
                texts = statistics_as_text(figure, figures[figure])
                rows.append([f"  {heading}", *(texts[place] for place in shown)])
        if len(rows[-1][-1]) == 0:
            rows[-1][1] = "in no case"
    lines = text_table(rows)
    lower, upper = results["settings"]["hu_window"]
    lines.append(
        f"{counted(len(cases), 'case')}; HU window {lower:g} to {upper:g}; errors and shifts are view minus image;"
        "\nshifts outwards are positive; points: of the label's surface; n: cases with a value"
    )
    return "\n".join(lines)


def statistics_as_text(figure: str, summary: Mapping[str, Any]) -> list[str]:
    """A figure over all cases, in the order of `STATISTICS_SHOWN`."""
    quantity, signed = IN_TABLE[figure][1], figure in SIGNED
    mean, low, high, sd, least, most = (summary.get(key, math.nan) for key in STATISTICS)
    shown = [number(mean, quantity, signed=signed), interval(low, high, quantity, signed=signed), number(sd, quantity)]
    return [*shown, *(number(value, quantity, signed=signed) for value in (least, most)), str(summary["n"])]


def _columns(case: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[tuple[str, float]]:
    yield from case["volume"].items()
    for tissue, figures in case["tissues"].items():
        yield from ((f"tissue {tissue} {figure}", value) for figure, value in figures.items())
    for key, figures in case["labels"].items():
        yield from ((f"label {names[key]} {figure}", value) for figure, value in figures.items())


def _over(cases: Sequence[Figures]) -> dict[str, dict[str, float]]:
    """Statistics of each figure over the cases; a tissue or label without voxels in a case has no figures there."""
    absent = dict.fromkeys(cases[0], math.nan)
    found = [figures if figures.get("voxels", 1) else absent for figures in cases]
    return {figure: _statistics([figures[figure] for figures in found]) for figure in cases[0]}


def _statistics(values: Sequence[float]) -> dict[str, float]:
    found = np.array([value for value in values if not math.isnan(value)])
    if not found.size:
        return dict.fromkeys(STATISTICS, math.nan) | {"n": 0}
    low = high = sd = math.nan
    # with an infinite PSNR they are undefined
    if found.size > 1 and np.isfinite(found).all():
        interval = bootstrap_interval(found, seed=0)
        low, high, sd = interval.low, interval.high, float(found.std(ddof=1))
    return {
        "mean": float(found.mean()),
        "low": low,
        "high": high,
        "sd": sd,
        "min": float(found.min()),
        "max": float(found.max()),
        "n": int(found.size),
    }
