"""fvae-evaluate-reconstruction: what reconstruction changed in a folder of CT images."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from fvae_nnunet.cli.command import run_command
from fvae_nnunet.cli.outputs import is_json_of, refuse_other_output
from fvae_nnunet.cli.parsers import CommandParser


def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(
        prog="fvae-evaluate-reconstruction",
        description="Compare reconstructed CT images (of fvae-reconstruct) with the raw ones: PSNR, SSIM, MSE, errors "
        "in HU by tissue and label, noise before and after, shift and sharpness of the boundaries of labels, seams at "
        "the borders of windows. A table, a JSON file, a CSV with a row for each case, and pictures. "
        "docs/reconstruction_quality.md defines each figure.",
    )
    parser.add_argument("raw_folder", type=Path, metavar="RAW", help="folder of raw images, such as imagesTs")
    parser.add_argument("view_folder", type=Path, metavar="RECON", help="folder of their reconstructions")
    parser.add_argument(
        "--labels", type=Path, metavar="FOLDER",
        help="folder of label maps, such as labelsTs: errors and boundaries of each label",
    )  # fmt: skip
    parser.add_argument(
        "-djfile", type=Path, metavar="FILE",
        help="dataset.json that names the labels; default: above or in the folder of --labels; without one every value "
        "is a label",
    )  # fmt: skip
    parser.add_argument(
        "-o", type=Path, metavar="FILE",
        help="the results, ending in .json; default: RECON/reconstruction_quality.json",
    )  # fmt: skip
    parser.add_argument(
        "--pictures", type=int, default=3, metavar="N",
        help="draw so many cases, from the smallest to the largest error, in a folder beside the results; default 3",
    )  # fmt: skip
    parser.add_argument(
        "--hu-window", nargs=2, type=float, metavar=("LOWER", "UPPER"),
        help="both images are clipped to it; default: that of RECON's manifest, else -1000 1000",
    )  # fmt: skip
    parser.add_argument(
        "--window-slices", type=int, metavar="N",
        help="slices in a window of the VAE, for the seam score; default: those of RECON's manifest, else no score",
    )  # fmt: skip
    parser.add_argument(
        "--overlap", type=int, metavar="N", dest="overlap_slices",
        help="slices that windows share; with --window-slices; default 0",
    )  # fmt: skip
    parser.add_argument("-np", type=int, default=2, metavar="N", help="processes; default 2, 0: only this one")
    return run_command(parser, run, argv)


def run(arguments: argparse.Namespace) -> int:
    from fvae_nnunet.errors import UserError
    from fvae_nnunet.evaluation.reconstruction_summary import format_table, write_results
    from fvae_nnunet.evaluation.view_folder import evaluate_view_folder, write_pictures
    from fvae_nnunet.progress_bar import progress_bar

    path = arguments.o or arguments.view_folder / "reconstruction_quality.json"
    if path.suffix != ".json":
        raise UserError(f"-o must name a file that ends in .json, got {path}")
    folder = path.with_name(f"{path.stem}_pictures")
    refuse_other_output(
        path,
        is_ours=is_json_of("reconstruction_quality"),
        beside=[path.with_suffix(".csv"), folder],
        command="fvae-evaluate-reconstruction",
    )
    if arguments.pictures < 0:
        raise UserError(f"--pictures must not be negative, got {arguments.pictures}")
    windows = None
    if arguments.window_slices is not None:
        windows = (arguments.window_slices, arguments.overlap_slices or 0)
    elif arguments.overlap_slices is not None:
        raise UserError("--overlap belongs to --window-slices; give both")
    with progress_bar(unit="case") as bar:

        def on_case(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        results = evaluate_view_folder(
            arguments.raw_folder,
            arguments.view_folder,
            label_folder=arguments.labels,
            dataset_json=arguments.djfile,
            hu_window=tuple(arguments.hu_window) if arguments.hu_window else None,
            windows=windows,
            processes=arguments.np,
            on_case=on_case,
        )
    try:
        table = write_results(results, path)
        pictures = write_pictures(results, folder, count=arguments.pictures) if arguments.pictures else []
    finally:
        print(format_table(results))
    print(f"written: {path} and {table}")
    if pictures:
        print(f"pictures: {', '.join(map(str, pictures))}")
    return 0
