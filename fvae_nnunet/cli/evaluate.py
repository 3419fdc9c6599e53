"""fvae-evaluate: DSC and NSD of a folder of predictions."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from fvae_nnunet.cli.command import run_command


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="fvae-evaluate",
        description="Compare predicted segmentations with references: DSC and NSD for each case and label, as a table, "
        "a summary.json in nnU-Net's shape with NSD added, and a CSV with a row for each case and label. Labels, "
        "regions and ignore label are those of dataset.json; spacings are those of the files.",
    )
    parser.add_argument("reference_folder", type=Path, metavar="REFERENCE_FOLDER", help="such as labelsTs")
    parser.add_argument("prediction_folder", type=Path, metavar="PREDICTION_FOLDER", help="what nnUNetv2_predict wrote")
    parser.add_argument(
        "-djfile", type=Path, metavar="FILE",
        help="dataset.json; default: in PREDICTION_FOLDER, else above or in REFERENCE_FOLDER",
    )  # fmt: skip
    parser.add_argument(
        "-o", type=Path, metavar="FILE", help="the summary, ending in .json; default: PREDICTION_FOLDER/summary.json"
    )
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
    return run_command(parser, run, argv)


def run(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from fvae_nnunet.errors import UserError
    from fvae_nnunet.evaluation.segmentation import evaluate_folder
    from fvae_nnunet.evaluation.segmentation_summary import format_table, write_summary

    path = arguments.o or arguments.prediction_folder / "summary.json"
    if path.suffix != ".json":
        raise UserError(f"-o must name a file that ends in .json, got {path}")
    with tqdm(unit="case", dynamic_ncols=True) as bar:

        def on_case(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        summary = evaluate_folder(
            arguments.reference_folder,
            arguments.prediction_folder,
            dataset_json=arguments.djfile,
            tolerances_mm=arguments.tolerance,
            empty_masks=arguments.empty_masks,
            allow_missing=arguments.allow_missing,
            processes=arguments.np,
            on_case=on_case,
        )
    print(format_table(summary))
    print(f"written: {path} and {write_summary(summary, path)}")
    return 0
