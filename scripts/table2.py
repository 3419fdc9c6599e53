"""Write the paper's Table 2 from a ``comparison.json``: DSC and NSD in %, intervals, differences, and paper values.

python scripts/table2.py comparison.json --paper pancreas --vaes wan2.1=wan2.1 -o table2.md
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fvae_nnunet.cli.command import run_command
from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.segmentation.verdict import FEW_CASES
from fvae_nnunet.evaluation.text_table import text_table
from fvae_nnunet.files.checked_json import read_json
from fvae_nnunet.files.csv_tables import csv_bytes
from fvae_nnunet.files.recorded import write_bytes
from fvae_nnunet.numbers_as_text import PERCENTILE_MARK, counted, interval_of, number, p_value
from fvae_nnunet.report.paper import paper_tables

REAL_CT = "realct"
PAPER_LABELS = {"cancer": "tumour"}
"""Label of the Decathlon -> label of the paper, if they differ."""

HEADINGS = (
    "label", "measure", "trained on", "mean %", "95 % interval", "difference", "95 % interval", "p", "p Holm", "n",
    "PAPER %", "PAPER difference",
)  # fmt: skip
LEFT = 3


def paper_values(paper: Mapping[str, Any], task: str, vae: str) -> dict[tuple[str, str], float | None]:
    """Values of the paper's Table 2 in %, by label and ``dsc`` or ``nsd``; empty for a VAE that is not in it.

    Args:
        paper: content of `report.paper.paper_tables`.
        task: key of the dataset.
        vae: name for ``--vae``, or `REAL_CT`.
    """
    rows = paper["tasks"][task]["segmentation"]
    found: Mapping[str, Any] = next(
        (row["labels"] for row in rows if row["training_data"].lower().replace(" ", "") == vae), {}
    )
    return {(label, measure): value for label, values in found.items() for measure, value in values.items()}


def table_rows(
    comparison: Mapping[str, Any], paper: Mapping[str, Any], task: str, vaes: Mapping[str, str]
) -> list[dict[str, Any]]:
    """A row for each label, DSC or NSD, and model. Means, differences and interval ends are in %, or NaN.

    Args:
        comparison: content of ``comparison.json``; its first model is the reference, trained on the raw images.
        paper: content of `report.paper.paper_tables`.
        task: key of the dataset in it.
        vaes: name of a model -> name of its VAE, for the paper's row.

    Returns:
        Rows with the columns of the CSV. ``paper_percent`` and ``paper_difference`` are None if the paper has none.
    """
    reference = comparison["models"][0]["name"]
    rows = []
    for measure in comparison["measures"]:
        if measure["key"] != "Dice" and not measure["key"].startswith("NSD"):
            continue
        label = PAPER_LABELS.get(measure["label_name"], measure["label_name"])
        key = (label, "dsc" if measure["key"] == "Dice" else "nsd")
        real = paper_values(paper, task, REAL_CT).get(key)
        compared = {entry["second"]: entry for entry in measure["comparisons"] if entry["first"] == reference}
        for entry in measure["models"]:
            name = entry["model"]
            row = {
                "label": measure["label"],
                "label_name": measure["label_name"],
                "measure": measure["name"],
                "trained_on": name,
                "n": entry["n"],
                **_percent("mean", entry["mean"], entry),
                **dict.fromkeys(("difference", "difference_low", "difference_high"), math.nan),
                "difference_interval_method": "none",
                "p": math.nan,
                "p_holm": math.nan,
            }
            if name in compared:
                difference = compared[name]
                row |= _percent("difference", difference["mean_difference"], difference)
                row |= {"p": difference["p"], "p_holm": difference["p_holm"]}
            vae = REAL_CT if name == reference else vaes.get(name, "")
            stated = paper_values(paper, task, vae).get(key)
            difference_stated = None if stated is None or real is None or name == reference else stated - real
            rows.append(row | {"paper_percent": stated, "paper_difference": difference_stated})
    return rows


def _percent(name: str, value: float, entry: Mapping[str, Any]) -> dict[str, Any]:
    low, high = (math.nan, math.nan) if entry["interval_method"] == "none" else entry["interval"]
    return {
        name: 100 * value,
        f"{name}_low": 100 * low,
        f"{name}_high": 100 * high,
        f"{name}_interval_method": entry["interval_method"],
    }


def text_rows(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Rows as displayed, without headings: one decimal, and empty cells for differences of the reference."""

    def interval(row: Mapping[str, Any], name: str, *, signed: bool = False) -> str:
        ends = [row[f"{name}_low"], row[f"{name}_high"]]
        return interval_of({"interval": ends, "interval_method": row[f"{name}_interval_method"]}, "%", signed=signed)

    shown, reference = [], rows[0]["trained_on"]
    for row in rows:
        is_reference = row["trained_on"] == reference
        difference = [
            number(row["difference"], "%", signed=True),
            interval(row, "difference", signed=True),
            *(p_value(row[p]) for p in ("p", "p_holm")),
        ]
        shown.append(
            [
                row["label_name"],
                row["measure"],
                row["trained_on"],
                number(row["mean"], "%"),
                interval(row, "mean"),
                *([""] * 4 if is_reference else difference),
                str(row["n"]),
                number(row["paper_percent"], "%"),
                number(row["paper_difference"], "%", signed=True),
            ]
        )
    return shown


def notes(comparison: Mapping[str, Any], paper: Mapping[str, Any]) -> list[str]:
    """Notes needed to read the table."""
    settings, source, n = comparison["settings"], paper["source"], len(comparison["reference"]["cases"])
    few = f"; too narrow with n below {FEW_CASES}" if n < FEW_CASES else ""
    return [
        f"{counted(n, 'case')}, each predicted by the fold that was not trained on it; "
        f"differences are to {comparison['models'][0]['name']}, of the paper to real CT",
        f"interval: bootstrap over cases, {settings['bootstrap']}, {settings['resamples']} resamples{few}; "
        f"{PERCENTILE_MARK} percentile interval; p: Wilcoxon signed-rank over cases, two-sided",
        f"PAPER: {source['authors']}, {source['venue']}, {source['tables']['segmentation']}; trained on the "
        "reconstructions alone; without intervals; split and tolerance of the NSD are not stated there, so its single "
        "NSD is shown beside each tolerance",
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="table2.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("comparison", type=Path, help="comparison.json of fvae-evaluate; first model: raw images")
    parser.add_argument("--paper", required=True, choices=("lung", "pancreas"), help="the dataset in the paper")
    parser.add_argument("--vaes", nargs="*", default=[], metavar="MODEL=VAE", help="row of the paper for each model")
    parser.add_argument("--title", default="Table 2", help="title above the table; default: Table 2")
    parser.add_argument("-o", type=Path, required=True, metavar="FILE", help="Markdown to write; a CSV beside it")
    return run_command(parser, run, argv)


def run(args: argparse.Namespace) -> int:
    comparison, paper = read_json(args.comparison), paper_tables()
    if not isinstance(comparison, dict) or comparison.get("kind") != "comparison":
        raise UserError(f"{args.comparison} is not a comparison of two or more models by fvae-evaluate")
    if args.o.suffix == ".csv":
        raise UserError(f"-o must name the Markdown file, got {args.o}; the CSV is put beside it")
    vaes = dict(text.partition("=")[::2] for text in args.vaes)
    models = [model["name"] for model in comparison["models"]]
    wrong = [text for text in args.vaes if not text.partition("=")[2] or text.partition("=")[0] not in models]
    if wrong:
        raise UserError(f"--vaes takes MODEL=VAE with a model of {', '.join(models)}; got {wrong[0]}")
    rows = table_rows(comparison, paper, args.paper, vaes)
    shown = [list(HEADINGS), *text_rows(rows)]
    write_bytes(args.o.with_suffix(".csv"), csv_bytes(rows))
    alignment = [":--"] * LEFT + ["--:"] * (len(HEADINGS) - LEFT)
    lines = [f"| {' | '.join(row)} |" for row in [shown[0], alignment, *shown[1:]]]
    markdown = [f"# {args.title}", "", *lines, "", *(f"- {note}" for note in notes(comparison, paper))]
    write_bytes(args.o, ("\n".join(markdown) + "\n").encode())
    print("\n".join([args.title, "", *text_table(shown, LEFT), "", *notes(comparison, paper)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
