"""Collect the results of an experiment in one file for ``experiment_table.py``: measures of all cases, folds, views.

    python scripts/experiments/results.py comparison.json --preprocessed nnUNet_preprocessed/Dataset511_Sarcoma \\
        --labels nnUNet_raw/Dataset511_Sarcoma/labelsTr --views VIEW_FOLDER ... --training '{...}' -o sarcoma.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fvae_nnunet.cli.command import run_command
from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.segmentation.scores import HD95_KEY
from fvae_nnunet.files.checked_json import read_json
from fvae_nnunet.files.recorded import sha256_of_file
from fvae_nnunet.jobs.manifest import Manifest, versions, write_json

DECIMALS = 6

MEASURES = ("Dice", "NSD_", HD95_KEY)
"""Beginnings of the keys of measures that are kept."""


def runs_of(comparison: Mapping[str, Any], folds: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Entries for each model ``ARM_seedN`` and fold, with the measures of its cases for the tumour (the last label)."""
    measures = [entry for entry in comparison["measures"] if entry["key"].startswith(MEASURES)]
    tumour = comparison["labels"][-1]["key"]
    values: dict[str, dict[str, dict[str, float]]] = {}
    for measure in measures:
        for model in measure["models"] if measure["label"] == tumour else ():
            for case, value in model["values"].items():
                known = math.nan if value is None else round(value, DECIMALS)
                values.setdefault(model["model"], {}).setdefault(case, {})[measure["key"]] = known
    return [
        {
            "arm": run.rpartition("_seed")[0],
            "seed": int(run.rpartition("_seed")[2]),
            "fold": fold,
            "cases": {case: values[run][case] for case in cases},
        }
        for run in values
        for fold, cases in enumerate(folds)
    ]


def diameters_of(comparison: Mapping[str, Any]) -> dict[str, float]:
    """Equivalent diameter in mm of the largest lesion of each case that has one; empty if lesions were not counted."""
    tumour = comparison["labels"][-1]["key"]
    by_model = comparison["lesions"].get(tumour, {})
    of_case = next(iter(by_model.values()), {})
    return {case: round(max(found["diameters_mm"]), 1) for case, found in of_case.items() if found["diameters_mm"]}


def view_record(folder: Path) -> dict[str, Any]:
    """Settings of a view, and the means of the recorded figures of its cases."""
    content = Manifest(folder).read()
    if content is None:
        raise UserError(f"{folder} does not hold a view")
    records = [read_json(path) for path in sorted((folder / "cases").glob("*.json"))]
    means = {}
    for name in sorted(records[0].keys() - {"inputs", "outputs"}):
        known = [record[name] for record in records if record[name] is not None]  # no noise without soft tissue
        means[name] = round(sum(known) / len(known), 3) if known else None
    settings = {name: value for name, value in content["settings"].items() if name != "preprocessing"}
    return {"settings": settings, "mean_of_cases": means, "cases": len(records)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="results.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("comparison", type=Path, help="comparison.json of fvae-evaluate; models are named ARM_seedN")
    parser.add_argument("--preprocessed", type=Path, required=True, help="the dataset's folder in nnUNet_preprocessed")
    parser.add_argument("--labels", type=Path, required=True, help="its labelsTr")
    parser.add_argument("--views", type=Path, nargs="*", default=[], metavar="FOLDER", help="views used in training")
    parser.add_argument(
        "--training",
        type=json.loads,
        default={},
        metavar="JSON",
        help="settings of the training, to store with the results",
    )
    parser.add_argument(
        "--test", type=json.loads, metavar="JSON", help="settings of the prediction, to store with the results"
    )
    parser.add_argument("-o", type=Path, required=True, metavar="FILE")
    return run_command(parser, run, argv)


def run(args: argparse.Namespace) -> int:
    folds = [fold["val"] for fold in read_json(args.preprocessed / "splits_final.json")]
    comparison = read_json(args.comparison)
    content = {
        "schema": 1,
        "kind": "experiment",
        "dataset": args.preprocessed.name,
        "labels_sha256": {path.name: sha256_of_file(path) for path in sorted(args.labels.iterdir())},
        "folds": folds,
        "budget": args.training,
        "test": args.test,
        "views": {folder.name.partition("__fvae_")[2]: view_record(folder) for folder in args.views},
        "tumour_diameters_mm": diameters_of(comparison),
        "runs": runs_of(comparison, folds),
        "made_with": versions() | {"machine": platform.machine(), "cores": os.cpu_count()},
    }
    write_json(args.o, content)
    print(f"{args.o}: {len(content['runs'])} runs of {sum(map(len, folds))} cases")
    return 0


if __name__ == "__main__":
    sys.exit(main())
