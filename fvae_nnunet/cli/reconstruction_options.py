"""Options that select the VAE and how it reconstructs images."""

from __future__ import annotations

import argparse

from fvae_nnunet.cli.common_options import add_common
from fvae_nnunet.ct.hu_windows import NAMED_WINDOWS
from fvae_nnunet.jobs.recorded_settings import PRECISIONS


def add_vae_options(group: argparse._ActionsContainer) -> None:
    """Add the options that select the VAE and locate its weights."""
    group.add_argument("--vae", default="wan2.1", metavar="NAME",
        help="name of the VAE; fvae-setup --vaes lists them; default wan2.1")  # fmt: skip
    add_common(group, "weights", "vae_code", "trust_weights")


def add_reconstruction_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the group of options for the VAE and the reconstruction; ``command.load`` turns them into objects."""
    group = parser.add_argument_group("reconstruction")
    add_vae_options(group)
    # fmt: off
    group.add_argument("--scheme", choices=("windows", "paper", "stream"), default="windows",
        help="windows: overlapping windows, blended (default); paper: same values as the scripts released with the "
        "paper; stream: one causal pass without seams")
    group.add_argument(
        "--hu-window", nargs=2, type=float, action="append", metavar=("LOWER", "UPPER"), dest="hu_windows",
        help="HU mapped to [-1, 1]; values outside are clipped; default -1000 1000, the paper's. Can be repeated, "
        "widest first: the image is then reconstructed in each window, and narrower windows replace wider ones where "
        "they apply",
    )
    named = ", ".join(f"{name} ({low:g} to {high:g})" for name, (low, high) in NAMED_WINDOWS.items())
    group.add_argument("--windows", nargs="+", choices=list(NAMED_WINDOWS), dest="named_windows",
        help=f"instead of --hu-window: -1000 to 1000 HU (with bone: to {NAMED_WINDOWS['bone'][1]:g}) and, inside it, "
        f"any of {named}")
    group.add_argument("--enlarge", type=float, default=1.0, metavar="K",
        help="resample slices for the VAE to K times the pixels along each edge, 0.25 to 4; a larger K keeps more "
        "detail and more noise, a smaller K smooths more; time and memory grow with K squared; default 1")
    group.add_argument("--pixel-mm", type=float, metavar="MM",
        help="instead of --enlarge: resample every image to this pixel size in mm")
    group.add_argument("--average", type=int, default=1, metavar="N",
        help="average N reconstructions (1 to 8) of each slice, flipped and transposed; default 1")
    add_common(group, "hu_as_is")
    add_common(group, "window_slices", help="slices in a window; default: the VAE's own (Wan: 65)")
    add_common(group, "overlap_slices",
        help="slices shared by neighbouring windows; default 16 for video VAEs, 0 for image VAEs")
    add_common(group, "precision", choices=PRECISIONS,
        help="precision of the VAE; default float32 (--scheme paper: that of the script); float16 and bfloat16 are "
        "faster on a GPU and add 0.8 and 6 to 7 HU of rounding noise with Wan; mixed encodes in float32 and decodes in "
        "bfloat16 (4.6 HU)")
    group.add_argument("--truncate", action="store_true",
        help="with --scheme paper: truncate to int16 as the paper's scripts do; default: round")
    group.add_argument("--sample-posterior", type=int, metavar="SEED", dest="posterior_seed",
        help="draw the latent from the posterior; default: its mode")
    group.add_argument("--strength", type=_strength, metavar="S",
        help="strength of a plain denoiser (--vae control:<name>); fvae-setup --vaes lists the units; 0 changes "
        "nothing; auto (nlm, tv): chosen from the noise of each image")
    # fmt: on
    add_common(group, "device")
    return group


def add_match_option(group: argparse._ArgumentGroup, *, of: str) -> None:
    """Add ``--match``; ``command.match_noise`` finds its strength. ``of`` says what is given, for the help."""
    group.add_argument("--match", metavar="VIEW",
        help=f"instead of --strength: find the strength that removes as much noise as this view, {of}")  # fmt: skip


def _strength(text: str) -> float | str:
    return text if text == "auto" else float(text)
