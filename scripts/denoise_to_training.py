"""Denoise images that are noisier than those of a training, and only as far as these (docs/evidence_runs.md).

    python scripts/denoise_to_training.py nnUNet_raw/Dataset007_Pancreas/imagesTr imagesTs imagesTs_denoised

An image x with more noise than the median of the training images becomes v + k (x - v), with its non-local means v
(``control:nlm --strength auto``) and the k at which its noise (``ct.noise``) is that median. Others are copied.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.optimize import brentq

from fvae_nnunet.cli.command import run_command
from fvae_nnunet.ct.files import find_images, read_volume, write_volume
from fvae_nnunet.ct.noise import measure_noise, measured_region, measured_slices
from fvae_nnunet.errors import UserError
from fvae_nnunet.jobs.progress_bar import counting_bar
from fvae_nnunet.reconstruction.settings import ReconstructionSettings
from fvae_nnunet.reconstruction.volume import reconstruct_volume
from fvae_nnunet.vae.denoisers import load_control


def denoised_to(axial_hu: np.ndarray, wanted_hu: float) -> np.ndarray | None:
    """The volume (z, y, x) with this noise in HU: int16; None if it has no more, or no soft tissue."""
    vae = load_control("control:nlm", "auto")
    settings = ReconstructionSettings.for_vae(vae.spec)
    region, own = measured_region(axial_hu, settings.hu_window)
    if own is None or own.total_hu <= wanted_hu:
        return None
    inside_hu = np.clip(axial_hu.astype(np.float32), *settings.hu_window)
    view_hu = reconstruct_volume(vae, axial_hu, settings)
    view_slices_hu, raw_slices_hu = measured_slices(view_hu), measured_slices(inside_hu)

    def excess_hu(k: float) -> float:
        mixed_hu = view_slices_hu + k * (raw_slices_hu - view_slices_hu)
        return measure_noise(mixed_hu, region).total_hu - wanted_hu

    k = brentq(excess_hu, 0.0, 1.0, xtol=1e-3) if excess_hu(0.0) < 0 < excess_hu(1.0) else float(excess_hu(0.0) < 0)
    mixed_hu = np.rint(view_hu + k * (inside_hu - view_hu))
    return np.where(inside_hu == axial_hu, mixed_hu, axial_hu).astype(np.int16)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="denoise_to_training.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("training", type=Path, help="images of the training, such as imagesTr")
    parser.add_argument("images", type=Path, help="images to denoise")
    parser.add_argument("output", type=Path, help="new folder for them")
    return run_command(parser, run, argv)


def run(arguments: argparse.Namespace) -> int:
    if arguments.output.exists():
        raise UserError(f"{arguments.output} exists; name a new folder")
    settings = ReconstructionSettings.for_vae(load_control("control:nlm", "auto").spec)
    training = find_images(arguments.training)
    images = find_images(arguments.images)
    with counting_bar(unit="image") as on_image:
        known_hu = []
        for number, path in enumerate(training.values(), start=1):
            volume_hu, geometry = read_volume(path)
            _, noise = measured_region(volume_hu.transpose(geometry.axial_order), settings.hu_window)
            known_hu += [] if noise is None else [noise.total_hu]
            on_image(number, len(training))
    if not known_hu:
        raise UserError(f"no image in {arguments.training} has soft tissue in which to measure noise")
    wanted_hu = float(np.median(known_hu))
    arguments.output.mkdir(parents=True)
    changed = 0
    with counting_bar(unit="image") as on_image:
        for number, path in enumerate(images.values(), start=1):
            volume_hu, geometry = read_volume(path)
            found_hu = denoised_to(volume_hu.transpose(geometry.axial_order), wanted_hu)
            if found_hu is None:
                shutil.copyfile(path, arguments.output / path.name)
            else:
                changed += 1
                write_volume(arguments.output / path.name, geometry.as_in_file(found_hu), geometry)
            on_image(number, len(images))
    print(f"{changed} of {len(images)} images denoised to {wanted_hu:.1f} HU, the others copied to {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
