"""Compare views and plain filters as denoisers: known noise is added to CT images and removed again.

    python scripts/view_front.py IMAGE... --view tiny="--vae tiny" --view soft="--vae tiny --windows soft" -o front.json
    python scripts/view_front.py --phantoms 6 --view tiny="--vae tiny" -o front.json

The truth is the image softened in plane, or for phantoms (pancreas and lung in turn) the phantom itself. Errors are
root mean squares at edges, in flat tissue and by tissue, over a part of each image. Writes the figures of every case
and a picture with filters as curves and views as points. Views are given by options of ``fvae-reconstruct``.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from phantoms import LABELS, make_torso

from fvae_nnunet.cli.command import add_reconstruction_options, load, run_command
from fvae_nnunet.cli.common_options import add_common
from fvae_nnunet.ct.files import read_upright
from fvae_nnunet.ct.hu_windows import PAPER_HU_WINDOW, HUWindow
from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.reconstruction.front import (
    Method,
    front_rows,
    measure_front,
    methods_count,
    middle,
    write_front,
)
from fvae_nnunet.evaluation.reconstruction.known_noise import KnownNoise
from fvae_nnunet.jobs.progress_bar import progress_bar
from fvae_nnunet.reconstruction.volume import reconstruct_volume

PHANTOM_SHAPE, PHANTOM_SPACING_MM = (24, 192, 192), (3.0, 1.0, 1.0)

Case = tuple[str, np.ndarray, tuple[float, float, float]]


def images(paths: Sequence[Path], *, slices: int, pixels: int) -> Iterator[Case]:
    """Middle of each image, with this many slices and at most this many rows and columns."""
    for path in paths:
        volume_hu, spacing_mm = read_upright(path)
        yield path.name, middle(volume_hu, slices, pixels, pixels), spacing_mm


def clean_phantoms(count: int, *, slices: int) -> Iterator[Case]:
    """Phantoms without noise, of both kinds in turn."""
    for number in range(count):
        kind = list(LABELS)[number % len(LABELS)]
        torso = make_torso(kind, seed=(700, number), shape=PHANTOM_SHAPE, spacing_mm=PHANTOM_SPACING_MM)
        yield f"{kind}_{number}", middle(torso.clean(), slices), PHANTOM_SPACING_MM


def view_method(options: str, seconds: dict[str, float], name: str) -> tuple[Method, HUWindow]:
    """Reconstruction with options of ``fvae-reconstruct``, and its HU window; its time is added to ``seconds``."""
    parser = argparse.ArgumentParser(prog="the options of the view", allow_abbrev=False)
    add_reconstruction_options(parser)
    loaded = load(parser.parse_args(shlex.split(options)))

    def method(noisy_hu: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
        start = time.monotonic()
        view_hu = reconstruct_volume(loaded.vae, noisy_hu, loaded.settings, spacing_mm=spacing_mm, case=name)
        seconds[name] = seconds.get(name, 0.0) + time.monotonic() - start
        return view_hu

    return method, loaded.settings.hu_window


def run(arguments: argparse.Namespace) -> int:
    if bool(arguments.images) == (arguments.phantoms is not None):
        raise UserError("give either images or --phantoms N")
    if arguments.o.suffix != ".json":
        raise UserError(f"-o must name a file that ends in .json, got {arguments.o}")
    named = {}
    for view in arguments.view:
        name, found, options = view.partition("=")
        if not found or name in named:
            raise UserError(f"--view takes NAME=OPTIONS, each name once, got {view!r}")
        named[name] = options
    softened = 0.0 if arguments.phantoms else arguments.softened
    noise = KnownNoise(arguments.noise, arguments.noise_kernel, softened)
    if arguments.phantoms:
        cases = list(clean_phantoms(arguments.phantoms, slices=arguments.slices))
    else:
        cases = list(images(arguments.images, slices=arguments.slices, pixels=arguments.pixels))
    seconds: dict[str, float] = {}
    made = {name: view_method(options, seconds, name) for name, options in named.items()}
    methods = {name: method for name, (method, _) in made.items()}
    hu_windows = {hu_window for _, hu_window in made.values()} or {PAPER_HU_WINDOW}
    if len(hu_windows) > 1:
        raise UserError(f"the views must have the same HU window, got {sorted(hu_windows)}")
    with progress_bar(total=len(cases) * methods_count(len(methods)), unit="view") as bar:
        found = measure_front(
            [case[1:] for case in cases],
            methods,
            noise,
            hu_window=hu_windows.pop(),
            seed=arguments.seed,
            on_step=bar.update,
        )
    pixels = sum(volume_hu.size for _, volume_hu, _ in cases)
    per_slice = {name: round(taken / pixels * 512**2, 3) for name, taken in seconds.items()}
    made_with = {"views": named, "seconds_per_slice_of_512": per_slice}
    picture = write_front(found, noise, [name for name, *_ in cases], arguments.o, made_with)
    head, *rows = front_rows(found)
    for row in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(row)} |")
    print(f"{len(cases)} cases; seconds a slice of 512 x 512: {per_slice}")
    print(f"written: {arguments.o} and {picture}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="view_front.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="*", type=Path, metavar="IMAGE", help="CT in HU")
    parser.add_argument("--phantoms", type=int, metavar="N", help="instead of images: use N phantoms")
    parser.add_argument("--view", action="append", default=[], metavar="NAME=OPTIONS", help="such as tiny='--vae tiny'")
    parser.add_argument("--noise", type=float, default=25.0, metavar="HU", help="standard deviation; default 25")
    add_common(parser, "noise_kernel")
    parser.add_argument(
        "--softened", type=float, default=0.8, metavar="PIXELS", help="softening of the truth; default 0.8"
    )
    parser.add_argument("--slices", type=int, default=6, metavar="N", help="slices of each image; default 6")
    parser.add_argument(
        "--pixels", type=int, default=320, metavar="N", help="maximum pixels along an edge; default 320"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of the noise; default 0")
    parser.add_argument(
        "-o", type=Path, required=True, metavar="FILE", help="JSON file of figures; the picture is put beside it"
    )
    return run_command(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
