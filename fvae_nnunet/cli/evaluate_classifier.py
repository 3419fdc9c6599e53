"""fvae-evaluate-classifier: AUC of findings classifiers with intervals, and their paired comparison."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fvae_nnunet.cli.command import run_command
from fvae_nnunet.cli.outputs import is_json_of, refuse_other_output
from fvae_nnunet.cli.parsers import CommandParser
from fvae_nnunet.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(
        prog="fvae-evaluate-classifier",
        description="AUC of each finding and their mean, with 95 % intervals; with two or more models the paired "
        "differences from the first, with tests. Prints tables and writes findings_comparison.json and a picture. "
        "Definitions: docs/classification.md.",
    )
    parser.add_argument("reports", metavar="REPORTS", help="a reports.json, or id or name of a dataset that has one")
    parser.add_argument(
        "models", nargs="+", type=Path, metavar="PREDICTIONS",
        help="a model folder of fvae-train-classifier, or a CSV with the columns case and the findings",
    )  # fmt: skip
    parser.add_argument(
        "--cases", choices=("test", "validation"),
        help="which predictions of model folders; default: test if all have them, else validation",
    )  # fmt: skip
    parser.add_argument("--names", nargs="+", metavar="NAME", help="of the models; default: those of folders or files")
    parser.add_argument("--findings", nargs="+", metavar="NAME", help="default: all that every model has predicted")
    parser.add_argument(
        "--allow-missing", action="store_true", help="leave cases that a model has not predicted out for all models"
    )
    parser.add_argument("--all-pairs", action="store_true", help="compare each with each, not only with the first")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the bootstrap; default 0")
    parser.add_argument("--resamples", type=int, default=9999, metavar="N", help="of the bootstrap; default 9999")
    parser.add_argument(
        "-o", type=Path, default=Path("findings_comparison.json"), metavar="FILE",
        help="the result, ending in .json, with the picture beside it; default findings_comparison.json",
    )  # fmt: skip
    return run_command(parser, run, argv)


def run(arguments: argparse.Namespace) -> int:
    from fvae_nnunet.evaluation.segmentation.comparison import model_names
    from fvae_nnunet.findings.comparison import KIND, compare_findings
    from fvae_nnunet.findings.comparison_text import format_findings
    from fvae_nnunet.findings.forest_plot import forest_plot
    from fvae_nnunet.findings.predictions import read_predictions
    from fvae_nnunet.findings.truth import scored_cases
    from fvae_nnunet.jobs.manifest import write_json
    from fvae_nnunet.nnunet.case_reports import find_case_reports, read_case_reports
    from fvae_nnunet.nnunet.folders import dataset_name, nnunet_folder

    if arguments.o.suffix != ".json":
        raise UserError(f"-o must name a file that ends in .json, got {arguments.o}")
    refuse_other_output(
        arguments.o,
        is_ours=is_json_of(KIND),
        beside=[arguments.o.with_suffix(".png")],
        command="fvae-evaluate-classifier",
    )
    path = Path(arguments.reports)
    if not path.is_file() and path.suffix != ".json":
        path = find_case_reports(nnunet_folder("nnUNet_raw") / dataset_name(arguments.reports))
    names = model_names(
        [path.with_suffix("") if path.is_file() else path for path in arguments.models], arguments.names
    )
    files = _files(arguments.models, arguments.cases)
    scored = scored_cases(
        read_case_reports(path),
        [read_predictions(file) for file in files],
        findings=arguments.findings,
        allow_missing=arguments.allow_missing,
    )
    comparison = compare_findings(
        scored,
        names=names,
        files=files,
        all_pairs=arguments.all_pairs,
        seed=arguments.seed,
        resamples=arguments.resamples,
    )
    try:
        write_json(arguments.o, comparison)
        picture = forest_plot(comparison, arguments.o.with_suffix(".png"))
    finally:
        print(format_findings(comparison))
    print(f"written: {arguments.o} and {picture}")
    return 0


def _files(models: Sequence[Path], part: str | None) -> list[Path]:
    """The CSV of each model: of the same set of cases for all model folders."""
    from fvae_nnunet.findings.predictions import PARTS, predictions_path

    folders = [model for model in models if model.is_dir()]
    found = [
        known for known in PARTS if all(predictions_path(folder, known).is_file() for folder in folders)
    ]  # fmt: skip
    chosen = part or (found[0] if found else None)
    if folders and chosen not in found:
        wanted = f"predictions_{part}.csv" if part else "predictions of the same cases"
        raise UserError(
            f"not all of {', '.join(map(str, folders))} hold {wanted}; fvae-train-classifier writes them for the "
            "validation cases of --fold, and with --test for imagesTs"
        )
    if part and not folders:
        raise UserError("--cases is for model folders; all models are files")
    return [predictions_path(model, chosen) if model.is_dir() and chosen else model for model in models]


if __name__ == "__main__":
    sys.exit(main())
