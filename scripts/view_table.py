"""Table of how good views are and what they take, from ``fvae-evaluate-reconstruction`` and Snakemake's benchmarks.

    python scripts/view_table.py quality/*/reconstruction_quality.json --names tiny taef2 --times tiny.tsv taef2.tsv \\
        --device cpu -o results.json

Figures are means over the cases (docs/reconstruction_quality.md defines them). Time and main memory are those of the
whole command, with all its processes. ``-o`` also writes the figures of every case.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fvae_nnunet.cli.command import run_command
from fvae_nnunet.ct.places import TISSUES_HU
from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.reconstruction.summary import IN_TABLE, SIGNED
from fvae_nnunet.files.checked_json import read_json
from fvae_nnunet.jobs.manifest import versions, write_json
from fvae_nnunet.numbers_as_text import counted, number

VOLUME = ("soft_mae_hu", "soft_edges_mae_hu", "soft_coarse_mae_hu", "noise_raw_hu", "noise_ratio")
BOUNDARY = ("shift_abs_median_mm", "sharpness_ratio", "lost_points")
MIB_IN_GIB = 1024


def cost(benchmark: Path) -> dict[str, float]:
    """Seconds, and largest main memory in GiB of all processes (what they share counts once; NaN if not measured)."""
    with benchmark.open() as lines:
        (row,) = csv.DictReader(lines, delimiter="\t")
    try:
        memory_gib = float(row["max_pss"]) / MIB_IN_GIB
    except ValueError:
        memory_gib = math.nan
    return {"seconds": float(row["s"]), "memory_gib": memory_gib}


def tables(views: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Markdown: whole volume and boundaries of each label, with time and memory; then errors by tissue."""
    first = next(iter(views.values()))
    names = {label["key"]: label["name"] for label in first["labels"]}
    headings = [IN_TABLE[figure][0] for figure in VOLUME]
    headings += [f"{name}: {IN_TABLE[figure][0]}" for name in names.values() for figure in BOUNDARY]
    lines = [f"{counted(len(first['cases']), 'case')}, means:", ""]
    lines += _header(["view", *headings, "s per case", "memory (GiB)"])
    for view, content in views.items():
        found = content["summary"]
        cells = [_mean(found["volume"], figure) for figure in VOLUME]
        cells += [_mean(found["labels"][key], figure) for key in names for figure in BOUNDARY]
        per_case = content["cost"]["seconds"] / len(content["cases"])
        cells += [number(per_case, "s"), number(content["cost"]["memory_gib"], "share")]
        lines.append(f"| {view} | " + " | ".join(cells) + " |")
    tissues = [tissue for tissue in TISSUES_HU if tissue in first["summary"]["tissues"]]
    lines += ["", "MAE and bias by tissue (HU):", "", *_header(["view", *tissues])]
    for view, content in views.items():
        of_tissue = [content["summary"]["tissues"][tissue] for tissue in tissues]
        cells = [f"{_mean(found, 'mae_hu')}, {_mean(found, 'bias_hu')}" for found in of_tissue]
        lines.append(f"| {view} | " + " | ".join(cells) + " |")
    return lines


def _header(cells: Sequence[str]) -> list[str]:
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |", "|---" * len(cells) + "|"]


def _mean(figures: Mapping[str, Mapping[str, float]], figure: str) -> str:
    return number(figures[figure]["mean"], IN_TABLE[figure][1], signed=figure in SIGNED)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="view_table.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("quality", type=Path, nargs="+", help="results of fvae-evaluate-reconstruction, one per view")
    parser.add_argument("--names", nargs="+", required=True, help="names of the views, in the same order")
    parser.add_argument("--times", type=Path, nargs="+", required=True, metavar="TSV", help="Snakemake's benchmarks")
    parser.add_argument("--device", required=True, help="device of the reconstructions, to store with the results")
    parser.add_argument("-o", type=Path, required=True, metavar="FILE", help="the figures of every case, a .json file")
    return run_command(parser, run, argv)


def run(args: argparse.Namespace) -> int:
    if not len(args.quality) == len(args.names) == len(args.times):
        raise UserError("give as many --names and --times as results")
    views = {}
    for name, quality, time in zip(args.names, args.quality, args.times, strict=True):
        content = read_json(quality)
        kept = ("settings", "view_settings", "labels", "summary")
        cases = [{key: value for key, value in case.items() if not key.endswith("_file")} for case in content["cases"]]
        views[name] = {key: content[key] for key in kept} | {"cases": cases, "cost": cost(time)}
    made_with = versions() | {"device": args.device, "machine": platform.machine(), "cores": os.cpu_count()}
    write_json(args.o, {"schema": 1, "kind": "view_quality", "views": views, "made_with": made_with})
    print("\n".join(tables(views)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
