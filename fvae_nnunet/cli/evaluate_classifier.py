"""fvae-evaluate-classifier: AUC of findings classifiers with intervals, and their paired comparison.

Compute the AUC of each finding and their mean, with 95 % intervals; with two or more models also the paired differences
from the first, with tests. Prints tables and writes findings_comparison.json and a picture. Definitions:
docs/classification.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fvae_nnunet.cli.command import run_command
from fvae_nnunet.cli.common_options import add_common, from_options
from fvae_nnunet.cli.outputs import is_json_of, refuse_other_output
from fvae_nnunet.cli.parsers import CommandParser
from fvae_nnunet.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(__doc__)
    parser.add_argument("reports", metavar="REPORTS", help="a reports.json, or the id or name of a dataset with one")
    # fmt: off
    parser.add_argument("models", nargs="+", type=Path, metavar="PREDICTIONS",
        help="a model folder of fvae-train-classifier, or a CSV with the column case and one for each finding")
    parser.add_argument("--cases", choices=("test", "validation"),
        help="which predictions of the model folders to use; default: test if all have them, else validation")
    add_common(parser, "names", "all_pairs")
    add_common(parser, "findings", help="findings to score; default: all that every model has predicted")
    add_common(parser, "allow_missing", help="leave out, for all models, the cases that a model has not predicted")
    add_common(parser, "seed", help="random seed of the bootstrap; default 0")
    add_common(parser, "resamples")
    add_common(parser, "output", default=Path("findings_comparison.json"), metavar="FILE",
        help="the result, a .json file; the picture is put beside it; default findings_comparison.json")
    # fmt: on
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

    refuse_other_output(
        arguments.output,
        is_ours=is_json_of(KIND),
        beside=[arguments.output.with_suffix(".png")],
        command="fvae-evaluate-classifier",
    )
    if arguments.all_pairs and len(arguments.models) == 1:
        raise UserError("--all-pairs: only valid with two or more models, got one")
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
    comparison = from_options(compare_findings, arguments, scored=scored, names=names, files=files)
    try:
        write_json(arguments.output, comparison)
        picture = forest_plot(comparison, arguments.output.with_suffix(".png"))
    finally:
        print(format_findings(comparison))
    print(f"written: {arguments.output} and {picture}")
    return 0


def _files(models: Sequence[Path], part: str | None) -> list[Path]:
    """The CSV of each model, for the same set of cases in all model folders."""
    from fvae_nnunet.findings.predictions import PARTS, predictions_path

    folders = [model for model in models if model.is_dir()]
    found = [
        known for known in PARTS if all(predictions_path(folder, known).is_file() for folder in folders)
    ]  # fmt: skip
    chosen = part or (found[0] if found else None)
    if folders and chosen not in found:
        wanted = f"predictions_{part}.csv" if part else "predictions of the same cases"
        raise UserError(
            f"not all of {', '.join(map(str, folders))} hold {wanted}; fvae-train-classifier writes predictions for "
            "the validation cases of --fold, and with --test for imagesTs"
        )
    if part and not folders:
        raise UserError("--cases applies to model folders, and all models are files; leave it out")
    return [predictions_path(model, chosen) if model.is_dir() and chosen else model for model in models]


if __name__ == "__main__":
    sys.exit(main())
