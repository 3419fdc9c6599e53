"""fvae-report: results as one HTML page that opens from disk, or as Markdown.

Show results of fvae-evaluate as one HTML page that needs no network, or as Markdown: the compared models, tables with
intervals, plots and tables of all cases, pictures of the best and worst cases, the quality of views, synthetic lesions,
and the paper's tables. See docs/report.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fvae_nnunet.cli.command import run_command
from fvae_nnunet.cli.common_options import add_common, from_options
from fvae_nnunet.cli.outputs import holds, refuse_other_output
from fvae_nnunet.cli.parsers import CommandParser, named_paths
from fvae_nnunet.errors import UserError
from fvae_nnunet.numbers_as_text import number

LARGE_PAGE_BYTES = 15_000_000


def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(__doc__)
    # fmt: off
    parser.add_argument("results", type=Path, nargs="*", metavar="RESULTS",
        help="comparison.json of fvae-evaluate, or summary.json of one model; each becomes a chapter")
    add_common(parser, "output", metavar="FILE",
        help="the report; default report.html, or report.md with --format markdown")
    parser.add_argument("--format", choices=("html", "markdown"), default="html",
        help="format of the report; default html")
    parser.add_argument("--images", type=Path, action="append", default=[], metavar="FOLDER",
        help="raw CT images of the cases, such as imagesTs, for pictures; repeat it to give one for each of RESULTS")
    parser.add_argument("--views", nargs="+", action="extend", default=[], metavar="NAME=FOLDER",
        help="reconstructed images of fvae-reconstruct, to show in the pictures and with their settings; or a view of "
        "fvae-preprocess, to show its settings and records")
    parser.add_argument("--quality", nargs="+", action="extend", default=[], metavar="NAME=FILE",
        help="reconstruction_quality.json of fvae-evaluate-reconstruction")
    parser.add_argument("--training", nargs="+", action="extend", default=[], metavar="NAME=FOLDER",
        help="folder in which nnU-Net trained the model NAME, or that of one fold, for curves from its logs; not "
        "needed for predictions in fold_N/validation")
    parser.add_argument("--synthetic", type=Path, nargs="+", action="extend", default=[], metavar="FOLDER",
        help="synthetic cases of fvae-synthesize: shows a gallery, their quality, and why others were rejected; source "
        "cases are read from nnUNet_raw")
    parser.add_argument("--paper", nargs="*", metavar="TASK",
        help="add the paper's tables: lung, pancreas, lits, kits19; default all")
    parser.add_argument("--cases", type=int, default=2, metavar="N",
        help="draw the N best and the N worst cases; default 2, 0: none")
    parser.add_argument("--gallery", type=int, default=24, metavar="N",
        help="draw N synthetic cases of each folder; default 24, 0: none")
    # fmt: on
    parser.add_argument("--title", metavar="TEXT", help="title of the report; default: one that names the models")
    add_common(parser, "processes", help="number of processes; default 2, 0: only this one")
    return run_command(parser, run, argv)


def run(arguments: argparse.Namespace) -> int:
    from fvae_nnunet.jobs.progress_bar import counting_bar
    from fvae_nnunet.report.make import MADE_BY, ReportContents, make_report, write_html, write_markdown

    ending = ".html" if arguments.format == "html" else ".md"
    path = arguments.output or Path(f"report{ending}")
    if path.suffix != ending:
        other = "; for Markdown add --format markdown" if path.suffix == ".md" else ""
        raise UserError(f"-o must name a file that ends in {ending}, got {path}{other}")
    refuse_other_output(path, is_ours=holds(MADE_BY), ending=ending, command="fvae-report")
    views, quality = named_paths("--views", arguments.views), named_paths("--quality", arguments.quality)
    training = named_paths("--training", arguments.training)
    contents = from_options(ReportContents, arguments, views=views, quality=quality, training=training)
    with (
        counting_bar(desc="checking files", unit="file") as on_file,
        counting_bar(desc="drawing", unit="picture") as on_picture,
        counting_bar(desc="drawing the gallery", unit="sheet") as on_sheet,
    ):
        report = make_report(
            contents, processes=arguments.processes, on_file=on_file, on_picture=on_picture, on_sheet=on_sheet
        )
    if arguments.format == "markdown":
        folder = write_markdown(report, path)
        print(f"written: {path}" + (f" and {folder}" if folder else ""))
        return 0
    size = write_html(report, path)
    print(f"written: {path}, {number(size / 1e6, 'MB')} MB")
    if size > LARGE_PAGE_BYTES:
        print("the page is large; use fewer --cases or fewer RESULTS to make it smaller", file=sys.stderr)
    return 0
