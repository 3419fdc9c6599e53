"""Evaluate how well a frozen VAE reconstructs CT: Markdown table of PSNR, SSIM and HU errors per volume and their mean.

    python scripts/evaluate_vae.py --vae tiny -i Dataset511_Sarcoma/imagesTr ct_small/ct.nii.gz -o tiny.md

The reference is the volume clipped to the HU window. All figures are computed against it over the whole volume:

- PSNR, dB: 10 log10(width^2 / MSE), with the width of the window as peak.
- SSIM: scikit-image's structural_similarity (uniform window of 7x7) with the width of the window as data range, mean
  over axial slices; nan for slices smaller than 7 pixels.
- MAE, bias, HU: mean of the absolute and of the signed difference, reconstruction minus reference.
- air, HU: mean absolute difference in voxels in which the reference is at the lower end of the window (nan if none).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from fvae_nnunet.ct.files import find_images, read_volume
from fvae_nnunet.errors import UserError
from fvae_nnunet.files.recorded import write_bytes
from fvae_nnunet.numbers_as_text import number
from fvae_nnunet.reconstruction.settings import ReconstructionSettings
from fvae_nnunet.reconstruction.volume import fidelity, reconstruct_volume
from fvae_nnunet.vae import FrozenVAE, load_vae

SSIM_WINDOW_PIXELS = 7


@dataclass(frozen=True)
class Figures:
    """Figures of one volume, in the order of the table's columns; see the module's docstring."""

    psnr_db: float
    ssim: float
    mae_hu: float
    bias_hu: float
    air_mae_hu: float


HEADER = (
    "| volume | PSNR (dB) | SSIM | MAE (HU) | bias (HU) | air (HU) |",
    "|---|---|---|---|---|---|",
)


def compare(volume_hu: np.ndarray, reconstruction_hu: np.ndarray, hu_window: tuple[float, float]) -> Figures:
    """Figures of a reconstruction; both arrays (z, y, x) in HU, any real dtype."""
    from skimage.metrics import structural_similarity

    lower, upper = hu_window
    reference_hu = np.clip(volume_hu.astype(np.float32), lower, upper)
    error_hu = reconstruction_hu.astype(np.float64) - reference_hu
    in_air = reference_hu <= lower
    ssim = float("nan")
    if min(reference_hu.shape[1:]) >= SSIM_WINDOW_PIXELS:
        pairs = zip(reference_hu, reconstruction_hu.astype(np.float32), strict=True)
        ssim = float(np.mean([structural_similarity(a, b, data_range=upper - lower) for a, b in pairs]))
    quality = fidelity(volume_hu, reconstruction_hu, hu_window)
    return Figures(
        psnr_db=quality.psnr_db,
        ssim=ssim,
        mae_hu=quality.mean_absolute_error_hu,
        bias_hu=float(error_hu.mean()),
        air_mae_hu=float(np.abs(error_hu[in_air]).mean()) if in_air.any() else float("nan"),
    )


def evaluate(
    vae: FrozenVAE, images: dict[str, Path], *, hu_window: tuple[float, float], every: int = 1
) -> dict[str, Figures]:
    """Figures per case, from axial slices 0, ``every``, 2 * ``every``, ...

    Raises:
        UserError: slices are skipped although the VAE's slices depend on each other, or an image cannot be read.
    """
    if every < 1 or (every > 1 and not vae.spec.independent_slices):
        raise UserError(f"--every {every}: must be at least 1, and 1 for a VAE whose slices depend on each other")
    settings = ReconstructionSettings.for_vae(vae.spec, hu_window=hu_window)
    results = {}
    for case, path in tqdm(images.items(), unit="case"):
        volume_hu, geometry = read_volume(path)
        axial_hu = volume_hu.transpose(geometry.axial_order)[::every]
        results[case] = compare(axial_hu, reconstruct_volume(vae, axial_hu, settings), hu_window)
    return results


def table(results: dict[str, Figures]) -> str:
    """Markdown table with one row per case, then the mean over the cases."""
    values = np.array([astuple(figures) for figures in results.values()])
    defined = ~np.isnan(values)
    mean = Figures(*(column[ok].mean() if ok.any() else np.nan for column, ok in zip(values.T, defined.T, strict=True)))
    rows = [_row(case, figures) for case, figures in results.items()]
    return "\n".join([*HEADER, *rows, _row(f"**mean of {len(results)}**", mean)]) + "\n"


def _row(name: str, figures: Figures) -> str:
    return (
        f"| {name} | {number(figures.psnr_db, 'dB')} | {number(figures.ssim)} | {number(figures.mae_hu, 'HU')} "
        f"| {number(figures.bias_hu, 'HU', signed=True)} | {number(figures.air_mae_hu, 'HU')} |"
    )


def collect_images(places: Sequence[Path]) -> dict[str, Path]:
    """Images of folders and single files, by case name.

    Raises:
        UserError: a path does not exist or holds no image, or two images have the same name.
    """
    images: dict[str, Path] = {}
    for place in places:
        if not place.exists():
            raise UserError(f"no such file or folder: {place}")
        found = find_images(place) if place.is_dir() else {place.name.removesuffix(".gz").rsplit(".", 1)[0]: place}
        for case, path in found.items():
            if case in images:
                raise UserError(f"{images[case]} and {path} have the same name {case}")
            images[case] = path
    return images


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="PSNR, SSIM and HU errors of a VAE's reconstructions of CT volumes.")
    parser.add_argument("--vae", required=True, metavar="NAME", help="as for fvae-reconstruct")
    parser.add_argument("--weights", type=Path, metavar="PATH")
    parser.add_argument("-i", nargs="+", type=Path, required=True, metavar="PATH", help="folders and image files")
    parser.add_argument("-o", type=Path, metavar="FILE", help="also write the table to this file")
    parser.add_argument("--hu-window", nargs=2, type=float, default=(-1000.0, 1000.0), metavar=("LOWER", "UPPER"))
    parser.add_argument(
        "--every", type=int, default=1, metavar="N", help="use only every N-th axial slice, for slow VAEs"
    )
    parser.add_argument("-device", default="cpu")
    arguments = parser.parse_args(argv)
    try:
        images = collect_images(arguments.i)
        vae = load_vae(arguments.vae, weights=arguments.weights, device=torch.device(arguments.device))
        began = time.perf_counter()
        results = evaluate(vae, images, hu_window=tuple(arguments.hu_window), every=arguments.every)
    except UserError as error:
        print(f"evaluate_vae: {error}", file=sys.stderr)
        return 1
    text = table(results)
    print(f"{text}\n{time.perf_counter() - began:.1f} s, weights {vae.weights_sha256[:12]} ({vae.weights_source})")
    if arguments.o is not None:
        write_bytes(arguments.o, text.encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
