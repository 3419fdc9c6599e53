"""fvae-reconstruct: every image of a folder to its reconstruction by a frozen VAE."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from fvae_nnunet.cli.command import (
    CaseProgress,
    add_reconstruction_options,
    add_work_options,
    load,
    part_of,
    run_command,
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="fvae-reconstruct",
        description="Reconstruct every CT image of a folder (NIfTI, NRRD, MHA; in HU) with a frozen VAE. The result "
        "has the same name, format and geometry, as int16 HU. For test images of nnUNetTrainerFVAEReconOnly.",
    )
    parser.add_argument("-i", required=True, type=Path, metavar="FOLDER", help="folder of images")
    parser.add_argument("-o", required=True, type=Path, metavar="FOLDER", help="folder to write to")
    add_reconstruction_options(parser)
    add_work_options(parser)
    return run_command(parser, run, argv)


def run(arguments: argparse.Namespace) -> int:
    from fvae_nnunet.folder_reconstruction import reconstruct_folder
    from fvae_nnunet.image_files import find_images
    from fvae_nnunet.pipeline import StageSeconds

    images = find_images(arguments.i)
    images = {case: images[case] for case in part_of(list(images), arguments)}
    loaded = load(arguments)
    seconds = StageSeconds()
    progress = CaseProgress(len(images), arguments)
    for outcome in reconstruct_folder(
        images,
        arguments.o,
        loaded.vae,
        settings=loaded.settings,
        workers=arguments.np,
        seconds=seconds,
        made_with={"weights": loaded.vae.weights_source, "options": loaded.options},
        overwrite=arguments.overwrite,
        on_slices=progress.on_slices,
    ):
        progress.add(outcome, asdict(outcome.result) if outcome.result else None)
    summary, status = progress.finish(seconds, "fvae-reconstruct", "run the same command again for the rest")
    print(f"{summary}, in {arguments.o}")
    return status
