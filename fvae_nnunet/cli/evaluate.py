"""fvae-evaluate: DSC, NSD, HD95 and lesions of a folder of predictions, or a paired comparison of several folders.

Compare predicted segmentations with references: DSC, NSD and HD95 for each case and label, and the detection of lesions
by size. Prints a table and writes a summary.json in nnU-Net's format with these values added, and a CSV with a row for
each case and label. With two or more folders of predictions: makes a paired comparison of their models, with intervals
and tests, and writes a comparison.json and CSVs. Labels, regions and ignore label are read from dataset.json, spacings
from the files. Definitions: docs/evaluation.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from fvae_nnunet.cli.command import run_command
from fvae_nnunet.cli.common_options import add_common, from_options
from fvae_nnunet.cli.outputs import is_json_of, is_our_summary, is_summary, refuse_other_output
from fvae_nnunet.cli.parsers import CommandParser
from fvae_nnunet.command_lines import option_of
from fvae_nnunet.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(__doc__)
    # fmt: off
    parser.add_argument("reference_folder", type=Path, metavar="REFERENCE_FOLDER",
        help="folder of reference segmentations, such as labelsTs")
    parser.add_argument("prediction_folders", type=Path, nargs="+", metavar="PREDICTION_FOLDER",
        help="folder of predictions of nnUNetv2_predict")
    add_common(parser, "dataset_json",
        help="dataset.json; default: in PREDICTION_FOLDER, else above or in REFERENCE_FOLDER")
    add_common(parser, "output", metavar="FILE",
        help="the result, a .json file; default: PREDICTION_FOLDER/summary.json, or comparison.json for a comparison")
    parser.add_argument("--tolerance", nargs="+", type=float, default=[2.0], metavar="MM", dest="tolerances_mm",
        help="tolerances of the NSD in mm; default 2")
    parser.add_argument("--empty-masks", choices=("nan", "flare"), default="nan",
        help="score of a label that is absent from both reference and prediction: nan, left out of the mean as in "
        "nnU-Net (default), or flare: 1; a label in only one of them scores 0")
    add_common(parser, "allow_missing", help="skip references without a prediction, and report their number")
    add_common(parser, "processes", help="number of processes; default 2, 0: only this one")
    add_common(parser, "resamples", default=9999)
    add_common(parser, "seed", help="random seed of the bootstrap; default 0")
    lesions = parser.add_argument_group("lesions")
    lesions.add_argument("--lesion-labels", nargs="*", metavar="NAME",
        help="labels to evaluate lesion by lesion, none if no name is given; default: labels named tumour, lesion, "
        "cancer, nodule or similar, else the only label")
    lesions.add_argument("--detection-overlap", type=float, default=0.1, metavar="SHARE",
        help="a lesion is detected if this share of its voxels is predicted; default 0.1")
    # fmt: on
    comparison = parser.add_argument_group("comparison of two or more folders")
    add_common(comparison, "names", "all_pairs")
    return run_command(parser, run, argv)


def run(arguments: argparse.Namespace) -> int:
    from fvae_nnunet.evaluation.results_files import write_results
    from fvae_nnunet.evaluation.segmentation.comparison import compare, model_names
    from fvae_nnunet.evaluation.segmentation.comparison_tables import comparison_csvs, comparison_rows
    from fvae_nnunet.evaluation.segmentation.results_text import format_comparison, format_summary
    from fvae_nnunet.evaluation.segmentation.scoring import score_folders
    from fvae_nnunet.evaluation.segmentation.summary import case_rows, summarise
    from fvae_nnunet.evaluation.statistics import check_resampling
    from fvae_nnunet.evaluation.text_table import wrapped
    from fvae_nnunet.jobs.progress_bar import counting_bar

    folders, is_comparison = arguments.prediction_folders, len(arguments.prediction_folders) > 1
    path = arguments.output or (Path("comparison.json") if is_comparison else folders[0] / "summary.json")
    refuse_other_output(
        path,
        is_ours=is_json_of("comparison") if is_comparison else is_summary,
        beside=comparison_csvs(path) if is_comparison else [path.with_suffix(".csv")],
        has_beside=is_json_of("comparison") if is_comparison else is_our_summary,
        command="fvae-evaluate",
    )
    of_comparison = {name: getattr(arguments, name) for name in ("names", "all_pairs") if getattr(arguments, name)}
    if of_comparison and not is_comparison:
        options = ", ".join(map(option_of, of_comparison))
        raise UserError(f"{options}: only valid with two or more folders of predictions, got one folder")
    # report errors in these before hours of scoring
    model_names(folders, arguments.names)
    resampling = {"seed": arguments.seed, "resamples": arguments.resamples}
    check_resampling(**resampling)
    with counting_bar(unit="case") as on_case:
        scores = from_options(score_folders, arguments, on_case=on_case)
    if is_comparison:
        results = compare(scores, **of_comparison, **resampling)
        tables = comparison_rows(results, path)
    else:
        results = summarise(scores, **resampling)
        tables = {path.with_suffix(".csv"): case_rows(results)}
    try:
        write_results(results, path, tables)
    finally:  # print the results of hours of scoring even if the disk is full
        print(format_comparison(results) if is_comparison else format_summary(results))
    print("\n".join(wrapped(f"written: {path} and {', '.join(map(str, tables))}")))
    return 0
