"""Simulate another scan of CT images, with a lower dose or another kernel.

    python scripts/rescan_images.py imagesTs imagesTs_quarter --dose 0.25
    python scripts/rescan_images.py imagesTs imagesTs_sharp --kernel sharp

A lower dose is simulated in the sinogram (``fvae_nnunet.scanner``): each image gets the missing noise, based on its own
measured noise or on ``--own-noise``. The kernel filters the image and its noise. Files keep their names, geometry and
type (int16 HU); label files remain valid.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from fvae_nnunet.cli.command import run_command
from fvae_nnunet.cli.common_options import add_common
from fvae_nnunet.ct.files import find_images, image_ending, read_volume, write_volume
from fvae_nnunet.ct.geometry import Geometry
from fvae_nnunet.ct.hounsfield import check_volume_hu
from fvae_nnunet.ct.hu_windows import PAPER_HU_WINDOW
from fvae_nnunet.ct.intensity import as_stored_by_scanners
from fvae_nnunet.ct.noise import measured_region
from fvae_nnunet.errors import UserError
from fvae_nnunet.jobs.pipeline import StageSeconds, run_cases, unchanged
from fvae_nnunet.jobs.progress_bar import progress_bar
from fvae_nnunet.scanner.kernels import KERNELS
from fvae_nnunet.scanner.photons import low_dose_hu

SQUARE_WITHIN = 0.01


def rescanned(
    volume_hu: np.ndarray, geometry: Geometry, *, dose: float, kernel: str, own_noise_hu: float | None, seed: list[int]
) -> np.ndarray:
    """Rescan a volume in the file's axes (HU), with axial slices; returns int16 HU in the same axes."""
    axial_hu = volume_hu.transpose(geometry.axial_order)
    _, row_mm, column_mm = geometry.axial_spacing_mm
    if abs(row_mm / column_mm - 1) > SQUARE_WITHIN:
        raise UserError(f"pixels of {row_mm:g} x {column_mm:g} mm: a sinogram requires square pixels")
    if dose < 1 and own_noise_hu is None:
        _, noise = measured_region(axial_hu, PAPER_HU_WINDOW)
        if noise is None:
            raise UserError("the image has no soft tissue, so its own noise is unknown; give --own-noise")
        own_noise_hu = noise.total_hu
    rng = np.random.default_rng(seed)
    low_hu = low_dose_hu(axial_hu, column_mm, dose, own_noise_hu=own_noise_hu or 0.0, rng=rng)
    scanned_hu = KERNELS[kernel].applied(low_hu, column_mm)
    return geometry.as_in_file(as_stored_by_scanners(scanned_hu))


def rescan_file(images: dict[str, Path], output: Path, arguments: argparse.Namespace, case: str) -> bool:
    volume_hu, geometry = read_volume(images[case])
    check_volume_hu(volume_hu, images[case])
    scanned_hu = rescanned(
        volume_hu,
        geometry,
        dose=arguments.dose,
        kernel=arguments.kernel,
        own_noise_hu=arguments.own_noise,
        seed=[arguments.seed, zlib.crc32(case.encode())],
    )
    write_volume(output / (case + image_ending(images[case])), scanned_hu, geometry)
    return True


def run(arguments: argparse.Namespace) -> int:
    if arguments.output.resolve() == arguments.images.resolve():
        raise UserError(f"{arguments.output} is the input folder; the images would be overwritten")
    images = find_images(arguments.images)
    arguments.output.mkdir(parents=True, exist_ok=True)
    rescan = partial(rescan_file, images, arguments.output, arguments)
    failed = 0
    with progress_bar(total=len(images), unit="image") as bar:
        for outcome in run_cases(
            sorted(images), read=rescan, write=unchanged, workers=arguments.processes, seconds=StageSeconds()
        ):
            bar.update()
            if outcome.error is not None:
                failed += 1
                bar.write(f"{outcome.case}: {outcome.error}", file=sys.stderr)
    print(f"{len(images) - failed} of {len(images)} images in {arguments.output}")
    return 1 if failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="rescan_images.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path, metavar="IMAGES", help="folder of CT in HU")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="folder")
    parser.add_argument(
        "--dose", type=float, default=1.0, metavar="FRACTION", help="dose relative to that of the image; default 1"
    )
    parser.add_argument(
        "--own-noise", type=float, metavar="HU", help="standard deviation in soft tissue; default: measured"
    )
    parser.add_argument("--kernel", choices=list(KERNELS), default="own", help="kernel; default own: unchanged")
    add_common(parser, "seed", "processes")
    return run_command(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
