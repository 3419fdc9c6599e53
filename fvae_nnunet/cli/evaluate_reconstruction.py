"""fvae-evaluate-reconstruction: measure what reconstruction changed in a folder of CT images.

Compare reconstructed CT images of fvae-reconstruct with the raw images: PSNR, SSIM, MSE, errors in HU by tissue and
label, noise before and after, shift and sharpness of label boundaries, and seams between windows. Prints a table and
writes a JSON file, a CSV with a row for each case, and pictures. docs/reconstruction_quality.md defines each figure.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fvae_nnunet.cli.command import run_command
from fvae_nnunet.cli.common_options import add_common, given_options
from fvae_nnunet.cli.outputs import is_json_of, refuse_other_output
from fvae_nnunet.cli.parsers import CommandParser
from fvae_nnunet.command_lines import options_of
from fvae_nnunet.errors import UserError
from fvae_nnunet.numbers_as_text import counted

if TYPE_CHECKING:
    import numpy as np

OF_COMPARISON = (
    "label_folder", "dataset_json", "pictures", "hu_window", "window_slices", "overlap_slices", "processes",
)  # fmt: skip
OF_KNOWN_TRUTH = ("noise_kernel", "softened", "slices")
"""Options that only one of the two evaluations has."""


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(_parser(), run, argv)


def _parser() -> CommandParser:
    parser = CommandParser(__doc__)
    parser.add_argument("raw_folder", type=Path, metavar="RAW", help="folder of raw images, such as imagesTs")
    parser.add_argument("view_folder", type=Path, metavar="RECON", help="folder of their reconstructions")
    # fmt: off
    parser.add_argument("--labels", type=Path, metavar="FOLDER", dest="label_folder",
        help="folder of label maps, such as labelsTs, for errors and boundaries of each label")
    add_common(parser, "dataset_json",
        help="dataset.json that names the labels; default: above or in the folder of --labels; without one, every "
        "value is a label")
    add_common(parser, "output", metavar="FILE",
        help="the results, a .json file; default: RECON/reconstruction_quality.json")
    parser.add_argument("--pictures", type=int, default=3, metavar="N",
        help="draw N cases, from the smallest to the largest error, in a folder beside the results; default 3")
    add_common(parser, "hu_window",
        help="HU window to which both images are clipped; default: that of RECON's manifest, else -1000 1000")
    add_common(parser, "window_slices",
        help="slices in a window of the VAE, for the seam score; default: from RECON's manifest, else no seam score")
    add_common(parser, "overlap_slices",
        help="slices shared by neighbouring windows, with --window-slices; default 0")
    add_common(parser, "processes", help="number of processes; default 2, 0: only this one")
    noise = parser.add_argument_group("against a known truth (docs/reconstruction_quality.md)")
    noise.add_argument("--with-noise", type=float, metavar="HU",
        help="instead of the comparison above: add noise of this standard deviation to the raw images, reconstruct "
        "them as RECON was, and compare the remaining noise with that of plain filters of every strength")
    add_common(noise, "noise_kernel")
    noise.add_argument("--softened", type=float, metavar="PIXELS", default=0.8,
        help="width of the in-plane Gaussian that turns a raw image into the truth; default 0.8; 0 for images without "
        "noise")
    noise.add_argument("--slices", type=int, metavar="N", default=16,
        help="number of slices from the middle of each image; default 16")
    # fmt: on
    return parser


def run(arguments: argparse.Namespace) -> int:
    from fvae_nnunet.evaluation.reconstruction.folder import evaluate_view_folder, write_pictures
    from fvae_nnunet.evaluation.reconstruction.summary import case_rows, format_table
    from fvae_nnunet.evaluation.results_files import write_results
    from fvae_nnunet.jobs.progress_bar import counting_bar

    without, others = ("without", OF_KNOWN_TRUTH) if arguments.with_noise is None else ("with", OF_COMPARISON)
    if given := given_options(_parser(), arguments, others):
        raise UserError(f"{', '.join(given)}: no effect {without} --with-noise; leave out")
    if arguments.with_noise is not None:
        return _with_noise(arguments)
    path = arguments.output or arguments.view_folder / "reconstruction_quality.json"
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
        raise UserError("--overlap requires --window-slices; give both")
    with counting_bar(unit="case") as on_case:
        results = evaluate_view_folder(
            arguments.raw_folder,
            arguments.view_folder,
            label_folder=arguments.label_folder,
            dataset_json=arguments.dataset_json,
            hu_window=tuple(arguments.hu_window) if arguments.hu_window else None,
            windows=windows,
            processes=arguments.processes,
            on_case=on_case,
        )
    table = path.with_suffix(".csv")
    try:
        write_results(results, path, {table: case_rows(results)})
        with counting_bar(unit="picture") as on_picture:
            pictures = write_pictures(results, folder, count=arguments.pictures, on_picture=on_picture)
    finally:
        print(format_table(results))
    print(f"written: {path} and {table}")
    if pictures:
        print(f"pictures: {', '.join(map(str, pictures))}")
    return 0


def _with_noise(arguments: argparse.Namespace) -> int:
    from fvae_nnunet.cli.command import load_again
    from fvae_nnunet.ct.files import read_upright
    from fvae_nnunet.evaluation.reconstruction.folder import cases_of
    from fvae_nnunet.evaluation.reconstruction.front import (
        KIND,
        front_rows,
        measure_front,
        methods_count,
        middle,
        write_front,
    )
    from fvae_nnunet.evaluation.reconstruction.known_noise import KnownNoise
    from fvae_nnunet.evaluation.text_table import text_table
    from fvae_nnunet.jobs.manifest import MANIFEST_FOLDER, Manifest
    from fvae_nnunet.jobs.progress_bar import progress_bar
    from fvae_nnunet.reconstruction.volume import reconstruct_volume

    path = arguments.output or arguments.view_folder / "denoising_front.json"
    if arguments.slices < 1:
        raise UserError(f"--slices must be at least 1, got {arguments.slices}")
    beside = [path.with_suffix(".png")]
    refuse_other_output(path, is_ours=is_json_of(KIND), beside=beside, command="fvae-evaluate-reconstruction")
    content = Manifest(arguments.view_folder / MANIFEST_FOLDER).read({"made_with": {"parameters": dict}})
    if content is None:
        raise UserError(
            f"{arguments.view_folder} was not written by fvae-reconstruct, so its settings are unknown; make it with "
            "fvae-reconstruct"
        )
    noise = KnownNoise(arguments.with_noise, arguments.noise_kernel, arguments.softened)
    images = cases_of(arguments.raw_folder)
    loaded = load_again(content["made_with"]["parameters"])
    volumes = []
    for image in images.values():
        volume_hu, spacing_mm = read_upright(image)
        volumes.append((middle(volume_hu, arguments.slices), spacing_mm))
    name = loaded.vae.spec.name

    def view(noisy_hu: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
        return reconstruct_volume(loaded.vae, noisy_hu, loaded.settings, spacing_mm=spacing_mm)

    with progress_bar(total=len(volumes) * methods_count(1), unit="view") as bar:
        found = measure_front(volumes, {name: view}, noise, hu_window=loaded.settings.hu_window, on_step=bar.update)
    picture = write_front(
        found, noise, list(images), path, {"views": {name: shlex.join(options_of(loaded.parameters))}}
    )
    print("\n".join(text_table(front_rows(found, ("edges", "flat")))))
    print(
        f"{counted(len(volumes), 'image')}, {noise}; root mean square errors against the truth in HU, with 95 % "
        "intervals\nover images; each filter at the strength with the smallest error"
    )
    print(f"written: {path} and {picture}")
    return 0
