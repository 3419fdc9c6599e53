"""fvae-evaluate: DSC, NSD, HD95 and lesions of a folder of predictions, or a paired comparison of several folders."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from fvae_nnunet.cli.command import run_command
from fvae_nnunet.cli.outputs import is_json_of, is_summary, refuse_other_output
from fvae_nnunet.cli.parsers import CommandParser


def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(
        prog="fvae-evaluate",
        description="Compare predicted segmentations with references: DSC, NSD and HD95 for each case and label, and "
        "the detection of lesions by size, as a table, a summary.json in nnU-Net's shape with these added, and a CSV "
        "with a row for each case and label. With two or more folders of predictions: a paired comparison of their "
        "models with intervals and tests, as a table, a comparison.json and CSVs. Labels, regions and ignore label are "
        "those of dataset.json; spacings are those of the files. Definitions: docs/evaluation.md.",
    )
    parser.add_argument("reference_folder", type=Path, metavar="REFERENCE_FOLDER", help="such as labelsTs")
    parser.add_argument(
        "prediction_folders", type=Path, nargs="+", metavar="PREDICTION_FOLDER", help="what nnUNetv2_predict wrote"
    )
    parser.add_argument(
        "-djfile", type=Path, metavar="FILE",
        help="dataset.json; default: in PREDICTION_FOLDER, else above or in REFERENCE_FOLDER",
    )  # fmt: skip
    parser.add_argument(
        "-o", type=Path, metavar="FILE",
        help="the result, ending in .json; default: PREDICTION_FOLDER/summary.json, of a comparison comparison.json",
    )  # fmt: skip
    parser.add_argument(
        "--tolerance", nargs="+", type=float, default=[2.0], metavar="MM",
        help="tolerances of the NSD in mm; default 2",
    )  # fmt: skip
    parser.add_argument(
        "--empty-masks", choices=("nan", "flare"), default="nan",
        help="score of a label that neither reference nor prediction holds: nan, left out of the mean as in nnU-Net "
        "(default), or flare: 1; if only one of them holds it, the score is 0",
    )  # fmt: skip
    parser.add_argument(
        "--allow-missing", action="store_true", help="leave out and count references without a prediction"
    )
    parser.add_argument("-np", type=int, default=2, metavar="N", help="processes; default 2, 0: only this one")
    lesions = parser.add_argument_group("lesions")
    lesions.add_argument(
        "--lesion-labels", nargs="*", metavar="NAME",
        help="labels to evaluate lesion by lesion, none if no name is given; default: those called tumour, lesion, "
        "cancer, nodule or the like, else the only label",
    )  # fmt: skip
    lesions.add_argument(
        "--detection-overlap", type=float, default=0.1, metavar="SHARE",
        help="a lesion is detected if this share of its voxels is predicted; default 0.1",
    )  # fmt: skip
    comparison = parser.add_argument_group("comparison of two or more folders")
    comparison.add_argument("--names", nargs="+", metavar="NAME", help="of the models; default: those of the folders")
    comparison.add_argument("--all-pairs", action="store_true", help="compare each with each, not only with the first")
    comparison.add_argument("--seed", type=int, metavar="N", help="of the bootstrap; default 0")
    comparison.add_argument("--resamples", type=int, metavar="N", help="of the bootstrap; default 9999")
    return run_command(parser, run, argv)


def run(arguments: argparse.Namespace) -> int:
    from fvae_nnunet.errors import UserError
    from fvae_nnunet.evaluation.results_files import write_results
    from fvae_nnunet.evaluation.segmentation.comparison import compare, model_names
    from fvae_nnunet.evaluation.segmentation.comparison_tables import (
        comparison_csvs,
        comparison_rows,
        format_comparison,
    )
    from fvae_nnunet.evaluation.segmentation.scoring import score_folders
    from fvae_nnunet.evaluation.segmentation.summary import case_rows, format_table, summarise
    from fvae_nnunet.evaluation.statistics import check_resampling
    from fvae_nnunet.jobs.progress_bar import progress_bar

    folders, is_comparison = arguments.prediction_folders, len(arguments.prediction_folders) > 1
    path = arguments.o or (Path("comparison.json") if is_comparison else folders[0] / "summary.json")
    if path.suffix != ".json":
        raise UserError(f"-o must name a file that ends in .json, got {path}")
    refuse_other_output(
        path,
        is_ours=is_json_of("comparison") if is_comparison else is_summary,
        beside=comparison_csvs(path) if is_comparison else [path.with_suffix(".csv")],
        command="fvae-evaluate",
    )
    options = {name: getattr(arguments, name) for name in ("names", "all_pairs", "seed", "resamples")}
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    if given and not is_comparison:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UserError(f"{flags}: for the comparison of two or more folders of predictions, got one folder")
    # what is wrong with these is said before hours of scoring
    model_names(folders, arguments.names)
    check_resampling(given.get("seed", 0), given.get("resamples", 1))
    with progress_bar(unit="case") as bar:

        def on_case(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        scores = score_folders(
            arguments.reference_folder,
            folders,
            dataset_json=arguments.djfile,
            tolerances_mm=arguments.tolerance,
            empty_masks=arguments.empty_masks,
            lesion_labels=arguments.lesion_labels,
            detection_overlap=arguments.detection_overlap,
            allow_missing=arguments.allow_missing,
            processes=arguments.np,
            on_case=on_case,
        )
    if is_comparison:
        results = compare(scores, **given)
        tables = comparison_rows(results, path)
    else:
        results = summarise(scores)
        tables = {path.with_suffix(".csv"): case_rows(results)}
    try:
        write_results(results, path, tables)
    finally:  # what hours of scoring found is not lost on a full disk
        print(format_comparison(results) if is_comparison else format_table(results))
    print(f"written: {path} and {', '.join(map(str, tables))}")
    return 0
