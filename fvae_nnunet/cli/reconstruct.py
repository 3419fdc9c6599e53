"""fvae-reconstruct: reconstruct every image of a folder with a frozen VAE.

Reconstruct every CT image of a folder (NIfTI, NRRD, MHA; in HU) with a frozen VAE. The results are int16 HU images with
the same name, format and geometry. Use it for the test images of nnUNetTrainerFVAEReconOnly.
"""

from __future__ import annotations

import argparse
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fvae_nnunet.cli.cases import ReconstructionProgress, add_work_options, do_cases, part_of, submit_cases, workers_of
from fvae_nnunet.cli.command import LoadedVAE, load, match_noise, run_command
from fvae_nnunet.cli.common_options import add_common
from fvae_nnunet.cli.outputs import check_output_folder
from fvae_nnunet.cli.parsers import CommandParser
from fvae_nnunet.cli.reconstruction_options import add_match_option, add_reconstruction_options
from fvae_nnunet.command_lines import command_line
from fvae_nnunet.errors import UserError

if TYPE_CHECKING:
    from fvae_nnunet.jobs.devices import OnSlices
    from fvae_nnunet.jobs.pipeline import Outcome, StageSeconds


def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(__doc__)
    add_common(parser, "images", help="folder of images")
    add_common(parser, "output", required=True, metavar="FOLDER", help="folder to write to")
    add_match_option(add_reconstruction_options(parser), of="an earlier output folder")
    add_work_options(parser)
    return run_command(parser, run, argv)


def run(arguments: argparse.Namespace) -> int:
    from fvae_nnunet.ct.files import find_images
    from fvae_nnunet.jobs.manifest import MANIFEST_FOLDER

    check_output_folder(arguments.output)
    images = find_images(arguments.images)
    cases = part_of(list(images), arguments)
    if arguments.submit is not None:
        return submit_cases(arguments, cases=cases, folders=[arguments.output / MANIFEST_FOLDER])
    if arguments.match is not None:
        _match_folder(arguments, images)
    work = _Reconstruct(arguments, images)
    progress = do_cases(
        arguments,
        work,
        cases=cases,
        folders=[arguments.output / MANIFEST_FOLDER],
        progress_type=ReconstructionProgress,
    )
    status = progress.finish("fvae-reconstruct", "run the same command again to retry failed cases")
    print(f"{progress.summary}, in {arguments.output}")
    return status


def _match_folder(arguments: argparse.Namespace, images: dict[str, Path]) -> None:
    from fvae_nnunet.jobs.manifest import MANIFEST_FOLDER, Manifest
    from fvae_nnunet.reconstruction.folder import check_folder, read_axial

    folder = Path(arguments.match)
    if folder.resolve() == arguments.output.resolve():
        raise UserError(f"--match {folder} is also the output folder (-o); name another folder")
    make = partial(command_line, "fvae-reconstruct", i=arguments.images, o=folder)
    match_noise(
        arguments,
        Manifest(folder / MANIFEST_FOLDER),
        check=lambda: check_folder(folder, images, make),
        cases=images,
        read_axial=lambda case: [read_axial(images[case])],
        make=make,
    )


@dataclass(frozen=True)
class _Reconstruct:
    """The work of one device."""

    arguments: argparse.Namespace
    images: dict[str, Path]

    def load(self, device: str | None) -> LoadedVAE:
        return load(argparse.Namespace(**vars(self.arguments) | {"device": device}))

    def run(
        self, loaded: LoadedVAE, cases: Iterator[str], *, first: bool, seconds: StageSeconds, on_slices: OnSlices
    ) -> Generator[Outcome, None, None]:
        from fvae_nnunet.reconstruction.folder import reconstruct_folder

        for outcome in reconstruct_folder(
            self.images,
            self.arguments.output,
            loaded.vae,
            settings=loaded.settings,
            hu_as_is=self.arguments.hu_as_is,
            cases=cases,
            workers=workers_of(self.arguments),
            seconds=seconds,
            made_with=loaded.made_with,
            overwrite=self.arguments.overwrite and first,
            reader=_reader(self.arguments.images),
            on_slices=on_slices,
        ):
            yield replace(outcome, result=asdict(outcome.result)) if outcome.result else outcome


def _reader(images: Path) -> str | None:
    """Reader named in the dataset.json beside or above the images, as for imagesTs of a raw dataset."""
    from fvae_nnunet.nnunet.folders import folders_above
    from fvae_nnunet.nnunet.image_readers import reader_beside

    places = (images, *folders_above(images))
    found = next((path / "dataset.json" for path in places if (path / "dataset.json").is_file()), None)
    return None if found is None else reader_beside(found)
